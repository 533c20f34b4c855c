"""Splits, counts and the leak report: pure functions over arrays, no files.

The 8:1:1 split by time follows the MiniOneRec report, arXiv:2510.24431 (experimental
setup), and its released preprocessing. A *sample* is every interaction of a user but the first; its
history is what came before it.

Notation: n interactions in global order (time, ties in source order); users and items are int
codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from minionerec.catalogue.arrays import (
    blocks,
    counts,
    first_rows,
    gathered,
    size_of,
    stable_order,
)
from minionerec.catalogue.sources.columns import Ids, is_numbered
from minionerec.catalogue.sources.source import SPLITS
from minionerec.errors import UserError

Splits = pd.Categorical | pd.Series | np.ndarray  # (n,) of "train" | "valid" | "test"
PAIRS = 2_000_000  # interactions whose users and items are compared at a time
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def positions(users: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """``(n,)`` place of each interaction in its user's sequence, from 0.

    Args:
        users: ``(n,)`` codes.
        order: their ``stable_order``, where it is known; here and below.
    """
    if order is None:
        order = stable_order(users)
    sizes = counts(users, size_of(users))
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(users), dtype=np.int32)
    for block in blocks(len(order)):
        rows = order[block]
        of_users = users[rows]
        numbers = np.arange(block.start, block.stop)
        place[rows] = numbers - starts[of_users]
    return place


def is_target(users: np.ndarray) -> np.ndarray:
    """``(n,)`` bool: every interaction of a user but the first is a target.

    This is the only place that says so: a first interaction has no history to be predicted from.

    Args:
        users: ``(n,)`` codes with each user's interactions in the user's order.

    >>> is_target(np.array([0, 1, 0, 0, 1]))
    array([False, False,  True,  True,  True])
    """
    first = first_rows(users, size_of(users))
    target = np.ones(len(users), dtype=bool)
    target[first[first < len(users)]] = False
    return target


def named(rank: np.ndarray) -> pd.Categorical[str]:
    """``(n,)`` of "train" | "valid" | "test", from 0, 1, 2."""
    codes = rank.astype(np.int8, copy=False)
    return pd.Categorical.from_codes(codes, categories=pd.Index(SPLITS))


def leave_one_out(users: np.ndarray) -> pd.Categorical[str]:
    """Each user's last interaction is test, the last but one valid, the others train.

    Args:
        users: ``(n,)`` codes in global order, at least 3 interactions each.

    Returns:
        ``(n,)`` of "train" | "valid" | "test".
    """
    from_end = positions(users[::-1])[::-1]
    return named(2 - np.minimum(from_end, 2))


def global_time(
    timestamps: np.ndarray,
    is_target: np.ndarray,
    ratios: list[float],
) -> pd.Categorical[str]:
    """Cut all targets at the shares ``ratios`` by time.

    A boundary falls between two timestamps, never inside one.

    Where a share ends inside a run of equal timestamps, the nearer end of the run is taken (the
    earlier one on a tie). First interactions, which are nobody's target, get the split of the
    period they fall into.

    Args:
        timestamps: ``(n,)`` seconds in global order.
        is_target: ``(n,)`` bool, false for every user's first interaction.
        ratios: shares of train, valid, test; they add up to 1.

    Returns:
        ``(n,)`` of "train" | "valid" | "test".

    Raises:
        UserError: a split would be empty.
    """
    times = timestamps[is_target]
    times.sort()
    cuts = []
    for share in np.cumsum(ratios)[:2]:
        cuts.append(nearest_boundary(times, round(share * len(times))))
    sizes = np.diff([0, *cuts, len(times)])
    if min(sizes) <= 0:
        counts = ", ".join(f"{name} {size}" for name, size in zip(SPLITS, sizes, strict=True))
        raise UserError(
            f"data.split: global_time leaves {counts} targets of {len(times)} with "
            f"{len(np.unique(times))} distinct timestamps; every split needs one: use "
            "leave_one_out, other data.split_ratios, or more data"
        )
    rank = np.zeros(len(timestamps), dtype=np.int8)
    for start in times[cuts]:
        rank += timestamps >= start
    return named(rank)


def nearest_boundary(times: np.ndarray, cut: int) -> int:
    """The index nearest to ``cut`` at which sorted ``times`` change, or either end.

    >>> times = np.array([1, 2, 2, 2, 3])
    >>> nearest_boundary(times, 2), nearest_boundary(times, 3)
    (1, 4)
    """
    if cut <= 0 or cut >= len(times):
        return min(max(cut, 0), len(times))
    first = int(np.searchsorted(times, times[cut], side="left"))
    last = int(np.searchsorted(times, times[cut], side="right"))
    return first if cut - first <= last - cut else last


def leak_report(
    users: np.ndarray,
    splits: Splits,
    order: np.ndarray | None = None,
) -> dict[str, int]:
    """Check that every user's interactions run train, valid, test.

    As histories only look backwards, no train sample's history or target can then be a valid or
    test interaction, and no valid sample's a test one.

    Args:
        users: ``(n,)`` codes in global order.
        splits: ``(n,)`` of "train" | "valid" | "test".
        order: of the users.

    Returns:
        Counts: users and interactions checked, held-out interactions that precede an earlier split
            (always 0).

    Raises:
        UserError: naming how many, when there are any.
    """
    if order is None:
        order = stable_order(users)
    ranks = rank_of(splits)
    backwards = 0
    for block in blocks(len(order)):
        rows = order[max(block.start - 1, 0) : block.stop]  # with the one before the block
        rank = ranks[rows]
        in_order = users[rows]
        earlier_split = rank[1:] < rank[:-1]
        same_user = in_order[1:] == in_order[:-1]
        is_backwards = earlier_split & same_user
        backwards += int(np.count_nonzero(is_backwards))
    if backwards:
        raise UserError(
            f"data.split: {backwards} interactions come right after one of a later split of "
            "the same user, so held-out targets would be seen in training; every user's split "
            "must run train, valid, test in time"
        )
    return {
        "users_checked": _count(users),
        "interactions_checked": len(users),
        "later_split_before_earlier": 0,
    }


def rank_of(splits: Splits) -> np.ndarray:
    """``(n,)`` int8: 0 for train, 1 for valid, 2 for test."""
    if isinstance(splits, pd.Series) and is_numbered(splits):
        ids = Ids.of(splits)
        ranks = rank_of(np.array(ids.texts.to_pylist(), dtype=object))
        return gathered(ranks, ids.codes)
    return pd.Categorical(splits, categories=list(SPLITS)).codes


def _count(codes: np.ndarray) -> int:
    """How many different codes there are."""
    return int(np.count_nonzero(counts(codes, size_of(codes))))


def statistics(
    users: np.ndarray,
    items: np.ndarray,
    timestamps: np.ndarray,
    splits: Splits,
    num_items: int,
    max_history: int,
    order: np.ndarray | None = None,
) -> dict[str, Any]:
    """Counts that say what a split is made of.

    Args:
        users, items, timestamps, splits: ``(n,)`` in global order.
        num_items: size of the catalogue, items without interactions included.
        max_history: the items before a target that a prompt may show.
        order: of the users.
    """
    if order is None:
        order = stable_order(users)
    rank = rank_of(splits)
    place = positions(users, order)
    target = place > 0
    repeat = repeats(users, items, order)
    shown = target_in_history(users, items, max_history, order)
    trained_items = counts(items, num_items, rank == 0) > 0
    in_train = gathered(trained_items, items)
    per_user = counts(users, size_of(users))
    per_item = counts(items, num_items)
    trained = counts(users, len(per_user), rank == 0) > 0
    per_split = {}
    for number, name in enumerate(SPLITS):
        rows = target & (rank == number)
        count = int(np.count_nonzero(rows))
        present = counts(users, len(per_user), rows) > 0
        per_split[name] = {
            "samples": count,
            "users": int(present.sum()),
            "users_without_train": int((present & ~trained).sum()),
            "repeat_rate": _share(repeat[rows]),
            "target_in_history_rate": _share(shown[rows]),
            "target_seen_in_train_rate": _share(in_train[rows]),
            "cold_targets": int((~in_train[rows]).sum()),
            "history_length": quantiles(np.minimum(place[rows], max_history)),
        }
    return {
        "users": int(np.count_nonzero(per_user)),
        "items": num_items,
        "items_with_interactions": int(np.count_nonzero(per_item)),
        "interactions": len(users),
        "samples": {name: per_split[name]["samples"] for name in SPLITS},
        "interactions_per_user": quantiles(per_user[per_user > 0]),
        "interactions_per_item": quantiles(per_item),
        "repeat_rate": _share(repeat[target]),
        "splits": per_split,
        "time_range": [int(timestamps.min()), int(timestamps.max())],
    }


def repeats(
    users: np.ndarray,
    items: np.ndarray,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """``(n,)`` bool: the user had the item before, however long ago.

    Users are looked at a part at a time: a table of all pairs is larger than what it is made from.
    """
    if order is None:
        order = stable_order(users)
    sizes = counts(users, size_of(users))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found = np.zeros(len(users), dtype=bool)
    start = 0
    while start < len(users):
        # Up to whole users: the last of them ends at or after the block
        wanted = min(start + PAIRS, len(users))
        user = np.searchsorted(starts, wanted)
        end = int(starts[user])
        rows = order[start:end]
        pairs = users[rows].astype(np.int64) << 32 | items[rows]
        found[rows] = pd.Series(pairs).duplicated().to_numpy()
        start = end
    return found


def target_in_history(
    users: np.ndarray,
    items: np.ndarray,
    max_history: int,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """``(n,)`` bool: the item is among the user's ``max_history`` ones before this."""
    if order is None:
        order = stable_order(users)
    result = np.zeros(len(users), dtype=bool)
    for block in blocks(len(order)):
        before = min(max_history, block.start)
        rows = order[block.start - before : block.stop]  # with those before the block
        of_users = users[rows]
        of_items = items[rows]
        found = np.zeros(len(rows), dtype=bool)
        for lag in range(1, min(max_history, len(rows) - 1) + 1):
            same_user = of_users[lag:] == of_users[:-lag]
            same_item = of_items[lag:] == of_items[:-lag]
            found[lag:] |= same_user & same_item
        result[rows[before:]] = found[before:]
    return result


def quantiles(values: np.ndarray) -> dict[str, float]:
    """``{"0%": .., "25%": .., "50%": .., "75%": .., "90%": .., "100%": ..}``.

    Empty for no values.
    """
    if not len(values):
        return {}
    found = np.quantile(values, QUANTILES)
    return {f"{share:.0%}": float(value) for share, value in zip(QUANTILES, found, strict=True)}


def _share(flags: np.ndarray) -> float:
    return round(float(flags.mean()), 6) if len(flags) else 0.0
