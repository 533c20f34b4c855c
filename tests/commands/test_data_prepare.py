"""The stage script from command line to committed directory, for every source; on real data where it is at hand.

python -m pytest tests/commands/test_data_prepare.py
"""

from __future__ import annotations

import ast
import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data import prepare
from minionerec.catalogue.sources.source import INTERACTION_COLUMNS, ITEM_COLUMNS, SPLITS
from minionerec.errors import UserError
from minionerec.experiment.manifest import MANIFEST, verify
from tests.catalogue.test_data_minionerec import WORLD, folder

MAX_HISTORY = 10


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run("--data.source", "tables", ...)`` prepares in-process and returns the stage's
    directory.
    """
    config = tmp_path / "shop.yaml"
    config.write_text("name: shop\n")

    def prepare_with(*words: str) -> Path:
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "prepare.py",
                "--config",
                str(config),
                "--output_dir",
                str(tmp_path / "runs"),
                *map(str, words),
            ],
        )
        prepare.main()
        name = words[words.index("--name") + 1] if "--name" in words else "shop"
        return tmp_path / "runs" / name / "data"

    return prepare_with


def read(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    return (
        pd.read_parquet(path / "items.parquet"),
        pd.read_parquet(path / "interactions.parquet"),
        json.loads((path / "stats.json").read_text()),
    )


def samples_of(interactions: pd.DataFrame, split: str) -> Counter:
    """(user, history, target) rows of a split, straight from the definition of a sample."""
    sequences: dict[str, list[str]] = {}
    rows = Counter()
    for user, item, where in interactions[["user_id", "item_id", "split"]].itertuples(index=False):
        history = sequences.setdefault(user, [])
        if history and where == split:
            rows[user, tuple(history[-MAX_HISTORY:]), item] += 1
        history.append(item)
    return rows


def small_shop(folder: Path, users: int = 12, items: int = 6) -> Path:
    """Two CSV files, not sorted by time, with repeated purchases, equal timestamps and a buyer of
    one thing.
    """
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"{rng.integers(items):03d}", 1000 * int(rng.integers(1, 60)))
        for user in range(users)
        for _ in range(8)
    ]
    rng.shuffle(rows)
    (folder / "interactions.csv").write_text(
        "user_id,item_id,timestamp\n"
        + "".join(f"{u},{i},{t}\n" for u, i, t in [*rows, ("single", "000", 5)])
    )
    (folder / "items.csv").write_text(
        "item_id,title\n" + "".join(f"{i:03d},Thing {i}\n" for i in range(items + 1))
    )
    return folder


def test_tables_become_a_committed_directory_in_global_order(tmp_path, run, capsys):
    path = run("--data.source", "tables", "--data.path", small_shop(tmp_path))
    items, interactions, stats = read(path)
    verify(path)
    assert list(items.columns) == list(ITEM_COLUMNS) and list(interactions.columns) == list(
        INTERACTION_COLUMNS
    )
    assert (
        interactions["timestamp"].is_monotonic_increasing
        and interactions["timestamp"].dtype == np.int64
    )
    source = pd.read_csv(tmp_path / "interactions.csv", dtype={"item_id": str}).query(
        "user_id != 'single'"
    )
    expected = source.sort_values("timestamp", kind="stable")[["user_id", "item_id", "timestamp"]]
    assert (
        interactions[["user_id", "item_id", "timestamp"]].values.tolist()
        == expected.values.tolist()
    )
    assert sum(stats["samples"].values()) == 12 * 7
    assert stats["dropped"]["interactions of users with fewer than 2"] == 1
    assert stats["dropped"]["items without interactions after that"] == 1
    printed = capsys.readouterr().out
    assert (
        "dropped 1 interactions of users with fewer than 2" in printed
        and "next: bash rqvae/rqvae.sh" in printed
    )


def test_no_filter_keeps_items_that_nobody_bought(tmp_path, run):
    items, _, stats = read(
        run("--data.source", "tables", "--data.path", small_shop(tmp_path), "--data.k_core", "0")
    )
    assert (len(items), stats["items_with_interactions"]) == (7, 6)


def test_long_titles_take_their_interactions_with_them(tmp_path, run):
    small_shop(tmp_path)
    text = (tmp_path / "items.csv").read_text()
    (tmp_path / "items.csv").write_text(text.replace("000,Thing 0", "000,Thing 0 " + "very " * 20))
    items, interactions, stats = read(
        run("--data.source", "tables", "--data.path", tmp_path, "--data.k_core", "2")
    )
    assert "000" not in set(items["item_id"]) | set(interactions["item_id"])
    assert stats["dropped"]["items with a title of more than data.max_title_words words"] == 1
    before = pd.read_csv(tmp_path / "interactions.csv", dtype=str)
    assert stats["dropped"]["interactions with those items"] == (before["item_id"] == "000").sum()


def test_leave_one_out_gives_every_user_one_valid_and_one_test_target(tmp_path, run):
    _, interactions, stats = read(
        run(
            "--data.source",
            "tables",
            "--data.path",
            small_shop(tmp_path),
            "--data.split",
            "leave_one_out",
        )
    )
    for _, sequence in interactions.groupby("user_id"):
        assert sequence["split"].tolist() == ["train"] * (len(sequence) - 2) + ["valid", "test"]
    assert stats["samples"]["valid"] == stats["samples"]["test"] == stats["users"] == 12


def test_an_own_split_is_kept_and_nothing_is_filtered(tmp_path, run, capsys):
    rows = [
        ("u", "a", 1, "train"),
        ("u", "b", 2, "train"),
        ("u", "a", 3, "test"),
        ("u", "c", 3, "valid"),
        ("v", "a", 1, "train"),
        ("one", "a", 1, "train"),
    ]
    (tmp_path / "interactions.csv").write_text(
        "user_id,item_id,timestamp,split\n"
        + "".join(",".join(map(str, row)) + "\n" for row in rows)
        + "v,c,9,train\n"
    )
    (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,B\nc," + "long " * 30 + "\n")
    items, interactions, stats = read(
        run("--data.source", "tables", "--data.path", tmp_path, "--data.split", "own")
    )
    assert len(items) == 3 and stats["filters"] == "none: the source's own split is taken as it is"
    assert interactions[["user_id", "item_id", "split"]].values.tolist() == [
        ["u", "a", "train"],
        ["v", "a", "train"],
        ["u", "b", "train"],
        ["u", "c", "valid"],
        ["u", "a", "test"],
        ["v", "c", "train"],
    ]
    assert "dropped 1 interactions of users with fewer than 2" in capsys.readouterr().out


def test_an_own_split_that_trains_on_what_it_holds_out_is_refused(tmp_path, run):
    (tmp_path / "interactions.csv").write_text(
        "user_id,item_id,timestamp,split\nu,a,1,train\nu,b,2,test\nu,a,3,train\nu,a,4,valid\n"
    )
    (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,B\n")
    with pytest.raises(UserError, match="would be seen in training"):
        run("--data.source", "tables", "--data.path", tmp_path, "--data.split", "own")
    assert not (tmp_path / "runs" / "shop" / "data").exists()


def test_an_own_split_without_test_rows_is_refused(tmp_path, run):
    (tmp_path / "interactions.csv").write_text(
        "user_id,item_id,timestamp,split\nu,a,1,train\nu,b,2,train\nu,a,3,valid\n"
    )
    (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,B\n")
    with pytest.raises(
        UserError, match="^data.split: no target is in test; every split needs at least one$"
    ):
        run("--data.source", "tables", "--data.path", tmp_path, "--data.split", "own")


def test_a_minionerec_folder_brings_its_rows_and_its_sids(tmp_path, run):
    (tmp_path / "toys").mkdir()
    folder(tmp_path / "toys", WORLD)
    path = run("--data.source", "minionerec", "--data.path", tmp_path / "toys")
    _, interactions, stats = read(path)
    assert json.loads((path / "given_sids.json").read_text())["2"] == [2, 5]
    assert stats["timestamps"] == "order only" and stats["split"] == "own"
    for split in SPLITS:
        given = Counter(
            (user, tuple(map(str, history)), str(target))
            for where, user, history, target in WORLD
            if where == split
        )
        extra = samples_of(interactions, split) - given
        assert not given - samples_of(interactions, split)
        assert extra == (
            Counter({("v", ("2",), "3"): 1}) if split == "train" else Counter()
        )  # v's first row shows two items


def test_a_finished_stage_says_so_and_other_settings_are_refused(tmp_path, run, capsys):
    words = ("--data.source", "tables", "--data.path", small_shop(tmp_path))
    path = run(*words)
    before = (path / MANIFEST).read_bytes()
    capsys.readouterr()
    run(*words)
    assert (
        capsys.readouterr().out
        == f"{path} is finished; next: bash rqvae/rqvae.sh with the same --config\n"
    )
    assert (path / MANIFEST).read_bytes() == before
    with pytest.raises(UserError, match="data.k_core: 5 -> 2"):
        run(*words, "--data.k_core", "2")


def test_as_a_program_it_exits_2_with_one_line_and_writes_nothing(tmp_path, root):
    (tmp_path / "c.yaml").write_text(
        f"output_dir: {tmp_path}/runs\ndata: {{source: tables, path: {tmp_path}/none}}\n"
    )
    program = [
        sys.executable,
        str(root / "data" / "prepare.py"),
        "--config",
        str(tmp_path / "c.yaml"),
    ]
    failed = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert (
        failed.stderr
        == f"data.path: no folder '{tmp_path}/none'; give the folder that holds the interactions file\n"
    )
    assert not (tmp_path / "runs" / "c" / "data").exists()


def test_as_a_program_it_runs_from_any_folder_without_torch(tmp_path, root):
    (tmp_path / "c.yaml").write_text(
        f"output_dir: {tmp_path}/runs\ndata: {{source: tables, path: {small_shop(tmp_path)}}}\n"
    )
    code = (
        "import runpy, sys; sys.argv = ['prepare.py', '--config', 'c.yaml']; "
        f"runpy.run_path({str(root / 'data' / 'prepare.py')!r}, run_name='__main__'); assert 'torch' not in sys.modules"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verify(tmp_path / "runs" / "c" / "data")


@pytest.fixture(scope="module")
def industrial(request) -> dict[str, Counter]:
    """The (user, history, target) rows of MiniOneRec's own CSV files."""
    csv.field_size_limit(2**31 - 1)
    rows = {}
    for split in SPLITS:
        with open(
            request.getfixturevalue("real_data") / "amazon_industrial" / f"{split}.csv", newline=""
        ) as handle:
            rows[split] = Counter(
                (
                    row["user_id"],
                    tuple(map(str, ast.literal_eval(row["history_item_id"]))),
                    row["item_id"],
                )
                for row in csv.DictReader(handle)
            )
    return rows


@pytest.mark.parametrize(
    "words", [("--data.source", "minionerec"), ("--data.source", "tables", "--data.split", "own")]
)
def test_real_samples_equal_the_csv_rows_one_for_one(real_data, industrial, run, words):
    items, interactions, stats = read(run(*words, "--data.path", real_data / "amazon_industrial"))
    assert (len(items), stats["users"], len(interactions)) == (3686, 6697, 46354)
    assert stats["samples"] == {"train": 30592, "valid": 4532, "test": 4533}
    for split in SPLITS:
        assert samples_of(interactions, split) == industrial[split]


def test_real_sids_come_along_unchanged(real_data, run):
    path = run("--data.source", "minionerec", "--data.path", real_data / "amazon_industrial")
    given = json.loads((path / "given_sids.json").read_text())
    assert given["0"] == [236, 231, 226] and given["1"] == [42, 80, 160] and len(given) == 3686
    assert (
        len({tuple(codes) for codes in given.values()}) == 3670
    )  # 16 items share another's, as its README says


def test_real_tables_split_by_time_put_no_day_into_two_splits(real_data, run):
    path = run(
        "--data.source",
        "tables",
        "--data.path",
        real_data / "amazon_industrial",
        "--data.k_core",
        "0",
        "--data.max_title_words",
        "0",
    )
    items, interactions, stats = read(path)
    assert (len(items), stats["users"], len(interactions)) == (3686, 6697, 46354)
    total = 46354 - 6697
    assert sum(stats["samples"].values()) == total
    assert interactions.groupby("timestamp")["split"].nunique().max() == 1
    targets = interactions[interactions.duplicated("user_id")]
    largest_day = targets["timestamp"].value_counts().max()
    for splits, share in ((["train"], 0.8), (["train", "valid"], 0.9)):
        assert (
            abs(sum(stats["samples"][split] for split in splits) - share * total) <= largest_day / 2
        )


def test_real_movies_load_with_leave_one_out(real_data, run):
    items, interactions, stats = read(
        run(
            "--data.source",
            "tables",
            "--data.path",
            real_data / "ml-100k",
            "--data.split",
            "leave_one_out",
            "--data.k_core",
            "0",
        )
    )
    assert (len(items), stats["users"], len(interactions)) == (1682, 943, 100000)
    assert stats["samples"] == {"train": 100000 - 3 * 943, "valid": 943, "test": 943}
    assert items.set_index("item_id")["categories"]["1"].tolist() == [
        "Animation",
        "Children's",
        "Comedy",
    ]
