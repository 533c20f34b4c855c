"""Filters, splits, counts and the leak check of stage 0, against worked examples and a slow reference.

python -m pytest tests/catalogue/test_data_split.py
"""

from __future__ import annotations

import datetime
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.catalogue import split
from minionerec.catalogue.sources import filters
from minionerec.errors import UserError
from minionerec.experiment.settings import DataSettings

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=40)


def slow_k_core(pairs: list[tuple[int, int]], min_user: int, min_item: int) -> list[int]:
    """Rows of the core, by dropping one offending user or item at a time, the last one found first."""
    rows = list(range(len(pairs)))
    while True:
        users, items = (
            Counter(pairs[row][0] for row in rows),
            Counter(pairs[row][1] for row in rows),
        )
        bad_items = [item for item, count in items.items() if count < min_item]
        bad_users = [user for user, count in users.items() if count < min_user]
        if bad_items:
            rows = [row for row in rows if pairs[row][1] != bad_items[-1]]
        elif bad_users:
            rows = [row for row in rows if pairs[row][0] != bad_users[-1]]
        else:
            return rows


@given(PAIRS, st.integers(0, 4), st.integers(0, 4))
def test_k_core_equals_dropping_one_user_or_item_at_a_time(pairs, min_user, min_item):
    users, items = (np.array([pair[side] for pair in pairs], dtype=int) for side in (0, 1))
    assert np.flatnonzero(filters.k_core(users, items, min_user, min_item)).tolist() == slow_k_core(
        pairs, min_user, min_item
    )


def test_k_core_unravels_a_chain_to_nothing():
    """Users and items 0-0-1-1-2-2: dropping the loose end makes the next pair loose, and so on to
    the last.
    """
    users, items = np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 2])
    assert not filters.k_core(users, items, 2, 2).any()


def test_repeated_purchases_count_towards_the_k_core():
    users, items = np.array([0, 0, 0, 1]), np.array([4, 4, 4, 4])
    assert filters.k_core(users, items, 3, 3).tolist() == [True, True, True, False]


def test_time_window_holds_its_first_day_and_not_its_last():
    noon = [
        int(datetime.datetime(2018, 10, day, 12, tzinfo=datetime.UTC).timestamp())
        for day in (1, 2, 3, 4)
    ]
    assert filters.in_window(np.array(noon), "2018-10-02", "2018-10-04").tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert filters.in_window(np.array(noon), "", "").all()


def test_the_first_second_of_the_end_is_no_longer_in_the_window():
    """``data.end`` is the first day that is not kept; ``data.start`` the first that is."""
    midnight = 1538352000  # 2018-10-01
    around = np.array([midnight - 1, midnight, midnight + 1])
    assert filters.in_window(around, "", "2018-10-01").tolist() == [True, False, False]
    assert filters.in_window(around, "2018-10-01", "").tolist() == [False, True, True]
    settings = DataSettings(end="2018-10-01", k_core=0)
    users = np.array([0, 0, 0])
    times = np.array([midnight - 2, midnight - 1, midnight])
    kept, dropped = filters.select(users, users, times, np.full(3, np.nan), settings)
    assert kept.tolist() == [True, True, False]
    assert dropped["interactions outside data.start .. data.end"] == 1


@pytest.mark.parametrize(
    "title, limit, kept",
    [
        ("one two three", 3, True),
        ("one two three four", 3, False),
        ("one two three four", 0, True),
        ("", 0, False),
        ("", 20, False),
    ],
)
def test_titles_are_kept_up_to_the_word_limit(title, limit, kept):
    assert filters.title_is_kept(title, limit) == kept


def test_leave_one_out_takes_the_last_two_of_every_user():
    users = np.array([0, 1, 0, 1, 0, 1, 1])
    assert split.leave_one_out(users).tolist() == [
        "train",
        "train",
        "valid",
        "train",
        "test",
        "valid",
        "test",
    ]


def test_global_time_cuts_the_targets_and_labels_first_interactions_by_period():
    """Ten targets at times 1..10; 8:1:1 leaves 9 to valid and 10 to test. First interactions lie at
    0, 9 and 10.
    """
    times = np.array([0, *range(1, 9), 9, 9, 10, 10])
    target = np.array([False, *[True] * 8, False, True, True, False])
    assert split.global_time(times, target, [0.8, 0.1, 0.1]).tolist() == ["train"] * 9 + [
        "valid",
        "valid",
        "test",
        "test",
    ]


@pytest.mark.parametrize(
    "times, cut, boundary",
    [
        ([1, 2, 3, 4], 2, 2),  # between two timestamps already
        ([1, 2, 2, 2, 3], 2, 1),  # inside the run 1..4: one to the left, two to the right
        ([1, 2, 2, 2, 3], 3, 4),
        ([1, 2, 2, 3], 2, 1),  # equally far: the earlier end
        ([1, 1, 1, 1], 1, 0),
        ([1, 1, 1, 1], 3, 4),
        ([1, 2], 0, 0),
        ([1, 2], 2, 2),
        ([1, 2], 9, 2),
    ],
)
def test_a_boundary_goes_to_the_nearer_end_of_a_run_of_equal_timestamps(times, cut, boundary):
    assert split.nearest_boundary(np.array(times), cut) == boundary


@given(
    st.lists(st.integers(0, 30), min_size=30, max_size=200),
    st.lists(st.booleans(), min_size=200, max_size=200),
)
def test_no_timestamp_is_in_two_splits_and_time_never_runs_backwards(times, flags):
    times = np.sort(times)
    target = np.array(flags[: len(times)])
    try:
        splits = split.global_time(times, target, [0.8, 0.1, 0.1])
    except UserError:
        distinct = np.unique(times[target])
        assert (
            len(distinct) < 3 or np.bincount(times[target]).max() > 0.05 * target.sum()
        )  # a run swallowed a whole share
        return
    rank = [("train", "valid", "test").index(name) for name in splits]
    assert rank == sorted(rank)
    assert all(len(set(splits[times == time])) == 1 for time in times)


def test_a_split_without_targets_is_an_error_that_gives_the_sizes():
    with pytest.raises(
        UserError,
        match=re.escape(
            "data.split: global_time leaves train 0, valid 0, test 4 targets of 4 with 1 distinct timestamps; every split needs "
            "one: "
            "use leave_one_out, other data.split_ratios, or more data"
        ),
    ):
        split.global_time(np.array([5, 5, 5, 5]), np.ones(4, dtype=bool), [0.3, 0.3, 0.4])


def test_selection_counts_what_each_filter_drops():
    """User 0 buys items 0 and 1 three times; user 1 twice, one of them before the window; user 2
    rates badly.
    """
    day = 86_400
    users = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    items = np.array([0, 1, 0, 1, 0, 1, 0, 1, 1, 0, 1])
    times = np.array([1, 2, 3, 4, 5, 6, -1, 2, 3, 1, 2]) * day
    ratings = np.array([5.0] * 9 + [1.0, np.nan])
    settings = DataSettings(start="1970-01-01", min_rating=3, k_core=3)
    keep, dropped = filters.select(users, items, times, ratings, settings)
    assert keep.tolist() == [True] * 6 + [False] * 5
    assert dropped == {
        "interactions outside data.start .. data.end": 1,
        "interactions rated below data.min_rating or not rated": 2,
        "interactions of users with fewer than 2": 0,
        "interactions outside the 3-core": 2,
    }


def test_leave_one_out_needs_three_interactions_even_without_k_core():
    users, items = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 0, 0])
    settings = DataSettings(split="leave_one_out", k_core=0)
    keep, dropped = filters.select(users, items, np.arange(5), np.full(5, np.nan), settings)
    assert keep.tolist() == [True, True, True, False, False]
    assert dropped["interactions of users with fewer than 3"] == 2


def test_filters_that_leave_nothing_say_what_they_dropped():
    with pytest.raises(
        UserError,
        match=re.escape(
            "data: the filters left no interactions (dropped: 4 interactions outside the 5-core); "
            "times run from 1970-01-01 00:00:00 to 1970-01-01 00:00:03; lower data.k_core or widen data.start .. data.end"
        ),
    ):
        filters.select(
            np.array([0, 0, 1, 1]),
            np.zeros(4, dtype=int),
            np.arange(4),
            np.full(4, np.nan),
            DataSettings(),
        )


def test_statistics_of_a_world_counted_by_hand():
    """Sequences (item, split): user 0 = a:train b:train a:valid c:test; user 1 = b:train b:train c:valid d:test b:test.

    Targets: train b, b(repeat); valid a(repeat), c(cold); test c(cold), d(cold), b(repeat, two places before d).
    """
    users, items = np.array([0, 1, 0, 1, 0, 1, 0, 1, 1]), np.array([0, 1, 1, 1, 0, 2, 2, 3, 1])
    splits = np.array(
        ["train", "train", "train", "train", "valid", "valid", "test", "test", "test"], dtype=object
    )
    stats = split.statistics(users, items, np.arange(10, 19), splits, num_items=5, max_history=2)
    assert (
        stats["users"],
        stats["items"],
        stats["items_with_interactions"],
        stats["interactions"],
    ) == (2, 5, 4, 9)
    assert stats["samples"] == {"train": 2, "valid": 2, "test": 3}
    assert stats["repeat_rate"] == round(3 / 7, 6)
    assert stats["time_range"] == [10, 18]
    assert stats["interactions_per_item"]["0%"] == 0 and stats["interactions_per_item"]["100%"] == 4
    valid, test = stats["splits"]["valid"], stats["splits"]["test"]
    assert (valid["cold_targets"], valid["target_seen_in_train_rate"], valid["repeat_rate"]) == (
        1,
        0.5,
        0.5,
    )
    assert (test["cold_targets"], test["target_seen_in_train_rate"], test["repeat_rate"]) == (
        2,
        round(1 / 3, 6),
        round(1 / 3, 6),
    )
    assert valid["target_in_history_rate"] == 0.5  # a lies two places back
    assert test["target_in_history_rate"] == 0.0  # b lies three places back, the prompt shows two
    assert (
        test["history_length"]["100%"] == 2
        and stats["splits"]["train"]["history_length"]["50%"] == 1
    )


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=40),
    st.integers(1, 5),
)
def test_target_in_history_looks_back_exactly_max_history_items(pairs, max_history):
    users, items = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    sequences, expected = {}, []
    for user, item in pairs:
        history = sequences.setdefault(user, [])
        expected.append(item in history[-max_history:])
        history.append(item)
    assert split.target_in_history(users, items, max_history).tolist() == expected


def test_leak_check_passes_splits_in_order_and_counts_them():
    users, splits = (
        np.array([0, 1, 0, 1]),
        np.array(["train", "valid", "test", "test"], dtype=object),
    )
    assert split.leak_report(users, splits) == {
        "users_checked": 2,
        "interactions_checked": 4,
        "later_split_before_earlier": 0,
    }


def test_a_train_interaction_after_a_held_out_one_of_the_same_user_is_a_leak():
    users = np.array([0, 1, 0, 1])
    splits = np.array(["test", "train", "train", "test"], dtype=object)
    with pytest.raises(
        UserError,
        match="^data.split: 1 interactions come right after one of a later split of the same user",
    ):
        split.leak_report(users, splits)
