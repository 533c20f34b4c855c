"""HR@K, NDCG@K, MRR@K and Recall@K over the full catalogue, counted per item, with their uncertainty and what lies behind them.

One test row has one relevant item, its target, so Recall@K is HR@K. HR@K and NDCG@K as in the MiniOneRec report
(arXiv:2510.24431, section 4) and its predecessors, with four deliberate departures:

1. They are counted per *item*. Items that share one semantic ID (SID) cannot be told apart by the model, so they are tied
   and the metric is its expectation over a random order inside the tie group. The number that other papers print, where
   any item with the target's SID counts as a hit, stands beside it as ``sid_level``; ``inflation`` is their difference.
2. Every number carries a 95 % bootstrap interval. Users are resampled, not rows: rows of one user are not independent.
3. Results do not depend on the order of the rows, to the last bit: rows are sorted first, sums are exact (``math.fsum``).
4. Nothing is reported at a K beyond the length of the lists, unless they hold the whole catalogue: what was cut off may be hits.

Resampling is our own (tests compare it with ``scipy.stats``): scipy takes 3 to 10 times as long, as it gathers the rows of every
resample where one product with the draws' counts serves all metrics.

Everything here is pure: predictions in, numbers out. A prediction is one line of ``predictions.jsonl``:
``{"user_id", "target_item_id", "item_ids": [best first], "scores": [...]}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

KS = (1, 3, 5, 10, 20, 50)
KEYS = (*(f"{name}@{k}" for k in KS for name in ("HR", "NDCG", "MRR", "Recall")), "MRR")

Prediction = Mapping[str, Any]
SidOf = Mapping[str, Sequence[int]]


class Place(NamedTuple):
    """Where a ranked list holds the target.

    ``first`` counts from 0 and is the position of the best item of the target's tie group: the target is equally likely
    at ``first .. first + size - 1``; both are None where the list does not hold the target. ``sid_rank`` counts the
    distinct SIDs before the target's, None where no item of the list has it.
    """

    first: int | None
    size: int | None
    sid_rank: int | None


NOWHERE = Place(None, None, None)


def find_target(item_ids: Sequence[str], target: str, sid_of: SidOf | None = None) -> Place:
    """Position of the target, size of its tie group, and its rank in distinct SIDs.

    The tie group is the run of adjacent items around the target that share its SID. A list must hold such a group whole,
    as ``evaluate.py`` writes it: where a list was cut inside a group, the items that were cut off are misses.

        >>> find_target(["a", "b", "c"], "b")
        Place(first=1, size=1, sid_rank=1)
        >>> find_target(["a", "b", "c"], "c", {"a": (0,), "b": (1,), "c": (1,)})
        Place(first=1, size=2, sid_rank=1)
        >>> find_target(["a", "b"], "c", {"a": (0,), "b": (1,), "c": (1,)})  # only its SID is there
        Place(first=None, size=None, sid_rank=1)

    Args:
        item_ids: ranked, best first. An id that is repeated counts where it stands first.
        target: item id.
        sid_of: item -> SID; an item without one, or None, is a group of its own.
    """
    ranked = list(dict.fromkeys(item_ids))
    groups = ranked if sid_of is None else [_group(item, sid_of) for item in ranked]
    wanted = target if sid_of is None else _group(target, sid_of)
    if wanted not in groups:
        return NOWHERE
    sid_rank = len(set(groups[: groups.index(wanted)]))
    if target not in ranked:
        return Place(None, None, sid_rank)
    first = last = ranked.index(target)
    while first > 0 and groups[first - 1] == wanted:
        first -= 1
    while last + 1 < len(groups) and groups[last + 1] == wanted:
        last += 1
    return Place(first, last - first + 1, sid_rank)


def hr_at_k(place: Place, k: int) -> float:
    """Probability that the target is among the first k.

    >>> hr_at_k(Place(first=0, size=3, sid_rank=0), 1), hr_at_k(NOWHERE, 10)
    (0.3333333333333333, 0.0)
    """
    return 0.0 if place.first is None else max(0, min(place.size, k - place.first)) / place.size


def ndcg_at_k(place: Place, k: int) -> float:
    """Expected NDCG@k of one row. With one relevant item the ideal DCG is 1, so it is the discount at the target's rank:
    ``1 / log2(rank + 2)``, ranks from 0, averaged over the tie group.

        >>> ndcg_at_k(Place(0, 1, 0), 10), round(ndcg_at_k(Place(1, 1, 1), 10), 4), ndcg_at_k(Place(10, 1, 10), 10)
        (1.0, 0.6309, 0.0)
    """
    return _expectation(place, k, lambda rank: 1.0 / math.log2(rank + 2))


def mrr_at_k(place: Place, k: int | None) -> float:
    """Expected ``1 / rank``, ranks from 1 here; 0 where the first k (None: the whole list) do not hold the target.

    >>> mrr_at_k(Place(first=1, size=2, sid_rank=1), None) == (1 / 2 + 1 / 3) / 2, mrr_at_k(Place(1, 2, 1), 2)
    (True, 0.25)
    """
    return _expectation(place, k, lambda rank: 1.0 / (rank + 1))


@cache
def place_metrics(place: Place) -> tuple[float, ...]:
    """The values of ``KEYS`` for one row. Rows have few different places, hence the cache."""
    at_k = [
        (hr_at_k(place, k), ndcg_at_k(place, k), mrr_at_k(place, k), hr_at_k(place, k)) for k in KS
    ]
    return (*(value for values in at_k for value in values), mrr_at_k(place, None))


def measured_ks(depth: int, num_items: int) -> tuple[int, ...]:
    """The K that lists of ``depth`` items answer for: all of them when the lists hold the whole catalogue.

    >>> measured_ks(10, 3686), measured_ks(36, 36)
    ((1, 3, 5, 10), (1, 3, 5, 10, 20, 50))
    """
    return tuple(k for k in KS if k <= depth or depth >= num_items)


def row_metrics(
    predictions: Sequence[Prediction], sid_of: SidOf | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Item-level and SID-level metrics of every row, in the order given: two dicts key -> ``(rows,)``."""
    places = [find_target(row["item_ids"], row["target_item_id"], sid_of) for row in predictions]
    strings = [
        NOWHERE if place.sid_rank is None else Place(place.sid_rank, 1, place.sid_rank)
        for place in places
    ]
    item_rows, sid_rows = (
        np.array([place_metrics(place) for place in level]).reshape(-1, len(KEYS))
        for level in (places, strings)
    )
    return dict(zip(KEYS, item_rows.T, strict=True)), dict(zip(KEYS, sid_rows.T, strict=True))


def _group(item: str, sid_of: SidOf) -> Any:
    return tuple(sid_of[item]) if item in sid_of else item


def _expectation(place: Place, k: int | None, gain: Callable[[int], float]) -> float:
    if place.first is None:
        return 0.0
    end = place.first + place.size
    return (
        math.fsum(gain(rank) for rank in range(place.first, end if k is None else min(end, k)))
        / place.size
    )


def _mean(values: np.ndarray) -> float:
    return math.fsum(values) / len(values)
