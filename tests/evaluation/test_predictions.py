"""Predictions as arrays: the rows that were read, in a tenth of their memory."""

import itertools
import json
import random
import tracemalloc

import numpy as np

from minionerec.catalogue.compact import SampleList, UserLog
from minionerec.evaluation.metrics import row_metrics
from minionerec.evaluation.predictions import Predictions
from minionerec.evaluation.rows import rows_of_samples
from minionerec.evaluation.slices import is_among, pairs_of
from minionerec.evaluation.statistics import compare


def some_rows(count: int, width: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        items = rng.sample(range(500), rng.randint(0, width))
        rows.append(
            {
                "user_id": f"u{number // 3}",
                "target_item_id": str(rng.randrange(500)),
                "item_ids": [f"{item}" for item in items],
                "scores": [rng.random() for _ in items],
            }
        )
    return rows


def test_rows_come_back_as_they_were():
    """One by one, from the end, in slices; also empty lists, and the metrics that follow."""
    rows = some_rows(100, 6)
    kept = Predictions.of(rows)
    assert list(kept) == rows and kept[-1] == rows[-1] and kept[3:9:2] == rows[3:9:2]
    assert [kept[number] for number in range(100)] == rows and len(kept) == 100
    for found, expected in zip(row_metrics(kept), row_metrics(rows), strict=True):
        assert {key: found[key].tolist() for key in found} == {
            key: expected[key].tolist() for key in expected
        }
    assert not Predictions.of([])


def test_a_row_that_is_changed_changes_nothing_that_is_kept():
    kept = Predictions.of(some_rows(3, 4))
    kept[0]["item_ids"].append("more")
    assert "more" not in kept[0]["item_ids"]


def test_two_rankings_compare_as_their_rows_do():
    """In another order too; a user's repeated target is paired by its order of appearance."""
    a, b = some_rows(60, 8, 1), some_rows(60, 8, 2)
    for row, other in zip(a, b, strict=True):
        target = "0" if row["user_id"] < "u3" else "1"
        row["target_item_id"] = other["target_item_id"] = target
        if len(row["item_ids"]) > 3:
            row["item_ids"][2] = target
    shuffled = sorted(b, key=lambda row: row["target_item_id"])
    expected = compare(a, b, samples=100)
    assert compare(Predictions.of(a), Predictions.of(shuffled), samples=100) == expected
    assert expected["HR@10"]["a"] != expected["HR@10"]["b"]


def test_a_row_of_fifty_items_takes_less_than_a_kilobyte():
    lines = [json.dumps(row) for row in some_rows(2000, 50)]
    tracemalloc.start()
    kept = Predictions.of(map(json.loads, lines))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == 2000 and size / 2000 < 700


def test_samples_in_arrays_make_the_rows_that_samples_one_by_one_make():
    """Users whose names sort otherwise than they come, histories that are cut, empty or whole."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 25, 200)
    count = lengths.sum()
    log = UserLog(
        [f"u{number * 7919 % 1000}" for number in range(200)],
        np.repeat(np.arange(200, dtype=np.int32), lengths),
        rng.integers(0, 50, count).astype(np.int32),
        np.arange(count),
        np.cumsum(lengths) - lengths,
        max_history=10,
    )
    samples = SampleList(log, rng.permutation(count)[:300].astype(np.int32))
    lists = rng.integers(0, 50, (300, 5))
    ids = [f"i{number}" for number in range(50)]
    found = rows_of_samples(samples, lists, ids)
    expected = rows_of_samples(list(samples), lists, ids)
    for name in ("users", "targets", "items"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert found.histories.items.tolist() == expected.histories.items.tolist()
    assert found.histories.lengths.tolist() == expected.histories.lengths.tolist()
    assert 0 in found.histories.lengths and 10 in found.histories.lengths
    assert list(samples.histories()) == [list(sample.history) for sample in samples]
    assert found.canonical_order().tolist() == expected.canonical_order().tolist()


def test_pairs_of_neighbours_are_each_there_once_and_are_found_again():
    rng = np.random.default_rng(0)
    for _ in range(100):
        sequences = [rng.integers(0, 9, rng.integers(0, 6)).tolist() for _ in range(4)]
        expected = set()
        for sequence in sequences:
            expected |= {9 * first + then for first, then in itertools.pairwise(sequence)}
        pairs = pairs_of(sequences, 9)
        assert pairs.tolist() == sorted(expected)
        asked = rng.integers(-20, 90, 30)
        assert is_among(pairs, asked).tolist() == [number in expected for number in asked.tolist()]
