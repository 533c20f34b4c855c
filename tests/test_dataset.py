"""Samples: every interaction but a user's first is a target; its split is the target's; histories are cut from the left."""

import pandas as pd

from minionerec.dataset import build_samples, fixed_subset, train_counts


def interactions(rows):
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "split"])


def test_samples_of_two_interleaved_users_worked_by_hand():
    table = interactions([("u", "a", 1, "train"), ("v", "b", 2, "train"), ("u", "b", 3, "train"), ("u", "b", 4, "valid"),
                          ("v", "c", 5, "test"), ("u", "c", 6, "test")])
    splits, sequences = build_samples(table, {"a": 0, "b": 1, "c": 2}, max_history=2)
    assert [tuple(s) for s in splits["train"]] == [("u", (0,), 1, 3)]
    assert [tuple(s) for s in splits["valid"]] == [("u", (0, 1), 1, 4)]
    assert [tuple(s) for s in splits["test"]] == [("v", (1,), 2, 5), ("u", (1, 1), 2, 6)]    # repeats kept, oldest dropped
    assert sequences == [[0, 1], [1]]


def test_a_user_with_one_interaction_has_no_sample_but_counts_as_train_data():
    splits, sequences = build_samples(interactions([("u", "a", 1, "train")]), {"a": 0}, 10)
    assert not any(splits.values()) and sequences == [[0]]
    assert train_counts(sequences, 3).tolist() == [1, 0, 0]


def test_a_fixed_subset_is_the_same_for_the_same_seed_and_keeps_the_order():
    rows = list(range(100))
    assert fixed_subset(rows, 10, 3) == fixed_subset(rows, 10, 3) == sorted(fixed_subset(rows, 10, 3))
    assert fixed_subset(rows, 10, 3) != fixed_subset(rows, 10, 4)
    assert fixed_subset(rows, 0, 3) == fixed_subset(rows, 500, 3) == rows
