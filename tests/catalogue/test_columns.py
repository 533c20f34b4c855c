"""Columns as Arrow holds them: what is asked of distinct cells is what every cell would answer.

python -m pytest tests/catalogue/test_columns.py
"""

from __future__ import annotations

import json
import tracemalloc
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.catalogue import arrays, prepared, split
from minionerec.catalogue.sources import columns, interactions, readers, tables, times
from minionerec.catalogue.sources.columns import Cells, Ids, distinct
from minionerec.errors import UserError
from minionerec.experiment.settings import DataSettings

ITEMS = "item_id,title\ni1,One\ni2,Two\ni3,Three\n"
LINES = [
    {"user_id": "u1", "item_id": "i1", "timestamp": 1500000000, "rating": 4},
    {"user_id": "u2", "item_id": "i2", "timestamp": 1500000001, "rating": 4.5},
    {"user_id": 7, "item_id": "i1", "timestamp": 1500000002},
    {"user_id": "u1", "item_id": "i3", "timestamp": 1500000003, "rating": None},
    {"user_id": "7", "item_id": "i2", "timestamp": 1500000004, "rating": "3"},
]


def test_distinct_cells_stand_in_the_order_of_their_first_rows():
    found = distinct(Cells(pa.chunked_array([["b", "a", None], ["a", "c"]])))
    assert list(found.cells) == ["b", "a", None, "c"]
    assert found.codes.tolist() == [0, 1, 2, 1, 3]


def test_numbers_that_python_calls_equal_are_different_cells():
    found = distinct([1, 1.0, True, "1", 1, [1], [1]])
    assert list(found.cells) == [1, 1.0, True, "1", [1], [1]]
    assert [type(cell) for cell in found.cells[:4]] == [int, float, bool, str]
    assert found.codes.tolist() == [0, 1, 2, 3, 0, 4, 5]


def test_chunks_with_texts_of_their_own_share_one_list_without_unused_texts():
    first = pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int32()), ["a", "b", "unused"])
    second = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), ["c", "a"])
    found = distinct(Cells(pa.chunked_array([first, second])))
    assert list(found.cells) == ["b", "a", "c"]
    assert found.codes.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("cells", [[1, 2.5], ["a", 1], [True], [2**70], ["\ud800"], [[1], None]])
def test_cells_that_arrow_would_change_stay_as_they_are(cells):
    assert columns.packed(cells) is cells


@pytest.mark.parametrize("cells", [["a", None, ""], [1, None], [0.5, None]])
def test_cells_of_one_kind_come_back_from_arrow_as_they_were(cells):
    assert list(columns.joined([columns.packed(cells), columns.packed(cells)])) == cells + cells


@pytest.mark.parametrize("block", [1, 2, 100])
def test_a_file_reads_alike_in_blocks_of_any_size(tmp_path, monkeypatch, block):
    """Blocks of one kind, of several and single rows: ids and ratings worked by hand."""
    for module in (columns, readers):
        monkeypatch.setattr(module, "BLOCK", block)
    (tmp_path / "items.csv").write_text(ITEMS)
    (tmp_path / "interactions.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n")
    frame = tables.load(DataSettings(source="tables", path=str(tmp_path))).interactions
    assert frame["user_id"].tolist() == ["u1", "u2", "7", "u1", "7"]
    assert frame["item_id"].tolist() == ["i1", "i2", "i1", "i3", "i2"]
    assert frame["timestamp"].tolist() == [1500000000 + row for row in range(5)]
    np.testing.assert_array_equal(frame["rating"], [4, 4.5, np.nan, np.nan, 3])


@pytest.mark.parametrize("block", [2, 100])
def test_mistakes_are_named_by_line_in_blocks_of_any_size(tmp_path, monkeypatch, block):
    for module in (columns, readers):
        monkeypatch.setattr(module, "BLOCK", block)
    (tmp_path / "items.csv").write_text(ITEMS)
    text = "user_id,item_id,timestamp,rating\n" + "u1,i1,1500000000,4\n" * 4
    text += ",i2,1500000000,x\nu1,i1,soon,4\n,i1,1500000000,4\n"
    (tmp_path / "interactions.csv").write_text(text)
    with pytest.raises(UserError) as refused:
        tables.load(DataSettings(source="tables", path=str(tmp_path)))
    path = tmp_path / "interactions.csv"
    assert str(refused.value).splitlines() == [
        f"{path}:6: user_id: got '', expected an id (2 rows in all, next: 8)",
        f"{path}:7: timestamp: got 'soon', expected {times.EXPECTED}",
        f"{path}:6: rating: got 'x', expected a number, or nothing",
    ]


def test_rows_of_part_files_are_named_by_file_and_row():
    places = readers.PlacesInParts([("a.csv:", [2, 5]), ("b.parquet: row ", range(1, 4))])
    found = list(places)
    assert found == [
        "a.csv:2",
        "a.csv:5",
        "b.parquet: row 1",
        "b.parquet: row 2",
        "b.parquet: row 3",
    ]
    assert (places[-1], places[1:3], len(places)) == (found[-1], found[1:3], 5)


@pytest.mark.parametrize(
    "cells",
    [
        [1538352001, 0, 1538352002],
        [1538352001999, 1538352002000],
        [1538352001 * 10**9 + 999_999_999, 1],
        [-5, 1538352001],
        [0, 0],
        [1538352001, 1538352002000],
        [10**18, 5],
        ["1538352001", "-5", "007"],
        ["1538352001", "2018-10-01"],
        ["2018-10-01", "2018-10-01T02:03:04Z", "1969-12-31"],
        ["2018-10-01", "2018-13-01"],
        ["2018-10-01", None],
        [datetime(2018, 10, 1, 2, 3, 4, 999_000), datetime(1960, 1, 1)],
        [datetime(2018, 10, 1, 2, 3, 4, tzinfo=UTC)],
    ],
)
def test_a_column_that_arrow_holds_is_read_as_its_cells_are(cells):
    expected = times.read_times(cells)
    found = times.read_times(Cells(pa.chunked_array([pa.array(cells)])))
    assert found.seconds.tolist() == expected.seconds.tolist()
    assert found.unreadable.tolist() == expected.unreadable.tolist()
    assert found.early.tolist() == expected.early.tolist()
    assert (found.unit, found.mixed) == (expected.unit, expected.mixed)


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), max_size=40))
def test_the_fast_stable_order_is_numpys(values):
    array = np.array(values, dtype=np.int64)
    expected = np.argsort(array, kind="stable").tolist()
    assert arrays.stable_order(array).tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_repeats_do_not_depend_on_how_many_users_are_looked_at_together(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 12, 200).astype(np.int32)
    items = rng.integers(0, 9, 200).astype(np.int32)
    expected = pd.DataFrame({"u": users, "i": items}).duplicated().tolist()
    for pairs in (1, 30, 1000):
        monkeypatch.setattr(split, "PAIRS", pairs)
        assert split.repeats(users, items).tolist() == expected


def test_rows_that_are_there_twice_are_counted_even_if_all_are_mixed_to_one_number(monkeypatch):
    """With MIX 0 every row has the same number as any other of its time."""
    users = np.array([0, 1, 0, 1], dtype=np.int32)
    items = np.array([3, 4, 3, 5], dtype=np.int32)
    seconds = np.array([9, 9, 9, 9])
    read = columns_of_four_rows()
    for mix in (interactions.MIX, np.uint64(0)):
        monkeypatch.setattr(interactions, "MIX", mix)
        (line,) = interactions.note_repeats(read, users, items, seconds)
        assert line.startswith("log.csv:4: repeats") and "(1 such rows of 4, which count)" in line


def columns_of_four_rows():
    """A table whose rows stand on the lines 2 to 5."""
    return interactions.Table(interactions.Path("log.csv"), {}, [], [2, 3, 4, 5])


def test_what_is_written_group_by_group_reads_as_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "ROW_GROUP", 2)
    items = pd.DataFrame(
        {"item_id": ["i1"], "title": ["One"], "description": "", "brand": "", "categories": [[]]}
    )
    ids = Ids(pa.array(["u2", "u1"], pa.large_string()), np.array([1, 0, 1], dtype=np.int32))
    frame = pd.DataFrame(
        {
            "user_id": ids.column(),
            "item_id": "i1",
            "timestamp": [5, 6, 7],
            "rating": [np.nan, 1.0, 2.0],
        }
    ).assign(split=["train", "valid", "test"])
    prepared.write(tmp_path, items, frame, {}, None)
    file = pq.ParquetFile(tmp_path / "interactions.parquet")
    assert file.num_row_groups == 2
    assert file.schema_arrow.field("user_id").type == pa.string()
    assert file.read(["user_id", "split"]).to_pydict() == {
        "user_id": ["u1", "u2", "u1"],
        "split": ["train", "valid", "test"],
    }


def test_no_cell_of_a_long_table_becomes_an_object_that_stays(tmp_path):
    """As objects 60,000 rows were 27 MB; their codes, times and ratings are 1.6 MB."""
    (tmp_path / "items.csv").write_text(ITEMS)
    rows = 60_000
    rng = np.random.default_rng(0)
    table = {
        "user_id": [f"user {number}" for number in rng.integers(0, 100, rows)],
        "item_id": [f"i{number}" for number in rng.integers(1, 4, rows)],
        "timestamp": 1_500_000_000 + np.arange(rows),
    }
    pq.write_table(pa.table(table), tmp_path / "interactions.parquet")
    settings = DataSettings(source="tables", path=str(tmp_path))
    tables.load(settings)  # imports and caches
    tracemalloc.start()
    source = tables.load(settings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source.interactions) == rows
    assert peak < 100 * rows
