"""``places.find_target`` for all rows at once. Shapes: B rows of a block, W items of a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minionerec.evaluation.rows import NOTHING, ROWS_AT_ONCE, RankedRows
from minionerec.rankers.places import NOWHERE, Place


class RowPlaces(NamedTuple):
    """Where each row's list holds its target: rows have few different places."""

    distinct: list[Place]
    of_row: np.ndarray  # (n,) number of the row's place


def find_targets(rows: RankedRows, groups: np.ndarray | None) -> RowPlaces:
    """The place of every row's target.

    Args:
        rows: lists and targets.
        groups: number of each item's tie group, items that share a SID having the same; None: no
            two are tied.
    """
    found = []
    for start in range(
        0,
        len(rows),
        ROWS_AT_ONCE,
    ):
        block = slice(start, start + ROWS_AT_ONCE)
        items = without_repeats(rows.items[block])
        targets = rows.targets[block, None]  # (B, 1)
        found.append(
            _places(
                items,
                targets,
                groups,
            )
        )
    # A place is one number, whose digits to this base are its three, plus 1
    base = rows.items.shape[1] + 2
    digits = (np.concatenate(found) + 1) @ np.array([base * base, base, 1])  # (n,)
    distinct, of_row = np.unique(digits, return_inverse=True)
    places = []
    for number in distinct.tolist():
        first = number // (base * base) - 1
        size = number // base % base - 1
        sid_rank = number % base - 1
        if sid_rank < 0:
            places.append(NOWHERE)
        elif first < 0:
            places.append(
                Place(
                    None,
                    None,
                    sid_rank,
                )
            )
        else:
            places.append(
                Place(
                    first,
                    size,
                    sid_rank,
                )
            )
    return RowPlaces(places, of_row)


def tie_groups(item_ids: Sequence[str], sid_of: Mapping[str, Sequence[int]]) -> np.ndarray:
    """A number for every item; items that share a SID have the same, one without has its own.

    >>> tie_groups(["a", "b", "c", "d"], {"a": (0, 1), "b": (2, 3), "c": (0, 1)}).tolist()
    [0, 1, 0, 2]
    """
    numbers: dict[object, int] = {}
    groups = np.empty(len(item_ids), np.int64)
    for place, item in enumerate(item_ids):
        sid = tuple(sid_of[item]) if item in sid_of else item
        groups[place] = numbers.setdefault(sid, len(numbers))
    return groups


def repeats(items: np.ndarray) -> np.ndarray:
    """``(B,)`` how many items of each list stand in it already."""
    ordered = np.sort(items, axis=1)
    again = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NOTHING)
    return again.sum(axis=1)


def without_repeats(items: np.ndarray) -> np.ndarray:
    """The lists ``(B, W)`` with each item only where it stands first."""
    bad = np.flatnonzero(repeats(items))
    if not len(bad):
        return items
    kept = items.copy()
    for row in bad:
        once = [item for item in dict.fromkeys(items[row].tolist()) if item != NOTHING]
        kept[row] = NOTHING
        kept[row, : len(once)] = once
    return kept


def _places(
    items: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray | None,
) -> np.ndarray:
    """``(B, 3)`` first place of the target's tie group, its size, its rank in SIDs; -1 for None."""
    width = items.shape[1]
    place = np.arange(width)
    is_target = items == targets  # (B, W)
    if groups is None:
        alike = is_target
        rank = alike.argmax(axis=1)
    else:
        of_item = np.where(
            items == NOTHING,
            NOTHING,
            groups[items],
        )
        alike = of_item == groups[targets]
        rank = _distinct_before(of_item, alike.argmax(axis=1))
    listed = is_target.any(axis=1)
    at = is_target.argmax(axis=1)[:, None]  # (B, 1)
    # The run of items with the target's SID around it ends at the nearest others on both sides
    before = np.where(
        ~alike & (place < at),
        place,
        -1,
    ).max(axis=1, initial=-1)
    after = np.where(
        ~alike & (place > at),
        place,
        width,
    ).min(axis=1, initial=width)
    first = np.where(
        listed,
        before + 1,
        -1,
    )
    size = np.where(
        listed,
        after - before - 1,
        -1,
    )
    return np.stack(
        [
            first,
            size,
            np.where(
                alike.any(axis=1),
                rank,
                -1,
            ),
        ],
        axis=1,
    )


def _distinct_before(groups: np.ndarray, at: np.ndarray) -> np.ndarray:
    """``(B,)`` how many different groups stand before a place in each row of ``(B, W)``."""
    order = np.argsort(
        groups,
        axis=1,
        kind="stable",
    )
    ordered = np.take_along_axis(
        groups,
        order,
        axis=1,
    )
    is_new = np.ones(groups.shape, bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    is_first = np.zeros(groups.shape, bool)  # of its group in the row
    np.put_along_axis(
        is_first,
        order,
        is_new,
        axis=1,
    )
    return (is_first & (np.arange(groups.shape[1]) < at[:, None])).sum(axis=1)
