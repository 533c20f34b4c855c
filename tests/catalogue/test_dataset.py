"""Samples: every interaction but a user's first is a target; its split is the target's; histories
are cut from the left.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.catalogue import prepared, split
from minionerec.catalogue.compact import Sample
from minionerec.catalogue.samples import (
    build_samples,
    fixed_subset,
    load_samples,
    seen_items,
    train_counts,
    window_samples,
    windows,
)
from minionerec.experiment.settings import DataSettings


def interactions(rows):
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "split"])


def test_samples_of_two_interleaved_users_worked_by_hand():
    table = interactions(
        [
            ("u", "a", 1, "train"),
            ("v", "b", 2, "train"),
            ("u", "b", 3, "train"),
            ("u", "b", 4, "valid"),
            ("v", "c", 5, "test"),
            ("u", "c", 6, "test"),
        ]
    )
    splits, sequences = build_samples(table, {"a": 0, "b": 1, "c": 2}, max_history=2)
    assert [tuple(s) for s in splits["train"]] == [("u", (0,), 1, 3)]
    assert [tuple(s) for s in splits["valid"]] == [("u", (0, 1), 1, 4)]
    assert [tuple(s) for s in splits["test"]] == [
        ("v", (1,), 2, 5),
        ("u", (1, 1), 2, 6),
    ]  # repeats kept, oldest dropped
    assert sequences == [[0, 1], [1]]


@pytest.mark.parametrize("seed", range(20))
def test_samples_are_those_of_one_row_after_the_other(seed):
    """Users interleaved, some without train rows; a split of samples reads like a list."""
    rng = np.random.default_rng(seed)
    rows = []
    for time in range(int(rng.integers(1, 60))):
        split_name = ("train", "valid", "test")[int(rng.integers(3))]
        rows.append((f"u{rng.integers(9)}", f"i{rng.integers(5)}", time, split_name))
    longest = int(rng.integers(1, 5))
    before, train = {}, {}
    expected = {"train": [], "valid": [], "test": []}
    for user, item, time, split_name in rows:
        seen = before.setdefault(user, [])
        if seen:
            sample = Sample(user, tuple(seen[-longest:]), int(item[1:]), time)
            expected[split_name].append(sample)
        seen.append(int(item[1:]))
        if split_name == "train":
            train.setdefault(user, []).append(int(item[1:]))
    index = {f"i{n}": n for n in range(5)}
    splits, sequences = build_samples(interactions(rows), index, longest)
    assert splits == expected and {name: len(found) for name, found in splits.items()} == {
        name: len(found) for name, found in expected.items()
    }
    assert sequences == list(train.values())
    for name, found in splits.items():
        assert found[1::2] == expected[name][1::2]
        assert [found[n] for n in range(-len(found), len(found))] == expected[name] * 2
    assert sequences[::2] == list(train.values())[::2]
    assert [type(value) for value in next(iter(splits["train"]), Sample("", (), 0, 0))] == [
        str,
        tuple,
        int,
        int,
    ]


def test_what_a_user_had_before_is_all_of_it_in_the_order_of_the_samples(tmp_path):
    table = interactions(
        [
            ("u", "a", 1, "train"),
            ("v", "b", 2, "train"),
            ("u", "b", 3, "train"),
            ("u", "b", 4, "valid"),
            ("v", "c", 5, "test"),
            ("w", "a", 5, "test"),
            ("u", "c", 6, "test"),
        ]
    )
    table.to_parquet(tmp_path / "interactions.parquet")
    pd.DataFrame({"item_id": list("abc"), "title": ""}).to_parquet(tmp_path / "items.parquet")
    splits = load_samples(tmp_path, 1).splits
    assert seen_items(splits["test"]) == [[1], [0, 1, 1]]
    assert seen_items(splits["valid"]) == [[0, 1]]
    assert [sample.user_id for sample in splits["test"]] == ["v", "u"]
    with pytest.raises(TypeError, match="got a list of samples, expected a SampleList"):
        seen_items(list(splits["test"]))


def test_a_user_with_one_interaction_has_no_sample_but_counts_as_train_data():
    splits, sequences = build_samples(interactions([("u", "a", 1, "train")]), {"a": 0}, 10)
    assert not any(splits.values()) and sequences == [[0]]
    assert train_counts(sequences, 3).tolist() == [1, 0, 0]


@pytest.mark.parametrize("how", ["global_time", "leave_one_out", "own"])
def test_a_first_interaction_is_nobodys_target_from_stage_0_to_the_samples(tmp_path, how):
    """Counted independently: as many targets as interactions, less one for every user."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(12):
        for step in range(rng.integers(3, 9)):
            split_name = ("train", "train", "valid", "test")[min(step, 3)]
            rows.append((f"u{user}", f"i{rng.integers(6)}", int(rng.integers(1000)), split_name))
    table = interactions(rows).sort_values("timestamp", kind="stable")
    if how == "own":  # each user's splits in order
        table["split"] = table.groupby("user_id")["split"].transform(
            lambda names: sorted(names, key=("train", "valid", "test").index)
        )
    settings = DataSettings(source="tables", path="shop", split=how)
    table = prepared.assign_splits(table, settings, own=how == "own")
    firsts = ~table["user_id"].duplicated()
    expected = table[~firsts]["split"].value_counts().to_dict()
    items = [f"i{n}" for n in range(6)]
    splits, _ = build_samples(table, {item: n for n, item in enumerate(items)}, 10)
    assert {name: len(found) for name, found in splits.items()} == expected
    assert sum(expected.values()) == len(rows) - 12
    codes = [pd.factorize(table[name])[0] for name in ("user_id", "item_id")]
    counts = split.statistics(
        *codes, table["timestamp"].to_numpy(), table["split"].to_numpy(object), 6, 10
    )
    assert counts["samples"] == expected
    table.to_parquet(tmp_path / "interactions.parquet")
    pd.DataFrame({"item_id": items, "title": ""}).to_parquet(tmp_path / "items.parquet")
    for name in expected:
        assert len(seen_items(splits[name])) == expected[name]
        assert all(len(sample.history) for sample in splits[name])


def test_the_first_cut_of_a_long_sequence_is_random():
    """Else a user's items would meet the same neighbours in every epoch, and some no longer history
    ever.
    """
    sequence = list(range(40))
    firsts = set()
    for seed in range(200):
        cut = windows([sequence], 10, np.random.default_rng(seed))
        firsts.add(len(next(row for row in cut if row[0] == 0)) - 1)
    assert firsts == set(range(1, 11))


def test_a_fixed_subset_is_the_same_for_the_same_seed_and_keeps_the_order():
    rows = list(range(100))
    assert (
        fixed_subset(rows, 10, 3) == fixed_subset(rows, 10, 3) == sorted(fixed_subset(rows, 10, 3))
    )
    assert fixed_subset(rows, 10, 3) != fixed_subset(rows, 10, 4)
    assert fixed_subset(rows, 0, 3) == fixed_subset(rows, 500, 3) == rows


@given(st.lists(st.integers(1, 40), max_size=6), st.integers(1, 7), st.integers(0, 99))
def test_every_item_but_the_first_is_a_target_exactly_once(lengths, max_history, seed):
    sequences = [[(user, step) for step in range(length)] for user, length in enumerate(lengths)]
    cut = windows(sequences, max_history, np.random.default_rng(seed))
    assert all(2 <= len(row) <= max_history + 1 for row in cut)
    assert sorted(item for row in cut for item in row[1:]) == sorted(
        item for sequence in sequences for item in sequence[1:]
    )
    assert all(
        later == (user, step + 1)
        for row in cut
        for (user, step), later in zip(row, row[1:], strict=False)
    )


def test_window_samples_have_every_target_once_with_what_its_window_holds_before_it():
    """One user with seven items, windows of at most four: whatever the first cut, items 1 to 6 are
    targets, and histories grow from 1.
    """
    for seed in range(5):
        found = window_samples([[0, 1, 2, 3, 4, 5, 6], [9]], 3, seed)
        assert sorted(sample.target for sample in found) == [1, 2, 3, 4, 5, 6]
        for sample in found:
            assert sample.history == tuple(
                range(sample.target - len(sample.history), sample.target)
            )
            assert 1 <= len(sample.history) == sample.timestamp <= 3
    assert [tuple(sample) for sample in window_samples([[4, 5, 6]], 10, 0)] == [
        ("window 0", (4,), 5, 1),
        ("window 0", (4, 5), 6, 2),
    ]
