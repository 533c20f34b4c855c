"""HR@K, NDCG@K, MRR@K and Recall@K of every test row, over the full catalogue, counted per item.

One test row has one relevant item, its target, so Recall@K is HR@K. HR@K and NDCG@K as in the
MiniOneRec report (arXiv:2510.24431, section 4) and its predecessors, with four deliberate
departures:

1. They are counted per *item*. Items that share one semantic ID (SID) cannot be told apart by the
   model, so they are tied and the metric is its expectation over a random order inside the tie
   group. The number that other papers print, where any item with the target's SID counts as a hit,
   stands beside it as ``sid_level``; ``inflation`` is their difference.
2. Every number carries a 95 % bootstrap interval (``statistics.py``). Users are resampled, not
   rows: rows of one user are not independent.
3. Results do not depend on the order of the rows, to the last bit: rows are sorted first, sums are
   exact (``math.fsum``).
4. Nothing is reported at a K beyond the length of the lists, unless they hold the whole catalogue:
   what was cut off may be hits.

Everything here is pure: predictions in, numbers out. A prediction is one line of
``predictions.jsonl``: ``{"user_id", "target_item_id", "item_ids": [best first], "scores": [...]}``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from minionerec.rankers.places import NOWHERE, Place, find_target, hr_at_k, mrr_at_k, ndcg_at_k

KS = (1, 3, 5, 10, 20, 50)
KEYS = (*(f"{name}@{k}" for k in KS for name in ("HR", "NDCG", "MRR", "Recall")), "MRR")

Prediction = Mapping[str, Any]
SidOf = Mapping[str, Sequence[int]]
Values = dict[str, np.ndarray]  # key -> (rows,)


@cache
def place_metrics(place: Place) -> tuple[float, ...]:
    """The values of ``KEYS`` for one row. Rows have few different places, hence the cache."""
    values = []
    for k in KS:
        hr = hr_at_k(place, k)
        values += [hr, ndcg_at_k(place, k), mrr_at_k(place, k), hr]
    return (*values, mrr_at_k(place, None))


def measured_ks(depth: int, num_items: int) -> tuple[int, ...]:
    """The K that lists of ``depth`` items answer for: all when they hold the whole catalogue.

    >>> measured_ks(10, 3686), measured_ks(36, 36)
    ((1, 3, 5, 10), (1, 3, 5, 10, 20, 50))
    """
    if depth >= num_items:
        return KS
    return tuple(k for k in KS if k <= depth)


def row_metrics(
    predictions: Sequence[Prediction], sid_of: SidOf | None = None
) -> tuple[Values, Values]:
    """Item-level and SID-level metrics of every row, in the order given."""
    items = []
    strings = []
    for row in predictions:
        place = find_target(row["item_ids"], row["target_item_id"], sid_of)
        items.append(place)
        strings.append(as_string(place))
    return values_of(items), values_of(strings)


def as_string(place: Place) -> Place:
    """The place of the target's SID in a list of distinct SIDs, as other papers count it."""
    if place.sid_rank is None:
        return NOWHERE
    return Place(place.sid_rank, 1, place.sid_rank)


def values_of(places: Iterable[Place]) -> Values:
    """Every key's value for every place."""
    table = np.array([place_metrics(place) for place in places]).reshape(-1, len(KEYS))
    return dict(zip(KEYS, table.T, strict=True))


def mean(values: np.ndarray) -> float:
    """The mean by an exact sum, which no order of rows changes."""
    return math.fsum(values.tolist()) / len(values)
