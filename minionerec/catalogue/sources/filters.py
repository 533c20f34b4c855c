"""The filters of the MiniOneRec report, arXiv:2510.24431 (experimental setup): title, time, k-core.

Pure functions over arrays; users and items are int codes.
"""

from __future__ import annotations

import datetime

import numpy as np

from minionerec.catalogue.arrays import blocks, counts, size_of
from minionerec.catalogue.sources import times
from minionerec.errors import UserError
from minionerec.experiment.settings import DataSettings


def k_core(
    users: np.ndarray,
    items: np.ndarray,
    min_user: int,
    min_item: int,
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """Largest subset in which users have ``min_user`` and items ``min_item`` interactions.

    Repeats count.

    Drops both sides repeatedly until nothing changes; the result does not depend on the order of
    dropping.

    Args:
        users, items: ``(n,)`` codes from 0.
        keep: ``(n,)`` bool mask of the interactions that are there at all; by default all.

    Returns:
        ``(n,)`` bool mask of what stays.
    """
    keep = np.ones(len(users), dtype=bool) if keep is None else keep.copy()
    num_users = size_of(users)
    num_items = size_of(items)
    while keep.any():
        few_users = counts(users, num_users, keep) < min_user
        few_items = counts(items, num_items, keep) < min_item
        before = np.count_nonzero(keep)
        for rows in blocks(len(keep)):
            keep[rows] &= ~(few_users[users[rows]] | few_items[items[rows]])
        if np.count_nonzero(keep) == before:
            break
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
        stays = k_core(users, items, least_user, least_item, keep)
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
