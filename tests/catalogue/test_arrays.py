"""Long columns in blocks: whatever the block, the same as all rows at once; and no second copy.

python -m pytest tests/catalogue/test_arrays.py
"""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.catalogue import arrays, mapped, prepared, split
from minionerec.catalogue.sources import columns, filters, growing, readers, tables
from minionerec.catalogue.sources.columns import Ids, taken
from minionerec.experiment.settings import DataSettings, Experiment

CODES = st.lists(st.integers(0, 5), max_size=30)
BLOCKS = (1, 3, 1000)


@pytest.fixture(params=BLOCKS)
def block(request, monkeypatch):
    """Every number of rows that are looked at together gives the same."""
    monkeypatch.setattr(arrays, "BLOCK_ROWS", request.param)


def random_log(seed, rows=60):
    """Users, items, times that rise, and splits of some interactions."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 8, rows).astype(np.int32)
    items = rng.integers(0, 6, rows).astype(np.int32)
    times = np.sort(rng.integers(0, 40, rows))
    return users, items, times, split.named(np.sort(rng.integers(0, 3, rows)))


@given(CODES, st.sampled_from(BLOCKS))
def test_codes_by_first_rows_are_those_of_pandas(codes, rows):
    array = np.array(codes, dtype=np.int32)
    expected, used = pd.factorize(array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "BLOCK_ROWS", rows)
        found, of_found = arrays.by_first_rows(array, 6)
    assert found.dtype == np.int32
    assert (found.tolist(), of_found.tolist()) == (expected.tolist(), used.tolist())


@given(CODES, st.sampled_from(BLOCKS), st.randoms())
def test_counts_and_gathered_rows_are_those_of_all_rows_at_once(codes, rows, random):
    array = np.array(codes, dtype=np.int32)
    keep = np.array([random.random() < 0.5 for _ in codes], dtype=bool)
    order = np.array(random.sample(range(len(codes)), len(codes)), dtype=np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "BLOCK_ROWS", rows)
        assert arrays.counts(array, 7).tolist() == [codes.count(code) for code in range(7)]
        kept = array[keep].tolist()
        assert arrays.counts(array, 7, keep).tolist() == [kept.count(code) for code in range(7)]
        assert arrays.gathered(array, order).tolist() == [codes[row] for row in order]
        assert arrays.gathered(array, keep).tolist() == kept


def test_what_is_counted_of_a_split_does_not_depend_on_the_block(block):
    """Pairs of neighbours and histories reach over the ends of blocks: a slow loop is compared."""
    for seed in range(5):
        users, items, times, splits = random_log(seed)
        found = split.statistics(users, items, times, splits, 6, max_history=2)
        before = {user: [] for user in range(8)}
        shown = {name: [] for name in ("train", "valid", "test")}
        lengths = {name: [] for name in shown}
        for user, item, name in zip(users.tolist(), items.tolist(), splits, strict=True):
            history = before[user]
            if history:
                shown[name].append(item in history[-2:])
                lengths[name].append(min(len(history), 2))
            history.append(item)
        for name, row in found["splits"].items():
            assert row["target_in_history_rate"] == round(float(np.mean(shown[name])), 6)
            assert row["samples"] == len(shown[name])
            assert row["history_length"]["50%"] == np.median(lengths[name])
        assert split.leak_report(users, splits)["interactions_checked"] == 60


def test_a_split_that_runs_backwards_is_seen_over_the_end_of_a_block(block):
    users = np.array([0, 1, 0, 1, 0], dtype=np.int32)
    splits = split.named(np.array([0, 1, 1, 0, 0]))
    with pytest.raises(split.UserError, match="^data.split: 2 interactions come right after"):
        split.leak_report(users, splits)


def test_the_core_of_some_interactions_is_that_of_a_table_without_the_others(block):
    for seed in range(5):
        users, items, _, _ = random_log(seed)
        keep = np.random.default_rng(seed).random(60) < 0.7
        found = filters.k_core(users, items, 3, 5, keep)
        expected = filters.k_core(users[keep], items[keep], 3, 5)
        assert found[keep].tolist() == expected.tolist()
        assert not found[~keep].any()


def test_arrays_for_later_stages_do_not_depend_on_the_block(block):
    users, items, times, splits = random_log(3)
    codes, found = pd.factorize(users)
    ids = pa.array([f"u{user}" for user in found])
    made = mapped.arrays_of(codes, ids, items, times, splits.codes)
    rows = sorted(range(60), key=lambda row: (codes[row], row))
    assert made.users.tolist() == [codes[row] for row in rows]
    assert made.items.tolist() == [items[row] for row in rows]
    assert made.timestamps.tolist() == [times[row] for row in rows]
    assert made.starts.tolist() == [codes[rows].tolist().index(user) for user in range(len(ids))]
    train = [row for row in rows if splits[row] == "train"]
    first = {user: np.flatnonzero(codes == user)[0] for user in range(len(ids))}
    targets = [rows.index(row) for row in range(60) if row in train and row != first[codes[row]]]
    assert made.train.tolist() == targets
    by_first = sorted(train, key=lambda row: (min(r for r in train if codes[r] == codes[row]), row))
    assert made.train_items.tolist() == [items[row] for row in by_first]


# ------------------------------------------------------------------------------ columns that grow


def cut(values, size):
    """A column in batches of a size, each with texts of its own if it is numbered."""
    return [values.slice(start, size) for start in range(0, len(values), size)]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("merged", [0, 3, 1000])
@pytest.mark.parametrize(
    "values",
    [
        pa.array([5, None, 2**62, -3, 0], pa.int64()),
        pa.array([0.5, None, float("nan"), 1.0], pa.float64()),
        pa.array([1, None, 250], pa.uint8()),
        pa.array([None, datetime(2018, 10, 1, 2, 3, 4, 999_000)], pa.timestamp("us")),
        pa.array([datetime(2018, 10, 1, tzinfo=UTC)] * 3, pa.timestamp("ms", "UTC")),
        pa.array(["b", "a", None, "b", "c", "a"]),
        pa.array([None, None], pa.string()),
        pa.array([["a"], None, []], pa.list_(pa.string())),
        pa.array([True, None, False]),
        pa.array([], pa.int64()),
        pa.array([], pa.string()),
    ],
)
def test_a_column_that_grows_ends_as_the_column_it_was(values, size, merged, monkeypatch):
    monkeypatch.setattr(growing, "LEAST_MERGED", merged)
    kind = values.type
    batches = cut(values, size)
    if pa.types.is_string(kind):
        kind = pa.dictionary(pa.int32(), pa.string())
        batches = [batch.dictionary_encode() for batch in batches]
    column = growing.column_of(kind, len(values))
    for batch in batches:
        column.append(batch)
    whole = column.whole()
    assert whole.type == kind
    assert repr(whole.to_pylist()) == repr(values.to_pylist())  # NaN is none, and is itself


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_a_parquet_file_reads_alike_whatever_is_read_at_a_time(tmp_path, monkeypatch, rows):
    """Row groups of four; ids in the order of their first rows, times and ratings as they stand."""
    monkeypatch.setattr(readers, "BATCH_ROWS", rows)
    monkeypatch.setattr(growing, "LEAST_MERGED", 2)
    (tmp_path / "items.csv").write_text("item_id,title\ni1,One\ni2,Two\ni3,Three\n")
    table = {
        "user_id": ["u2", "u1", "u2", "u3", "u1", "u4", "u2"],
        "item_id": ["i3", "i1", "i3", "i2", "i1", "i2", "i3"],
        "timestamp": [1_500_000_000 + row for row in range(7)],
        "rating": [1.0, None, 3.0, None, 5.0, 2.0, 4.5],
    }
    pq.write_table(pa.table(table), tmp_path / "interactions.parquet", row_group_size=4)
    frame = tables.load(DataSettings(source="tables", path=str(tmp_path))).interactions
    for name in ("user_id", "item_id", "timestamp"):
        assert frame[name].tolist() == table[name]
    np.testing.assert_array_equal(frame["rating"], [1, np.nan, 3, np.nan, 5, 2, 4.5])
    assert Ids.of(frame["user_id"]).texts.to_pylist() == ["u2", "u1", "u3", "u4"]


# ------------------------------------------------------------------------------------------ frames


def test_rows_are_taken_from_a_frame_column_by_column(block):
    ids = Ids(pa.array(["b", "a"], pa.large_string()), np.array([1, 0, 1], dtype=np.int32))
    contents = {"u": ids.column(), "t": [3, 1, 2], "r": [0.5, np.nan, 1.0], "s": ["x", "", "z"]}
    for rows in (np.array([2, 0], dtype=np.int32), np.array([False, True, True])):
        frame = pd.DataFrame(contents)
        expected = frame.iloc[rows] if rows.dtype != bool else frame[rows]
        found = taken(frame, rows)
        assert list(frame) == []
        for name in contents:
            assert repr(found[name].tolist()) == repr(expected[name].tolist())


def test_ids_of_a_frame_are_known_by_their_texts():
    """As numbers of texts, and as texts; of texts that are there, some are not known."""
    ids = Ids.merged(["b", "a", "b", "x"], np.array([0, 1, 2, 3, 0], dtype=np.int32))
    assert (ids.texts.to_pylist(), list(ids)) == (["b", "a", "x"], ["b", "a", "b", "x", "b"])
    known = pd.Series(["a", "b"])
    for column in (ids.column(), pd.Series(list(ids))):
        assert columns.places_of(column, known).tolist() == [1, 0, 1, -1, 1]
        assert columns.members(column, known).tolist() == [True, True, True, False, True]
        assert columns.codes_of(column).tolist() == [0, 1, 0, 2, 0]


# ------------------------------------------------------------------------------------------ memory


def test_stage_0_holds_one_copy_of_the_columns_and_little_more(tmp_path, monkeypatch):
    """A row is 25 bytes of ids, time, rating and split; sorting and counting add what they need.

    Before, two copies of all columns and int64 orders made more than 100 bytes.
    """
    monkeypatch.setattr(arrays, "BLOCK_ROWS", 2**12)
    monkeypatch.setattr(readers, "BATCH_ROWS", 2**12)
    monkeypatch.setattr(split, "PAIRS", 2**12)
    monkeypatch.setattr(prepared, "ROW_GROUP", 2**12)
    rows = 200_000
    rng = np.random.default_rng(0)
    titles = {"item_id": [f"i{number}" for number in range(50)], "title": ["Title"] * 50}
    pq.write_table(pa.table(titles), tmp_path / "items.parquet")
    table = {
        "user_id": [f"u{number}" for number in rng.integers(0, 500, rows)],
        "item_id": [f"i{number}" for number in rng.integers(0, 50, rows)],
        "timestamp": 1_500_000_000 + rng.integers(0, 10**7, rows),
        "rating": rng.integers(1, 6, rows).astype(float),
    }
    pq.write_table(pa.table(table), tmp_path / "interactions.parquet")
    del table
    data = DataSettings(source="tables", path=str(tmp_path), min_rating=2)
    experiment = Experiment(data=data)

    def peak_of_stage(folder):
        folder.mkdir()
        tracemalloc.start()
        source = prepared.load_source(experiment)
        items, interactions, dropped = prepared.apply_filters(source, data)
        source = source._replace(items=items)
        interactions = prepared.assign_splits(interactions, data, own=False)
        stats = prepared.describe(items, interactions, dropped, source, data, own=False)
        prepared.write(folder, items, interactions, stats, None)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    peak_of_stage(tmp_path / "first")  # imports and caches
    peak = peak_of_stage(tmp_path / "second") / rows
    assert peak < 48
