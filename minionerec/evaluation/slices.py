"""Metrics of parts of the test rows: by the target's popularity, by the history.

``pair_in_train`` parts what can be remembered from what cannot: whether some train sequence goes
from the row's last item straight to its target. Counting rules live of the rows where one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from minionerec.catalogue.compact import IntLists
from minionerec.evaluation.metrics import Values, mean
from minionerec.evaluation.rows import Histories

# Items in the history, inclusive bounds.
HISTORY_BUCKETS = ((1, 1), (2, 4), (5, 9), (10, math.inf))
SHOWN = ("HR@10", "NDCG@10")
THIRDS = ("head", "mid", "tail")
COLD = "cold"

Slices = dict[str, dict[str, dict[str, float]]]  # kind -> name -> metrics and count
Place = tuple[str, str, str]  # kind, name, metric
Column = tuple[Place, Callable[[], np.ndarray]]
Intervals = dict[str, dict[str, dict[str, list[float]]]]  # kind -> name -> key -> [low, high]
Pairs = np.ndarray  # of items, the second straight after the first: first * N + second


def slice_names(
    targets: np.ndarray,
    histories: Histories | None,
    train_counts: np.ndarray,
    train_pairs: Pairs | None = None,
) -> dict[str, np.ndarray]:
    """For every kind of slice the slice each row belongs to: kind -> ``(n,)`` names.

    ``target_popularity`` splits by train interactions: items are ordered by count, and a third of
    all interactions each makes head, mid and tail (items with equal counts stay together); cold
    items have none.

    Args:
        targets: ``(n,)`` item indexes.
        histories: what came before them; None: no slices by it.
        train_counts: ``(N,)``.
        train_pairs: as ``pairs_of`` numbers them; None: no slices by them.
    """
    names = {"target_popularity": popularity_thirds(train_counts)[targets]}
    if histories is None:
        return names
    buckets = [bucket(length) for length in range(int(histories.lengths.max(initial=0)) + 1)]
    names["history_length"] = np.array(buckets)[histories.lengths]
    rows = histories.rows  # (T,)
    found = rows[histories.items == targets[rows]]
    names["target_in_history"] = yes_no(np.bincount(found, minlength=len(targets)) > 0)
    names["target_repeats_last"] = yes_no(histories.last == targets)
    if train_pairs is not None:
        pairs = histories.last * len(train_counts) + targets  # negative of an empty history
        names["pair_in_train"] = yes_no(is_among(train_pairs, pairs))
    return names


def is_among(
    ascending: np.ndarray,
    numbers: np.ndarray,
) -> np.ndarray:
    """``(n,)`` whether each number is one of others that ascend; looks few up among many.

    >>> is_among(np.array([1, 4]), np.array([4, 0, 9])).tolist()
    [True, False, False]
    """
    if not len(ascending):
        return np.zeros(len(numbers), bool)
    place = np.searchsorted(ascending, numbers)
    place = place.clip(max=len(ascending) - 1)
    return ascending[place] == numbers


def pairs_of(sequences: Sequence[Sequence[int]], num_items: int) -> Pairs:
    """Every item with every one that follows it directly in some sequence, as numbers, ascending.

    >>> pairs_of([[0, 1, 1]], 2).tolist()  # 0 then 1, 1 then 1
    [1, 3]
    """
    lists = IntLists.of(sequences)
    items = lists.flat.astype(np.int64)
    users = lists.owners()
    same = users[1:] == users[:-1]
    pairs = items[:-1] * num_items + items[1:]
    pairs = np.sort(pairs[same])  # np.unique takes five times as long
    is_new = np.ones(len(pairs), bool)
    is_new[1:] = pairs[1:] != pairs[:-1]
    return pairs[is_new]


def yes_no(flags: np.ndarray) -> np.ndarray:
    """``(n,)`` yes where a flag is set, else no."""
    return np.where(
        flags,
        "yes",
        "no",
    )


def popularity_thirds(train_counts: np.ndarray) -> np.ndarray:
    """``(N,)`` head, mid or tail for every item with a train interaction, else cold.

    It is the third of all interactions in which the item's count lies.

    >>> # of 10 interactions, more popular items have 0, 5, 5, 9
    >>> popularity_thirds(np.array([5, 2, 2, 1, 0])).tolist()
    ['head', 'mid', 'mid', 'tail', 'cold']
    """
    total = int(train_counts.sum())
    counts, of_item, items_with = np.unique(
        train_counts,
        return_inverse=True,
        return_counts=True,
    )
    third = np.full(len(counts), COLD)
    above = 0  # interactions of more popular items
    for place in range(
        len(counts) - 1,
        -1,
        -1,
    ):
        count = int(counts[place])
        if count > 0:
            third[place] = THIRDS[3 * above // total]
            above += count * int(items_with[place])
    return third[of_item]


def bucket(length: int) -> str:
    """The name of a history's length.

    >>> bucket(1), bucket(3), bucket(10)
    ('1', '2-4', '10+')
    """
    low, high = next(bounds for bounds in HISTORY_BUCKETS if length <= bounds[1])
    if low == high:
        return f"{low}"
    return f"{low}-{high}" if high < math.inf else f"{low}+"


def sliced(values: Mapping[str, np.ndarray], names: Mapping[str, np.ndarray]) -> Slices:
    """HR@10, NDCG@10 (where they are measured) and the number of rows of every slice with rows."""
    shown = [key for key in SHOWN if key in values]
    table: Slices = {}
    for kind, of_row in names.items():
        table[kind] = {}
        for name in np.unique(of_row).tolist():
            inside = of_row == name
            figures: dict[str, float] = {}
            for key in shown:
                figures[key] = mean(values[key][inside])
            figures["count"] = int(inside.sum())
            table[kind][name] = figures
    return table


def slice_columns(values: Values, names: Mapping[str, np.ndarray]) -> list[Column]:
    """What the bootstrap adds up for the means of every slice.

    First for every slice and key of ``SHOWN`` the ``(rows,)`` metric where a row is in the slice,
    else 0; then as many ``(rows,)`` of 1 where it is. Each is made when it is asked for.
    """
    shown = [key for key in SHOWN if key in values]
    columns: list[Column] = []
    members: list[Column] = []
    for kind, of_row in names.items():
        for name in np.unique(of_row).tolist():
            for key in shown:
                place = (kind, name, key)
                measured = partial(
                    _inside,
                    of_row,
                    name,
                    values[key],
                )
                counted = partial(
                    _inside,
                    of_row,
                    name,
                    None,
                )
                columns.append((place, measured))
                members.append((place, counted))
    return [*columns, *members]


def _inside(
    of_row: np.ndarray,
    name: str,
    values: np.ndarray | None,
) -> np.ndarray:
    inside = (of_row == name).astype(float)
    return inside if values is None else values * inside


def slice_intervals_of(places: Sequence[Place], drawn: np.ndarray) -> Intervals:
    """95 % intervals from the ``(samples, 2 M)`` sums of ``slice_columns``.

    A slice's mean in a resample is over the rows of the slice that were drawn.
    """
    total, rows = np.split(
        drawn,
        2,
        axis=1,
    )  # (samples, M), (samples, M)
    # A slice of one user may not be drawn at all: no mean, rather than one of 0
    means = np.divide(
        total,
        rows,
        out=np.full_like(total, np.nan),
        where=rows > 0,
    )
    low, high = np.nanpercentile(
        means,
        [2.5, 97.5],
        axis=0,
    )  # (M,), (M,)
    found: Intervals = {}
    for (kind, name, key), *ends in zip(
        places,
        low.tolist(),
        high.tolist(),
        strict=False,
    ):
        found.setdefault(kind, {}).setdefault(name, {})[key] = ends
    return found
