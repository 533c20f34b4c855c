"""Metrics of parts of the test rows: by the target's popularity, by the history.

``pair_in_train`` parts what can be remembered from what cannot: whether some train sequence goes
from the row's last item straight to its target. Counting rules live of the rows where one does.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from minionerec.evaluation.metrics import Prediction, Values, mean
from minionerec.evaluation.statistics import resamples, user_sums

# Items in the history, inclusive bounds.
HISTORY_BUCKETS = ((1, 1), (2, 4), (5, 9), (10, math.inf))
SHOWN = ("HR@10", "NDCG@10")
THIRDS = ("head", "mid", "tail")
YES_NO = {True: "yes", False: "no"}

Slices = dict[str, dict[str, dict[str, float]]]  # kind -> name -> metrics and count
Intervals = dict[str, dict[str, dict[str, list[float]]]]  # kind -> name -> key -> [low, high]
Pairs = Collection[tuple[str, str]]  # of items, the second straight after the first


def slice_names(
    predictions: Sequence[Prediction],
    histories: Sequence[Sequence[str]] | None,
    train_counts: Mapping[str, int],
    train_pairs: Pairs | None = None,
) -> dict[str, list[str]]:
    """For every kind of slice the slice each row belongs to: kind -> ``(rows,)`` names.

    ``target_popularity`` splits by train interactions: items are ordered by count, and a third of
    all interactions each makes head, mid and tail (items with equal counts stay together); cold
    items have none.
    """
    third_of = popularity_thirds(train_counts)
    names = defaultdict(list)
    for number, row in enumerate(predictions):
        target = row["target_item_id"]
        names["target_popularity"].append(third_of.get(target, "cold"))
        if histories is None:
            continue
        history = histories[number]
        names["history_length"].append(bucket(len(history)))
        names["target_in_history"].append(YES_NO[target in history])
        names["target_repeats_last"].append(YES_NO[list(history[-1:]) == [target]])
        if train_pairs is not None:
            names["pair_in_train"].append(YES_NO[(*history[-1:], target) in train_pairs])
    return dict(names)


def pairs_of(sequences: Iterable[Sequence[int]], item_ids: Sequence[str]) -> Pairs:
    """Every item with every one that follows it directly in some sequence, as ids.

    >>> sorted(pairs_of([[0, 1, 1]], ["a", "b"]))
    [('a', 'b'), ('b', 'b')]
    """
    found = set()
    for sequence in sequences:
        for item, following in pairwise(sequence):
            found.add((item_ids[item], item_ids[following]))
    return found


def popularity_thirds(train_counts: Mapping[str, int]) -> dict[str, str]:
    """head, mid or tail for every item with a train interaction.

    It is the third of all interactions in which the item's count lies.

    >>> # of 10 interactions, more popular items have 0, 5, 5, 9
    >>> popularity_thirds({"a": 5, "b": 2, "c": 2, "d": 1, "e": 0})
    {'a': 'head', 'b': 'mid', 'c': 'mid', 'd': 'tail'}
    """
    total = sum(train_counts.values())
    items_with = Counter(train_counts.values())  # count -> number of items that have it
    third = {}
    above = 0  # interactions of more popular items
    for count in sorted(items_with, reverse=True):
        if count > 0:
            third[count] = THIRDS[3 * above // total]
            above += count * items_with[count]
    return {item: third[count] for item, count in train_counts.items() if count > 0}


def bucket(length: int) -> str:
    """The name of a history's length.

    >>> bucket(1), bucket(3), bucket(10)
    ('1', '2-4', '10+')
    """
    low, high = next(bounds for bounds in HISTORY_BUCKETS if length <= bounds[1])
    if low == high:
        return f"{low}"
    return f"{low}-{high}" if high < math.inf else f"{low}+"


def sliced(values: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]) -> Slices:
    """HR@10, NDCG@10 (where they are measured) and the number of rows of every slice with rows."""
    shown = [key for key in SHOWN if key in values]
    table: Slices = {}
    for kind, of_row in names.items():
        rows = defaultdict(list)
        for index, name in enumerate(of_row):
            rows[name].append(index)
        table[kind] = {}
        for name in sorted(rows):
            figures: dict[str, float] = {}
            for key in shown:
                figures[key] = mean(values[key][rows[name]])
            figures["count"] = len(rows[name])
            table[kind][name] = figures
    return table


def slice_intervals(
    values: Values,
    names: Mapping[str, Sequence[str]],
    users: Sequence[str],
    samples: int,
    seed: int,
) -> Intervals:
    """95 % bootstrap intervals of what ``sliced`` says, as ``bootstrap_intervals`` draws users.

    A slice's mean in a resample is over the rows of the slice that were drawn; all slices share the
    same draws.

    Args:
        values: key -> ``(rows,)``.
        names: kind -> ``(rows,)`` the slice of each row.
        users: whose row it is, ``(rows,)``.
        samples: number of resamples; 0 gives an empty dict.
        seed: of the draws.
    """
    shown = [key for key in SHOWN if key in values]
    if not samples or not shown:
        return {}
    places = []
    columns = []  # (rows,) a metric where the row is in the slice, else 0
    members = []  # (rows,) 1 where it is
    for kind, of_row in names.items():
        for name in sorted(set(of_row)):
            inside = (np.array(of_row) == name).astype(float)
            for key in shown:
                places.append((kind, name, key))
                columns.append(values[key] * inside)
                members.append(inside)
    sums, _ = user_sums(np.stack([*columns, *members], axis=1), users)  # (U, 2 M)
    blocks = []
    for weights in resamples(len(sums), samples, seed):  # (chunk, U) how often each is drawn
        total, rows = np.split(weights @ sums, 2, axis=1)  # (chunk, M), (chunk, M)
        # a slice of one user may not be drawn at all: no mean, rather than one of 0
        rows[rows == 0] = np.nan
        blocks.append(total / rows)
    low, high = np.nanpercentile(np.concatenate(blocks), [2.5, 97.5], axis=0)  # (M,), (M,)
    found: Intervals = {}
    for (kind, name, key), *ends in zip(places, low.tolist(), high.tolist(), strict=True):
        found.setdefault(kind, {}).setdefault(name, {})[key] = ends
    return found
