"""From scores of all items to ranked lists: what rules and networks over items share.

Ties are broken by a given order (popularity, then item order), so the same scores give the same
ranking everywhere. Shapes: B rows, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from minionerec.catalogue.compact import IntLists
from minionerec.catalogue.samples import Sample, targets_of

ROWS_AT_ONCE = 512
BLOCK_NUMBERS = 2**26  # of a dense (rows, N) block of scores: bounds memory at 512 MB

Histories = Sequence[Sequence[int]]
ScoresOf = Callable[[Histories], np.ndarray]  # histories -> (B, N)


def some_of(histories: Histories, rows: np.ndarray) -> Histories:
    """The histories of some rows, as arrays where they are kept as such."""
    if isinstance(histories, IntLists):
        return histories.take(rows)
    return [histories[row] for row in rows.tolist()]


def rows_at_once(num_items: int) -> int:
    """How many rows of dense scores are made together: fewer of a large catalogue."""
    return min(ROWS_AT_ONCE, max(1, BLOCK_NUMBERS // num_items))


def popularity_order(counts: np.ndarray) -> np.ndarray:
    """``(N,)`` item indexes, most train interactions first, equal counts in item order."""
    return np.argsort(-counts, kind="stable")


def top_k(scores: np.ndarray, order: np.ndarray, k: int) -> np.ndarray:
    """The k best items of every row, equal scores in the given order.

        >>> top_k(np.array([[0.0, 2.0, 0.0]]), order=np.array([2, 1, 0]), k=2).tolist()
        [[1, 2]]

    Args:
        scores: ``(B, N)``.
        order: ``(N,)`` item indexes, the one to prefer in a tie first.
        k: items returned; fewer when the catalogue is smaller.

    Returns:
        ``(B, min(k, N))`` item indexes, best first.
    """
    k = min(k, scores.shape[1])
    ordered = scores[:, order]  # (B, N): in a tie, the place further left wins
    worst = -np.partition(-ordered, k - 1, axis=1)[:, k - 1]  # (B,) k-th best score
    best = np.empty((len(scores), k), dtype=np.int64)
    for row, threshold in enumerate(worst):
        # More than k where several items tie for the last place; a stable sort keeps their order.
        candidates = np.flatnonzero(ordered[row] >= threshold)
        ranked = np.argsort(-ordered[row, candidates], kind="stable")
        best[row] = candidates[ranked[:k]]
    return order[best]


def rank_by_scores(
    scores_of: ScoresOf,
    histories: Histories,
    order: np.ndarray,
    k: int,
    unwanted: Sequence[Collection[int]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of every history.

    Args:
        scores_of: histories -> ``(B, N)``.
        histories: item indexes, oldest first.
        order: ``(N,)`` item indexes, the one to prefer in a tie first.
        k: items returned.
        unwanted: per history, items that must not be ranked.

    Returns:
        ``(B, k)`` item indexes, best first, and their ``(B, k)`` scores; -1 and -inf where only
        unwanted items are left.
    """
    all_items = []
    all_scores = []
    step = rows_at_once(len(order))
    for start in range(0, len(histories), step):
        block = slice(start, start + step)
        scores = scores_of(histories[block])
        if unwanted:
            for row, items in zip(scores, unwanted[block], strict=True):
                row[list(items)] = -np.inf
        best = top_k(scores, order, k)
        best_scores = np.take_along_axis(scores, best, axis=1)
        barred = best_scores == -np.inf
        all_items.append(np.where(barred, -1, best))
        all_scores.append(best_scores)
    return np.concatenate(all_items), np.concatenate(all_scores)


def ndcg_at_10(items: np.ndarray, samples: Sequence[Sample]) -> float:
    """Mean NDCG@10 of ``(B, >=10)`` ranked item indexes for the targets of the samples."""
    targets = targets_of(samples)
    hits = items[:, :10] == targets[:, None]  # (B, 10)
    discounts = np.log2(np.arange(hits.shape[1]) + 2)
    return float((hits / discounts).sum(axis=1).mean())


def ndcg_of_ranks(ranks: np.ndarray) -> float:
    """Mean NDCG@10 of ``(n,)`` places of the targets, counted from 0."""
    among_ten = np.minimum(ranks, 9)
    discounts = np.log2(among_ten + 2)
    gains = np.where(ranks < 10, 1.0 / discounts, 0.0)
    return float(gains.mean())
