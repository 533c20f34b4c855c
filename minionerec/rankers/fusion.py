"""Fusion: several rankers' lists for the same histories as one ranking.

    s(item) = sum_k w_k p_k(item)

over the union of the lists, ``p_k`` being ranker k's scores as probabilities over its own list,
and 0 for an item that is not on it. Rules remember which pairs were seen, a generator knows what
is alike, and their lists overlap little. A linear mix of probabilities is the "linear opinion
pool" (Stone, 1961); memorising beside generalising is the idea of Wide & Deep (Cheng et al.,
arXiv:1606.07792).

Only lists are read and written: memory grows with rows x length of the lists, never with users x
items. Items that no list holds are never recommended, so what every ranker leaves out stays out.
Equal scores are ordered by item index.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from minionerec.rankers import experts
from minionerec.rankers.experts import Expert
from minionerec.rankers.scores import rank_by_scores, rows_at_once
from minionerec.rankers.sparse_scores import best_entries

NO_ITEM = -1


class Lists(NamedTuple):
    """Ranked items of n histories by one ranker."""

    items: np.ndarray  # (n, W) item indexes, no item twice in a row, -1 where the list is shorter
    weights: np.ndarray  # (n, W) not negative; 0 where there is no item


class Union(NamedTuple):
    """All items of several lists, in rows of ascending item indexes."""

    items: np.ndarray  # (n, U), -1 behind the last item of a row
    shares: (
        np.ndarray
    )  # (R, n, U) probability of each item by each of R rankers, 0 where it did not name it


def from_log_probabilities(items: np.ndarray, scores: np.ndarray) -> Lists:
    """A model's beams: ``(n, W)`` items and log-probabilities; item -1 where there is none."""
    weights = np.where(items >= 0, np.exp(np.minimum(scores, 0.0)), 0.0)
    return Lists(np.where(weights > 0, items, NO_ITEM), weights)


def from_expert(
    expert: Expert,
    histories: Sequence[Sequence[int]],
    k: int,
    unwanted: Sequence[Collection[int]] | None = None,
) -> Lists:
    """An expert's k best items of each history, none of them unwanted, equal ones in item order."""
    is_enough = unwanted is None and k <= experts.LENGTH
    if expert.best and expert.num_items > experts.SMALL and is_enough:
        found = []
        step = rows_at_once(expert.num_items)
        for start in range(0, len(histories), step):
            found.append(best_entries(expert.best(histories[start : start + step]), k))
        items, weights = map(np.concatenate, zip(*found, strict=True))
        return Lists(items, weights)
    items, weights = rank_by_scores(
        expert.probabilities,
        histories,
        np.arange(expert.num_items),
        k,
        unwanted,
    )
    return Lists(np.where(weights > 0, items, NO_ITEM), np.maximum(weights, 0.0))


def union(lists: Sequence[Lists]) -> Union:
    """Unite lists of the same histories.

    Raises:
        ValueError: they have different numbers of histories.

        >>> first = Lists(np.array([[2, 0]]), np.array([[3.0, 1.0]]))
        >>> second = Lists(np.array([[5, 2]]), np.array([[1.0, 1.0]]))
        >>> found = union([first, second])
        >>> found.items.tolist(), found.shares.tolist()
        ([[0, 2, 5]], [[[0.25, 0.75, 0.0]], [[0.0, 0.5, 0.5]]])
    """
    sizes = {len(one.items) for one in lists}
    if len(sizes) > 1:
        raise ValueError(f"lists of {sorted(sizes)} histories cannot be united")
    named = np.concatenate([one.items for one in lists], axis=1)  # (n, sum of W)
    distinct = [np.unique(row[row >= 0]) for row in named]
    width = max(map(len, distinct), default=0)
    items = np.full((len(named), width), NO_ITEM, dtype=np.int64)
    for row, found in enumerate(distinct):
        items[row, : len(found)] = found
    shares = np.zeros((len(lists), len(named), width))
    for ranker, one in enumerate(lists):
        total = one.weights.sum(axis=1)
        for row, found in enumerate(distinct):
            there = one.items[row] >= 0
            if total[row] > 0:
                place = np.searchsorted(found, one.items[row, there])
                shares[ranker, row, place] = one.weights[row, there] / total[row]
    return Union(items, shares)


def fuse(
    candidates: Union,
    weights: Sequence[float],
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items by the weighted sum of their probabilities.

    Args:
        candidates: ``(n, U)`` items of R rankers.
        weights: of the R rankers, none negative, not all 0.
        k: items returned.

    Returns:
        ``(n, k)`` item indexes, best first, and their scores; -1 and 0 where there are fewer, and
        no item whose score is 0.
    """
    scores = np.tensordot(np.asarray(weights, dtype=float), candidates.shares, axes=1)  # (n, U)
    # a stable sort leaves equal scores in the order of the items
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    items = np.where(best > 0, np.take_along_axis(candidates.items, order, axis=1), NO_ITEM)
    missing = max(0, k - items.shape[1])
    return np.pad(items, ((0, 0), (0, missing)), constant_values=NO_ITEM), np.pad(
        best, ((0, 0), (0, missing))
    )


def ranks(
    candidates: Union,
    weights: Sequence[float],
    targets: np.ndarray,
) -> np.ndarray:
    """``(n,)`` how many items ``fuse`` puts before each target; very many if no list names it."""
    scores = np.tensordot(np.asarray(weights, dtype=float), candidates.shares, axes=1)  # (n, U)
    is_target = candidates.items == targets[:, None]
    own = np.where(is_target, scores, 0.0).sum(axis=1, keepdims=True)
    earlier = (scores == own) & (candidates.items < targets[:, None]) & (candidates.items >= 0)
    before = ((scores > own) | earlier).sum(axis=1)
    return np.where(own[:, 0] > 0, before, np.iinfo(np.int64).max)


def shares_of(
    candidates: Union,
    weights: Sequence[float],
    targets: np.ndarray,
) -> np.ndarray:
    """``(n,)`` weighted sum of the probabilities of each target; 0 where no list names it."""
    is_target = candidates.items == targets[:, None]
    own = np.where(is_target, candidates.shares, 0.0).sum(axis=2)  # (R, n)
    return np.asarray(weights, dtype=float) @ own


def weight_grid(rankers: int, steps: int) -> Iterator[tuple[float, ...]]:
    """All weights in steps of ``1 / steps`` that add up to 1, the most of the first ranker first.

    >>> list(weight_grid(2, 2))
    [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    """
    for parts in product(range(steps, -1, -1), repeat=rankers):
        if sum(parts) == steps:
            yield tuple(part / steps for part in parts)
