"""What cannot be compared, and mistakes: each is refused in one line. Run: python -m pytest
tests/commands/test_compare_refusals.py
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import compare
from minionerec.errors import UserError
from minionerec.evaluation.rankings import read_predictions
from minionerec.experiment.commit import committed as commit_directory
from minionerec.experiment.files import sha256_file
from minionerec.experiment.manifest import opened
from minionerec.experiment.stages import stage_path
from tests.rankings import committed, experiment, lists, rows_of, seeds_of, world_of, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return world_of(tmp_path_factory.mktemp("world"))


@pytest.fixture
def three_seeds(tmp_path):
    return seeds_of(tmp_path)


def change_line(number, change):
    """A mutation of one line of ``predictions.jsonl``; ``change`` takes and returns the row, or
    returns text.
    """

    def mutate(folder):
        file = folder / "predictions.jsonl"
        lines = file.read_text().splitlines()
        changed = change(json.loads(lines[number - 1]))
        lines[number - 1] = changed if isinstance(changed, str) else json.dumps(changed)
        file.write_text("".join(f"{line}\n" for line in lines if line))

    return mutate


def with_score(value):
    """A change of a row's last score."""
    return lambda row: row | {"scores": [*row["scores"][:-1], value]}


BAD_LINES = {
    "not JSON": (
        lambda row: "{",
        "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); make the "
        "ranking again",
    ),
    "no object": (
        lambda row: "[1]",
        "got [1], expected an object with user_id, target_item_id, item_ids, scores",
    ),
    "no user": (
        lambda row: {key: row[key] for key in row if key != "user_id"},
        "user_id: is missing, expected text",
    ),
    "user is a number": (lambda row: row | {"user_id": 7}, "user_id: got 7, expected text"),
    "items are text": (lambda row: row | {"item_ids": "i1"}, 'item_ids: got "i1", expected a list'),
    "items are numbers": (
        lambda row: row | {"item_ids": [1, 2]},
        "item_ids: holds something that is not text; expected item ids",
    ),
    "NaN": (
        with_score(float("nan")),
        "scores: holds NaN or infinity; whatever ranked this had no numbers to rank by",
    ),
    "infinity": (
        with_score(float("inf")),
        "scores: holds NaN or infinity; whatever ranked this had no numbers to rank by",
    ),
    "a score is text": (with_score("1"), "scores: holds something that is not a number"),
    "a score is true": (with_score(True), "scores: holds something that is not a number"),
    "a whole number of 400 digits": (
        with_score(10**400),
        "scores: holds NaN or infinity; whatever ranked this had no numbers to rank by",
    ),
    "a score too few": (
        lambda row: row | {"scores": row["scores"][1:]},
        "24 item_ids but 23 scores; expected one score per item",
    ),
    "an item twice": (
        lambda row: row | {"item_ids": [row["item_ids"][0], *row["item_ids"][:-1]]},
        "item_ids: item 'ITEM' is there 2 times; expected every item once",
    ),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_line_that_is_no_ranking_is_named(world, tmp_path, case):
    change, message = BAD_LINES[case]
    folder = write(tmp_path / "x", read_predictions(world / "baselines/good/predictions.jsonl"))
    first = json.loads((folder / "predictions.jsonl").read_text().splitlines()[2])["item_ids"][0]
    change_line(3, change)(folder)
    refused(
        f"{folder}/predictions.jsonl:3: {message.replace('ITEM', first)}",
        world / "baselines/bad",
        folder,
    )


def refused(message, *words):
    with pytest.raises(UserError) as caught:
        compare.main([str(word) for word in words])
    assert str(caught.value) == message


def test_rows_that_are_missing_or_there_twice_are_refused(world, tmp_path):
    rows = read_predictions(world / "baselines/good/predictions.jsonl")
    user, target = rows[5]["user_id"], rows[5]["target_item_id"]
    bad = world / "baselines/bad"
    short, double = (
        write(tmp_path / "short", rows[:5] + rows[6:]),
        write(tmp_path / "double", [*rows, rows[5]]),
    )
    refused(
        f"{short}/predictions.jsonl: user '{user}' with target '{target}' is missing; it has 39 of the 40 rows of {bad}",
        bad,
        short,
    )
    refused(
        f"{double}/predictions.jsonl: user '{user}' with target '{target}' is there 2 times, in {bad} 1 times (41 rows here, 40 there)",
        bad,
        double,
    )
    empty = write(tmp_path / "empty", rows)
    (empty / "predictions.jsonl").write_text("")
    refused(f"{empty}/predictions.jsonl: is empty; expected a line per test row", bad, empty)


def test_a_committed_ranking_must_have_the_rows_and_items_of_its_data(world, tmp_path):
    """Even if the other ranking lacks the same row."""
    made = experiment(tmp_path)
    data = stage_path(made, "data")
    rows = lists(rows_of(data), 0, 0.5)
    user, target = rows[0]["user_id"], rows[0]["target_item_id"]
    short = committed(made, "short", rows[1:])
    refused(
        f"{short}/predictions.jsonl: user '{user}' with target '{target}' is missing; it has 39 of the 40 rows of the test split of "
        f"{data}",
        short,
        committed(made, "also short", rows[1:]),
    )
    foreign = committed(made, "foreign", rows)
    manifest = foreign / "MANIFEST.json"
    change_line(2, lambda row: row | {"item_ids": ["b00k", *row["item_ids"][1:]]})(foreign)
    manifest.unlink()
    with commit_directory(
        foreign.with_name("again"), "baselines", {}, [opened(data)], method="again"
    ) as staging:
        for file in foreign.iterdir():
            shutil.copy(file, staging)
    again = foreign.with_name("again")
    refused(
        f"{again}/predictions.jsonl:2: item 'b00k' is not in the catalogue of 24 items; this ranking is of another catalogue",
        again,
        short,
    )


def test_another_split_is_refused(world):
    valid, good = world / "evaluate/sft-valid", world / "baselines/good"
    refused(
        f"{valid}: ranks the valid split, {good} the test split; compare rankings of the same split",
        good,
        valid,
    )


def test_other_data_is_refused_even_with_the_same_test_rows(world, tmp_path):
    """A train row was dropped: catalogue and test rows are the same, the models have seen other
    things.
    """
    made = experiment(tmp_path, "b")
    old, new = stage_path(made, "data"), stage_path(made, "other")
    frame = pd.read_parquet(old / "interactions.parquet")
    with commit_directory(new, "data", {}, []) as staging:
        shutil.copy(old / "items.parquet", staging)
        frame.drop(index=1).to_parquet(staging / "interactions.parquet")
    shutil.rmtree(old)
    new.rename(old)
    other, good = committed(made, "x", lists(rows_of(old), 0, 0.5)), world / "baselines/good"
    digests = [sha256_file(data / "interactions.parquet")[:12] for data in (old, world / "data")]
    refused(
        f"{other}: was made from other data than {good}: interactions.parquet of {old} has sha256 {digests[0]}, of {world / 'data'} "
        f"{digests[1]}",
        good,
        other,
    )


def test_a_damaged_ranking_or_one_whose_data_was_made_again_is_refused(tmp_path):
    made = experiment(tmp_path)
    data = stage_path(made, "data")
    path = committed(made, "x", lists(rows_of(data), 0, 0.5))
    content = (path / "predictions.jsonl").read_bytes()
    (path / "predictions.jsonl").write_bytes(content.replace(b"-3.0", b"-4.0", 1))
    other = committed(made, "y", lists(rows_of(data), 1, 0.5))
    refused(
        f"{path}/predictions.jsonl: is damaged (its sha256 is not the one in MANIFEST.json); delete {path} and make it again",
        path,
        other,
    )
    (path / "predictions.jsonl").write_bytes(content)
    shutil.rmtree(data)
    with commit_directory(data, "data", {}, []) as staging:
        (staging / "items.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=f"^{path}: was made from another {data} "):
        compare.main([str(path), str(other)])


def test_metrics_that_are_not_those_of_the_rows_are_refused(world, tmp_path):
    rows = read_predictions(world / "baselines/good/predictions.jsonl")
    folder, bad = write(tmp_path / "x", rows), world / "baselines/bad"
    true = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(true | {"HR@1": 0.999}))
    refused(
        f"{folder}: metrics.json says HR@1 0.999000, predictions.jsonl gives {true['HR@1']:.6f}; one of them is of another run, "
        "make the ranking again",
        bad,
        folder,
    )
    (folder / "metrics.json").write_text(json.dumps(true | {"HR@1": "high"}))
    refused(
        f'{folder}/metrics.json: HR@1: got "high", expected a number from 0 to 1; make the ranking again',
        bad,
        folder,
    )
    (folder / "metrics.json").write_text("{}")
    refused(
        f"{folder}/metrics.json: has no 'split'; expected the metrics.json of an evaluation or a baseline",
        bad,
        folder,
    )
    (folder / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=f"^{folder}/metrics.json: is not JSON"):
        compare.main([str(bad), str(folder)])
    (folder / "metrics.json").unlink()
    refused(f"{folder}: has no metrics.json; expected an evaluation or a baseline", bad, folder)


def test_items_that_share_a_sid_need_the_sids_they_were_ranked_with(world, tmp_path):
    """Without them the targets would count as if their place among equals were known."""
    folder = write(
        tmp_path / "x",
        read_predictions(world / "baselines/good/predictions.jsonl"),
        inflation={"HR@1": 0.01},
        sids_sha256="0123456789abcdef",
    )
    refused(
        f"{folder}: several of its items share a SID, and the SIDs it was made with (0123456789ab) are not where its manifest says; "
        "rank again",
        world / "baselines/bad",
        folder,
    )


def test_rankings_that_are_no_seeds_of_one_method_are_refused(three_seeds):
    a, b, d, rule = (
        three_seeds / name
        for name in ("a/baselines/net", "b/baselines/net", "d/baselines/net", "a/baselines/rule")
    )
    refused(
        f"{d}: is not another seed of {a}, it differs in baselines: width: 32 -> 64; name it by itself",
        f"{a},{d}",
        rule,
    )
    refused(f"{a}: has the same seed as {a}; expected every seed once", f"{a},{b},{a}", rule)
    refused(
        f"{three_seeds / 'a'}: is no evaluation and no baseline; of several seeds, each must be one",
        f"{three_seeds / 'a'},{b}",
        rule,
    )


def test_lists_too_short_for_a_metric_are_refused_and_shown_with_a_dash(world, tmp_path, capsys):
    rows = [
        row | {"item_ids": row["item_ids"][:5], "scores": row["scores"][:5]}
        for row in read_predictions(world / "baselines/good/predictions.jsonl")
    ]
    short, bad = write(tmp_path / "short", rows), world / "baselines/bad"
    refused(
        f"{short}: has no NDCG@10, its lists hold 5 items; rank again with a larger evaluate.num_beams, or pass another --metric",
        bad,
        short,
    )
    compare.main([str(bad), str(short), "--metric", "HR@5"])
    assert [
        line.split()[3:5]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("short")
    ][0] == ["-", "-"]


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["bad", "good", "--metric", "NDGC@10"],
            "--metric: got 'NDGC@10', expected some of .*; did you mean 'NDCG@10'\\?",
        ),
        (["bad", "good", "--to", "best"], "--to: got 'best', expected one of bad, good"),
        (["bad", "bad"], ".*/bad: is named twice, by itself or with its experiment; name it once"),
        (["bad"], ".*/bad: is one method only; name at least two to compare"),
        (["bad", "good", "--samples", "5"], "--samples: got 5, expected at least 100"),
        (
            ["bad", "good", "--beta", "5"],
            "compare.py: unrecognized arguments: --beta 5; --help says more",
        ),
        (
            ["bad", "nowhere"],
            ".*/nowhere: no such directory; expected an evaluation, a baseline, or an experiment's folder",
        ),
        (
            ["bad", "long"],
            ".*/x{300}: no such directory; expected an evaluation, a baseline, or an experiment's folder",
        ),
        (
            ["bad", "good", "--samples", "100", "--json", ".."],
            "--json .*: cannot be written: Is a directory",
        ),
        (
            [".."],
            ".*: is one method only; .*|.*evaluate/\\*-test; run `bash evaluate.sh` or `bash baselines/run.sh` first",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(world, tmp_path, words, message):
    paths = {name: str(world / "baselines" / name) for name in ("bad", "good", "nowhere")}
    paths |= {"..": str(tmp_path), "long": str(tmp_path / ("x" * 300))}
    words = [paths.get(word, word) for word in words]
    with pytest.raises(UserError, match=f"^{message}$"):
        compare.main(words)


@pytest.mark.parametrize("flag", ["--json", "--page"])
def test_a_folder_that_is_not_there_is_said_before_anything_is_read(tmp_path, flag):
    """The run that is named is not there either, and would be complained about first."""
    target = tmp_path / "nowhere" / "out"
    said = f"{flag} {target}: cannot be written: No such file or directory"
    refused(said, tmp_path / "no run", flag, target)


def test_as_a_command_it_ends_with_2_and_one_line_and_loads_no_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "compare.py", str(tmp_path / "x")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"{tmp_path}/x: no such directory; expected an evaluation, a baseline, or an experiment's folder\n"
    )
    code = "import sys, compare; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


def test_a_copy_is_neither_a_method_nor_a_seed_and_a_swap_exchanges_no_rows(tmp_path):
    """Holm over copies would correct too much, swapped folders would name the wrong winner."""
    made = experiment(tmp_path)
    rows = rows_of(stage_path(made, "data"))
    one, other = (
        committed(made, name, lists(rows, seed, 0.5)) for seed, name in enumerate(("one", "other"))
    )
    copy = shutil.copytree(one, tmp_path / "copy")
    refused(f"{copy}: is a copy of {one}; name one of them", one, other, copy)
    inside = shutil.copytree(one, one.with_name("one (copy)"))
    message = "holds something else than its name says (MANIFEST.json: it was made as"
    advice = "rename it back, or delete it and make it again"
    refused(f"{inside}: {message} 'one'); {advice}", tmp_path / "a")
    shutil.rmtree(inside)
    one.rename(one.with_name("between"))
    other.rename(one)
    one.with_name("between").rename(other)
    refused(f"{one}: {message} 'other'); {advice}", tmp_path / "a")
