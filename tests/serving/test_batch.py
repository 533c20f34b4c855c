"""``recommend.py`` from file to file: the lists of an evaluation, to the byte, however they came
about.
"""

import json
import subprocess
import sys

import pandas as pd
import pytest

import recommend
from minionerec.errors import UserError
from minionerec.experiment import parts
from minionerec.experiment.stages import evaluation_path, parts_path, stage_path
from minionerec.serving import batch
from minionerec.serving.recommender import Recommender
from tests.serving.test_recommender import made, predictions, test_rows  # noqa: F401


@pytest.fixture
def ask(made, monkeypatch, tmp_path):  # noqa: F811
    """Runs recommend.py with flags, in a folder with the test rows' histories."""
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(made.model_dump(exclude={"baselines"})))
    rows = predictions(evaluation_path(made))
    users = pd.DataFrame({"user_id": [row["user_id"] for row in rows], "history": test_rows(made)})
    users.to_json(tmp_path / "users.jsonl", orient="records", lines=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch, "USERS_PER_PART", 32)  # two parts

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["recommend.py", "--config", str(config), *words])
        recommend.main()

    return run


def without_target(record):
    return {key: value for key, value in record.items() if key != "target_item_id"}


def test_a_file_of_the_test_rows_gets_the_evaluations_lists_to_the_byte(ask, made, tmp_path):  # noqa: F811
    ask("--histories", "users.jsonl", "--out", "recs.jsonl", "--k", "12")
    rows = predictions(evaluation_path(made))
    expected = "".join(json.dumps(without_target(row)) + "\n" for row in rows)
    assert (tmp_path / "recs.jsonl").read_text() == expected
    # the same as tables, with ranks
    ask("--histories", "users.jsonl", "--out", "recs.parquet", "--k", "3")
    ask("--histories", "users.jsonl", "--out", "recs.csv", "--k", "3")
    table = pd.read_parquet(tmp_path / "recs.parquet")
    assert table.columns.tolist() == ["user_id", "rank", "item_id", "score"]
    assert table["item_id"].tolist() == [item for row in rows for item in row["item_ids"][:3]]
    assert table["rank"].tolist() == [1, 2, 3] * len(rows)
    written = pd.read_csv(tmp_path / "recs.csv")
    pd.testing.assert_frame_equal(written, table.reset_index(drop=True), check_dtype=False)


def test_a_killed_run_ranks_the_rest_and_ends_with_the_same_bytes(ask, tmp_path, monkeypatch):
    ask("--histories", "users.jsonl", "--out", "whole.jsonl")
    write_part, written = parts.write_part, []

    def killed(*words):
        write_part(*words)
        written.append(words[1])
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        ask("--histories", "users.jsonl", "--out", "recs.jsonl")
    assert not (tmp_path / "recs.jsonl").exists() and written == [0]
    monkeypatch.setattr(
        parts, "write_part", lambda *words: [write_part(*words), written.append(words[1])]
    )
    ask("--histories", "users.jsonl", "--out", "recs.jsonl")
    assert written == [0, 1]
    assert (tmp_path / "recs.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not parts_path(tmp_path / "recs.jsonl").exists()


def test_filters_and_attributes_come_from_files(ask, tmp_path):
    (tmp_path / "filters.json").write_text(
        json.dumps({"where": {"price": [None, 9]}, "deny": ["i3"]})
    )
    rows = "".join(f"i{n},{n}\n" for n in range(24))
    (tmp_path / "prices.csv").write_text(f"item_id,price\n{rows}")
    flags = ("--filters", "filters.json", "--attributes", "prices.csv", "--out", "recs.parquet")
    ask("--histories", "users.jsonl", *flags, "--k", "9")
    table = pd.read_parquet(tmp_path / "recs.parquet")
    assert set(table["item_id"]) == {f"i{n}" for n in range(10)} - {"i3"}
    assert (table.groupby("user_id").size() == 9).all()


def test_all_users_of_a_run_get_a_list_after_everything_they_had(ask, made, tmp_path):  # noqa: F811
    ask("--users", "all", "--out", "recs.jsonl", "--k", "4", "--evaluate.exclude_history", "true")
    interactions = pd.read_parquet(stage_path(made, "data") / "interactions.parquet")
    interactions.sample(frac=1, random_state=0).to_csv(tmp_path / "shuffled.csv", index=False)
    whole = interactions.groupby("user_id", sort=False)["item_id"].agg(list)
    records = [json.loads(line) for line in (tmp_path / "recs.jsonl").read_text().splitlines()]
    assert [record["user_id"] for record in records] == whole.index.tolist()
    for record, history in zip(records, whole, strict=True):
        assert len(record["item_ids"]) == 4 and not set(record["item_ids"]) & set(history)
    recommender = Recommender.load(stage_path(made, "sft").parent)
    found = recommender.recommend([whole.iloc[7]], k=4, exclude_history=True)[0]
    assert [item.item_id for item in found] == records[7]["item_ids"]
    # rows of interactions in any order: the timestamp orders them
    users = batch.read_users(tmp_path / "shuffled.csv", recommender.filters)
    by_id = dict(zip(users.ids, users.histories, strict=True))
    assert by_id["u7"] == [int(item[1:]) for item in whole["u7"]]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--histories", "users.jsonl"], "--out: got '.', expected a name ending in .jsonl, .csv, .parquet"),
        (["--histories", "users.jsonl", "--out", "users.jsonl"], "--out: users.jsonl is there already; delete it, or name another file"),
        (["--histories", "users.jsonl", "--users", "all", "--out", "a.csv"], "--histories and --users are given together; keep one"),
        (["--users", "u1", "--out", "a.csv"], "--users: got 'u1', expected all (or --histories FILE)"),
        (["--histories", "none.csv", "--out", "a.csv"], "none.csv: cannot be read as csv ([Errno 2] No such file or directory: 'none.csv')"),
        (["--histories", "bad.csv", "--out", "a.csv"], "bad.csv: has the columns user, item; expected user_id and history, or user_id and item_id"),
        (["--histories", "unknown.jsonl", "--out", "a.csv"], "unknown.jsonl, row 2 (user '7'): history: 1 of 1 ids are not in the catalogue: 'i99'; ids look like 'i0'"),
        (["--histories", "empty.jsonl", "--out", "a.csv"], "empty.jsonl, row 1 (user 'u'): history: got [], expected a list of item ids"),
        (["--users", "all", "--out", "a.csv", "--filters", "bad.csv"], "--filters: bad.csv: cannot be read as JSON (Expecting value: line 1 column 1 (char 0))"),
        (["--users", "all", "--out", "a.csv", "--filters", "odd.json"], "--filters: odd.json: expected an object with allow, deny or where"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(ask, tmp_path, flags, message):
    (tmp_path / "bad.csv").write_text("user,item\na,b\n")
    (tmp_path / "unknown.jsonl").write_text(
        '{"user_id": 1, "history": ["i1"]}\n{"user_id": 7, "history": ["i99"]}\n'
    )
    (tmp_path / "empty.jsonl").write_text('{"user_id": "u", "history": []}\n')
    (tmp_path / "odd.json").write_text('{"without": ["i1"]}')
    with pytest.raises(UserError) as error:
        ask(*flags)
    assert str(error.value) == message
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(ask, root, tmp_path):
    """``accelerate launch``; four parts, two for each process."""
    ask("--users", "all", "--out", "one.jsonl")
    program = (
        "import sys; from minionerec.serving import batch; batch.USERS_PER_PART = 32; "
        f"sys.path.insert(0, {str(root)!r}); import recommend; recommend.main()"
    )
    (tmp_path / "started.py").write_text(program)
    words = ["--cpu", "--num_processes", "2", "--num_machines", "1", "started.py"]
    flags = ["--config", "tiny.yaml", "--users", "all", "--out", "two.jsonl"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
