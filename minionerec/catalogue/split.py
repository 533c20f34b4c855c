"""Filters, splits, counts and the leak report: pure functions over arrays, no files.

The filters and the 8:1:1 split by time follow the MiniOneRec report, arXiv:2510.24431 (experimental
setup), and its released preprocessing. A *sample* is every interaction of a user but the first; its
history is what came before it.

Notation: n interactions in global order (time, ties in source order); users and items are int
codes.
"""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd

from minionerec.catalogue.sources import times
from minionerec.catalogue.sources.source import SPLITS
from minionerec.errors import UserError
from minionerec.experiment.settings import DataSettings

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def k_core(users: np.ndarray, items: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """Largest subset in which users have ``min_user`` and items ``min_item`` interactions.

    Repeats count.

    Drops both sides repeatedly until nothing changes; the result does not depend on the order of
    dropping.

    Args:
        users, items: ``(n,)`` codes from 0.

    Returns:
        ``(n,)`` bool mask of what stays.
    """
    keep = np.ones(len(users), dtype=bool)
    while keep.any():
        few_users = np.bincount(users[keep], minlength=users.max() + 1) < min_user
        few_items = np.bincount(items[keep], minlength=items.max() + 1) < min_item
        drop = keep & (few_users[users] | few_items[items])
        if not drop.any():
            break
        keep &= ~drop
    return keep


def in_window(timestamps: np.ndarray, start: str, end: str) -> np.ndarray:
    """``(n,)`` mask of ``start <= day < end`` in UTC; days are YYYY-MM-DD, an empty bound is open.

    >>> in_window(np.array([0, 86_399, 86_400]), "1970-01-01", "1970-01-02")
    array([ True,  True, False])
    """
    mask = np.ones(len(timestamps), dtype=bool)
    if start:
        mask &= timestamps >= first_second(start)
    if end:
        mask &= timestamps < first_second(end)
    return mask


def first_second(day: str) -> int:
    """Unix time at which a day YYYY-MM-DD begins in UTC."""
    return int(datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC).timestamp())


def title_is_kept(title: str, max_words: int) -> bool:
    """Whether a cleaned title is there and has at most ``max_words`` words (0: no limit)."""
    return bool(title) and (max_words == 0 or len(title.split()) <= max_words)


def select(
    users: np.ndarray,
    items: np.ndarray,
    timestamps: np.ndarray,
    ratings: np.ndarray,
    settings: DataSettings,
) -> tuple[np.ndarray, dict[str, int]]:
    """Time window, rating, users too short for a sample, k-core, in this order.

    With leave_one_out a user needs a sample in all three splits.

    Args:
        users, items, timestamps, ratings: ``(n,)`` in any order; the first two are codes from 0.

    Returns:
        ``(n,)`` bool mask of what stays, and what was dropped by reason.

    Raises:
        UserError: nothing stays.
    """
    keep = in_window(timestamps, settings.start, settings.end)
    dropped = {"interactions outside data.start .. data.end": int((~keep).sum())}
    if settings.min_rating > 0:
        good = ratings >= settings.min_rating
        dropped["interactions rated below data.min_rating or not rated"] = int((keep & ~good).sum())
        keep &= good
    shortest = 3 if settings.split == "leave_one_out" else 2
    for reason, least_user, least_item in (
        (f"interactions of users with fewer than {shortest}", shortest, 1),
        (
            f"interactions outside the {settings.k_core}-core",
            max(settings.k_core, shortest),
            settings.k_core,
        ),
    ):
        stays = np.zeros(len(users), dtype=bool)
        stays[keep] = k_core(users[keep], items[keep], least_user, least_item)
        dropped[reason] = int((keep & ~stays).sum())
        keep = stays
    if not keep.any():
        reasons = "; ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        found = f"times run from {times.range_of(timestamps)}; " if len(timestamps) else ""
        raise UserError(
            "data: the filters left no interactions (dropped: "
            f"{reasons or 'none, there were none'}); {found}lower data.k_core or widen data.start "
            ".. data.end"
        )
    return keep, dropped


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
    per_split = {}
    for name in SPLITS:
        rows = target & (splits == name)
        count = int(rows.sum())
        per_split[name] = {
            "samples": count,
            "users": len(np.unique(users[rows])),
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
