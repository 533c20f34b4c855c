"""Ranked lists from sparse scores: the lists of ``scores.py`` without a number for every item.

A rule that counts gives most items of a large catalogue nothing. Those are all tied at 0 behind
the others, in the order that breaks ties, so that a list needs the scored items and the beginning
of that order only.

Shapes: B rows, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import scipy.sparse as sparse

from minionerec.rankers.scores import ROWS_AT_ONCE, Histories

SparseScoresOf = Callable[[Histories], sparse.csr_matrix]  # histories -> (B, N), nothing below 0


def rank_by_sparse_scores(
    scores_of: SparseScoresOf,
    histories: Histories,
    order: np.ndarray,
    k: int,
    unwanted: Sequence[Collection[int]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of every history, to the bit those of ``scores.rank_by_scores``.

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
    k = min(k, len(order))
    place = places_of(order)
    items = np.full((len(histories), k), -1, dtype=np.int64)
    scores = np.full((len(histories), k), -np.inf)
    for start in range(0, len(histories), ROWS_AT_ONCE):
        table = scores_of(histories[start : start + ROWS_AT_ONCE])
        for row in range(table.shape[0]):
            number = start + row
            entries = slice(table.indptr[row], table.indptr[row + 1])
            barred = () if unwanted is None else unwanted[number]
            best, values = _best(
                table.indices[entries], table.data[entries], order, place, k, barred
            )
            items[number, : len(best)] = best
            scores[number, : len(best)] = values
    return items, scores


def target_ranks(
    scores_of: SparseScoresOf, histories: Histories, targets: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """``(n,)`` how many items come before each row's target, counted without ranking them."""
    place = places_of(order)
    ranks = np.empty(len(histories), dtype=np.int64)
    for start in range(0, len(histories), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        table = scores_of(histories[block])
        table.eliminate_zeros()
        wanted = targets[block]  # (B,)
        of_row = np.repeat(np.arange(len(wanted)), np.diff(table.indptr))  # (entries,)
        own = np.zeros(len(wanted))  # each target's score
        at_target = table.indices == wanted[of_row]
        own[of_row[at_target]] = table.data[at_target]
        earlier = place[table.indices] < place[wanted][of_row]
        before = (table.data > own[of_row]) | ((table.data == own[of_row]) & earlier)
        count = np.bincount(of_row[before], minlength=len(wanted))
        # A target without a score comes behind all that have one, in the order of the others
        passed = np.bincount(of_row[earlier], minlength=len(wanted))
        count += np.where(own == 0, place[wanted] - passed, 0)
        ranks[block] = count
    return ranks


def places_of(order: np.ndarray) -> np.ndarray:
    """``(N,)`` where each item stands in an order."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place


def _best(
    items: np.ndarray,
    scores: np.ndarray,
    order: np.ndarray,
    place: np.ndarray,
    k: int,
    unwanted: Collection[int],
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of one row's scored items, then what the order has first."""
    barred = np.fromiter(unwanted, dtype=np.int64, count=len(unwanted))
    good = scores > 0
    if len(barred):
        good &= ~np.isin(items, barred)
    items = items[good]
    scores = scores[good]
    if len(items) > k:
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        good = scores >= least  # more than k where several tie for the last place
        items = items[good]
        scores = scores[good]
    ranked = np.lexsort((place[items], -scores))[:k]
    items = items[ranked]
    scores = scores[ranked]
    if len(items) == k:
        return items, scores
    taken = np.concatenate([items, barred])
    first = order[: k + len(taken)]
    rest = first[~np.isin(first, taken)][: k - len(items)]
    return np.concatenate([items, rest]), np.concatenate([scores, np.zeros(len(rest))])
