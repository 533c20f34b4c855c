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

from minionerec.catalogue.sources.source import SPLITS
from minionerec.errors import UserError

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def positions(users: np.ndarray) -> np.ndarray:
    """``(n,)`` place of each interaction in its user's sequence, from 0."""
    return pd.Series(users).groupby(users, sort=False).cumcount().to_numpy()


def is_target(users: np.ndarray) -> np.ndarray:
    """``(n,)`` bool: every interaction of a user but the first is a target.

    This is the only place that says so: a first interaction has no history to be predicted from.

    Args:
        users: ``(n,)`` codes with each user's interactions in the user's order.

    >>> is_target(np.array([0, 1, 0, 0, 1]))
    array([False, False,  True,  True,  True])
    """
    return positions(users) > 0


def leave_one_out(users: np.ndarray) -> np.ndarray:
    """Each user's last interaction is test, the last but one valid, the others train.

    Args:
        users: ``(n,)`` codes in global order, at least 3 interactions each.

    Returns:
        ``(n,)`` of "train" | "valid" | "test".
    """
    from_end = positions(users[::-1])[::-1]
    return np.array(SPLITS, dtype=object)[2 - np.minimum(from_end, 2)]


def global_time(timestamps: np.ndarray, is_target: np.ndarray, ratios: list[float]) -> np.ndarray:
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
    times = np.sort(timestamps[is_target])
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
    period = np.searchsorted(times[cuts], timestamps, side="right")
    return np.array(SPLITS, dtype=object)[period]


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


def leak_report(users: np.ndarray, splits: np.ndarray) -> dict[str, int]:
    """Check that every user's interactions run train, valid, test.

    As histories only look backwards, no train sample's history or target can then be a valid or
    test interaction, and no valid sample's a test one.

    Args:
        users: ``(n,)`` codes in global order.
        splits: ``(n,)`` of "train" | "valid" | "test".

    Returns:
        Counts: users and interactions checked, held-out interactions that precede an earlier split
            (always 0).

    Raises:
        UserError: naming how many, when there are any.
    """
    order = np.argsort(users, kind="stable")
    rank = _rank(splits[order])
    backwards = (np.diff(rank) < 0) & (np.diff(users[order]) == 0)
    if backwards.any():
        raise UserError(
            f"data.split: {backwards.sum()} interactions come right after one of a later split of "
            "the same user, so held-out targets would be seen in training; every user's split "
            "must run train, valid, test in time"
        )
    return {
        "users_checked": len(np.unique(users)),
        "interactions_checked": len(users),
        "later_split_before_earlier": 0,
    }


def _rank(splits: np.ndarray) -> np.ndarray:
    """``(n,)`` 0 for train, 1 for valid, 2 for test."""
    rank = np.zeros(len(splits), dtype=np.int64)
    for place, name in enumerate(SPLITS):
        rank[splits == name] = place
    return rank


def statistics(
    users: np.ndarray,
    items: np.ndarray,
    timestamps: np.ndarray,
    splits: np.ndarray,
    num_items: int,
    max_history: int,
) -> dict[str, Any]:
    """Counts that say what a split is made of.

    Args:
        users, items, timestamps, splits: ``(n,)`` in global order.
        num_items: size of the catalogue, items without interactions included.
        max_history: the items before a target that a prompt may show.
    """
    place = positions(users)
    target = is_target(users)
    repeat = pd.DataFrame({"user": users, "item": items}).duplicated().to_numpy()
    shown = target_in_history(users, items, max_history)
    in_train = np.isin(items, np.unique(items[splits == "train"]))
    trained = np.unique(users[splits == "train"])
    per_split = {}
    for name in SPLITS:
        rows = target & (splits == name)
        count = int(rows.sum())
        per_split[name] = {
            "samples": count,
            "users": len(np.unique(users[rows])),
            "users_without_train": int((~np.isin(np.unique(users[rows]), trained)).sum()),
            "repeat_rate": _share(repeat[rows]),
            "target_in_history_rate": _share(shown[rows]),
            "target_seen_in_train_rate": _share(in_train[rows]),
            "cold_targets": int((~in_train[rows]).sum()),
            "history_length": quantiles(np.minimum(place[rows], max_history)),
        }
    return {
        "users": len(np.unique(users)),
        "items": num_items,
        "items_with_interactions": len(np.unique(items)),
        "interactions": len(users),
        "samples": {name: per_split[name]["samples"] for name in SPLITS},
        "interactions_per_user": quantiles(np.bincount(np.unique(users, return_inverse=True)[1])),
        "interactions_per_item": quantiles(np.bincount(items, minlength=num_items)),
        "repeat_rate": _share(repeat[target]),
        "splits": per_split,
        "time_range": [int(timestamps.min()), int(timestamps.max())],
    }


def target_in_history(users: np.ndarray, items: np.ndarray, max_history: int) -> np.ndarray:
    """``(n,)`` bool: the item is among the user's ``max_history`` ones before this."""
    order = np.argsort(users, kind="stable")
    sorted_users = users[order]
    sorted_items = items[order]
    found = np.zeros(len(users), dtype=bool)
    for lag in range(1, min(max_history, len(users) - 1) + 1):
        same_user = sorted_users[lag:] == sorted_users[:-lag]
        same_item = sorted_items[lag:] == sorted_items[:-lag]
        found[lag:] |= same_user & same_item
    result = np.zeros(len(users), dtype=bool)
    result[order] = found
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
