"""The copy of predictions.jsonl: the same rows, and never those of other lines.

python -m pytest tests/evaluation/test_prediction_files.py
"""

from __future__ import annotations

import json
import random

import pandas as pd
import pyarrow.parquet as pq
import pytest

from minionerec.errors import UserError
from minionerec.evaluation import prediction_files, prediction_table
from minionerec.evaluation.prediction_files import LINES, TABLE, copy_of, read, with_lines, write
from minionerec.evaluation.rankings import read_predictions

SCORES = [-0.0, 1e-300, -12.34567, 0.1, 3.0, -1e17]


def some_rows(count, seed=0):
    """Users with several rows, lists of no to six items, ids of every alphabet."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        items = rng.sample(range(40), rng.randint(0, 6))
        row = {
            "user_id": f"ü{number // 3}",
            "target_item_id": f"品{rng.randrange(40)}",
            "item_ids": [f"品{item}" for item in items],
            "scores": [rng.choice(SCORES) for _ in items],
        }
        rows.append(row)
    return rows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twenty rows in row groups of seven, which are read five at a time."""
    monkeypatch.setattr(prediction_files, "ROWS", 7)
    monkeypatch.setattr(prediction_table, "BATCH_ROWS", 5)
    write(tmp_path, with_lines(some_rows(20)))
    return tmp_path


def test_the_copy_holds_what_the_lines_hold(folder):
    lines = [json.dumps(row, ensure_ascii=False) for row in some_rows(20)]
    assert (folder / LINES).read_text(encoding="utf-8") == "".join(f"{line}\n" for line in lines)
    copied = copy_of(folder / LINES)
    assert repr(list(copied)) == repr(list(map(json.loads, lines)))  # -0.0 is not 0.0
    assert repr(list(read_predictions(folder / LINES))) == repr(list(copied))


def test_any_program_reads_the_copy_as_texts_and_numbers(folder):
    frame = pd.read_parquet(folder / TABLE)
    rows = some_rows(20)
    for name in ("user_id", "target_item_id"):
        assert frame[name].tolist() == [row[name] for row in rows]
    for name in ("item_ids", "scores"):
        assert [list(found) for found in frame[name]] == [row[name] for row in rows]


def test_no_line_is_parsed_where_a_copy_is(folder, monkeypatch):
    expected = list(read(folder / LINES))

    def refuse(*_):
        raise AssertionError("a line was parsed")

    monkeypatch.setattr(json, "loads", refuse)
    assert list(read(folder / LINES)) == list(read_predictions(folder / LINES)) == expected


def edited(folder):
    content = (folder / LINES).read_bytes()
    assert b"-12.34567" in content  # a number becomes another of the same length
    (folder / LINES).write_bytes(content.replace(b"-12.34567", b"-12.34568", 1))


def of_another(folder):
    other = folder / "other"
    other.mkdir()
    write(other, with_lines(some_rows(20, seed=1)))
    (other / TABLE).rename(folder / TABLE)


def cut_off(folder):
    content = (folder / TABLE).read_bytes()
    (folder / TABLE).write_bytes(content[:-20])


def without_note(folder):
    table = pq.read_table(folder / TABLE)
    pq.write_table(table.replace_schema_metadata(None), folder / TABLE)


def gone(folder):
    (folder / TABLE).unlink()


@pytest.mark.parametrize("change", [edited, of_another, cut_off, without_note, gone])
def test_the_lines_count_where_the_copy_is_not_theirs(folder, change):
    """Also where it is damaged, or another program wrote it."""
    change(folder)
    assert copy_of(folder / LINES) is None
    lines = (folder / LINES).read_text(encoding="utf-8").splitlines()
    for found in (read(folder / LINES), read_predictions(folder / LINES)):
        assert list(found) == list(map(json.loads, lines))


def test_lines_of_another_name_are_read_themselves(folder):
    """A copy belongs to the file beside it, not to whatever is there too."""
    other = folder / "more.jsonl"
    other.write_bytes((folder / LINES).read_bytes())
    assert copy_of(other) is None
    assert list(read_predictions(other)) == list(read_predictions(folder / LINES))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"item_ids": ["a", "b", "a"]}, "item_ids: item 'a' is there 2 times"),
        ({"scores": [2.0, float("nan"), 1.0]}, "scores: holds NaN or infinity"),
        ({"scores": [2.0, 1.0, float("inf")]}, "scores: holds NaN or infinity"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_of_its_line(tmp_path, change, message):
    good = {"user_id": "u", "target_item_id": "a", "item_ids": list("abc"), "scores": [3.0, 2.0, 1]}
    write(tmp_path, with_lines([good, good | change]))
    assert copy_of(tmp_path / LINES) is None
    with pytest.raises(UserError, match=f"predictions.jsonl:2: {message}"):
        read_predictions(tmp_path / LINES)


def test_a_ranking_without_rows_is_empty_either_way(tmp_path):
    write(tmp_path, [])
    assert len(copy_of(tmp_path / LINES)) == len(read(tmp_path / LINES)) == 0
    with pytest.raises(UserError, match="is empty; expected a line per test row"):
        read_predictions(tmp_path / LINES)


def test_ids_are_numbers_on_the_disk_too(tmp_path):
    """Lists of long ids: a number of two bytes and a few for its score, where a line has 44."""
    rng = random.Random(0)
    rows = []
    for number in range(3000):
        items = rng.sample(range(1000), 20)
        row = {
            "user_id": f"user {number}",
            "target_item_id": f"an item with a long id {items[0]:08d}",
            "item_ids": [f"an item with a long id {item:08d}" for item in items],
            "scores": [round(-place / 7, 5) for place in range(20)],
        }
        rows.append(row)
    write(tmp_path, with_lines(rows))
    assert (tmp_path / TABLE).stat().st_size < (tmp_path / LINES).stat().st_size / 8
