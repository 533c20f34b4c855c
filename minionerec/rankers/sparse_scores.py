"""Ranked lists from sparse scores: the lists of ``scores.py`` without a number for every item.

A rule that counts gives most items of a large catalogue nothing. Those are all tied at 0 behind
the others, in the order that breaks ties, so that a list needs the scored items and the beginning
of that order only.

Yet what follows a popular item is without end: at 290,000 items a history of ten gives 100,000 of
them a score. Therefore the most popular items, the head, are scored first, beside a bound for all
others: where the list, or the target's rank, is certain by then, nothing else is looked at.

Shapes: B rows, N items, H items of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sparse

from minionerec.rankers.scores import ROWS_AT_ONCE, Histories, some_of, top_k

HEAD = 1024  # items, for lists of fifty
HEAD_OF_TEN = 256  # where only the first ten places count
SURE = 10  # whether a target has rank 10 or 10,000 makes no difference to NDCG@10

SparseScoresOf = Callable[[Histories], sparse.csr_matrix]  # histories -> (B, N), nothing below 0


class Head(NamedTuple):
    """Scores of the items that come first in the order that breaks ties."""

    scores: np.ndarray  # (B, H)
    bound: np.ndarray  # (B,) no other item has more


HeadOf = Callable[[Histories], Head]


def rank_by_sparse_scores(
    scores_of: SparseScoresOf,
    histories: Histories,
    order: np.ndarray,
    k: int,
    unwanted: Sequence[Collection[int]] | None = None,
    head_of: HeadOf | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of every history, to the bit those of ``scores.rank_by_scores``.

    Args:
        scores_of: histories -> ``(B, N)``.
        histories: item indexes, oldest first.
        order: ``(N,)`` item indexes, the one to prefer in a tie first.
        k: items returned.
        unwanted: per history, items that must not be ranked.
        head_of: the same scores of the first items of ``order``.

    Returns:
        ``(B, k)`` item indexes, best first, and their ``(B, k)`` scores; -1 and -inf where only
        unwanted items are left.
    """
    k = min(k, len(order))
    place = places_of(order)
    items = np.full((len(histories), k), -1, dtype=np.int64)
    scores = np.full((len(histories), k), -np.inf)
    for start in range(0, len(histories), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(histories)))
        if head_of is not None:
            head = head_of(some_of(histories, rows))
            if unwanted is not None:
                of_block = unwanted[start : start + ROWS_AT_ONCE]
                _bar(head, place, of_block)
            best, values, sure = _best_of_head(head, k)
            items[rows[sure]] = order[best[sure]]
            scores[rows[sure]] = values[sure]
            rows = rows[~sure]
        if not len(rows):
            continue
        table = scores_of(some_of(histories, rows))
        for row, number in enumerate(rows.tolist()):
            entries = slice(table.indptr[row], table.indptr[row + 1])
            barred = () if unwanted is None else unwanted[number]
            found, values = _best(
                table.indices[entries],
                table.data[entries],
                order,
                place,
                k,
                barred,
            )
            items[number, : len(found)] = found
            scores[number, : len(found)] = values
    return items, scores


def target_ranks(
    scores_of: SparseScoresOf,
    histories: Histories,
    targets: np.ndarray,
    order: np.ndarray,
    head_of: HeadOf | None = None,
) -> np.ndarray:
    """``(n,)`` how many items come before each row's target, counted without ranking them.

    With a head a rank of ``SURE`` and more may be any other such number.
    """
    place = places_of(order)
    enough = len(order) if head_of is None else SURE
    ranks = np.empty(len(histories), dtype=np.int64)
    for start in range(0, len(histories), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(histories)))
        if head_of is not None:
            head = head_of(some_of(histories, rows))
            found, sure = _ranks_in_head(head, place[targets[rows]])
            ranks[rows] = found
            rows = rows[~sure]
        if len(rows):
            table = scores_of(some_of(histories, rows))
            ranks[rows] = _ranks(table, targets[rows], place, enough)
    return ranks


def _ranks(
    table: sparse.csr_matrix,
    targets: np.ndarray,
    place: np.ndarray,
    enough: int,
) -> np.ndarray:
    """``(B,)`` how many items come before each target by ``(B, N)`` scores.

    A number of ``enough`` and more may be any other such number.
    """
    table.eliminate_zeros()
    num_rows = len(targets)
    of_row = np.repeat(np.arange(num_rows), np.diff(table.indptr))  # (entries,)
    own = np.zeros(num_rows)  # each target's score
    at_target = table.indices == targets[of_row]
    own[of_row[at_target]] = table.data[at_target]

    def come_earlier(entries: np.ndarray) -> np.ndarray:
        """``(B,)`` how many of some entries are of items before the target in the order."""
        rows = of_row[entries]
        earlier = place[table.indices[entries]] < place[targets[rows]]
        return np.bincount(rows[earlier], minlength=num_rows)

    of_target = own[of_row]
    above = of_row[table.data > of_target]
    count = np.bincount(above, minlength=num_rows)
    count += come_earlier(np.flatnonzero(table.data == of_target))
    # A target without a score comes behind all that have one, in the order of the others
    behind = (own == 0) & (count < enough)
    passed = come_earlier(np.flatnonzero(behind[of_row]))
    return count + np.where(behind, place[targets] - passed, 0)


def _ranks_in_head(
    head: Head,
    targets: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """``(B,)`` how many items of the head come before each target, and whether that decides.

    Args:
        head: of the rows.
        targets: ``(B,)`` their places in the order.
    """
    width = head.scores.shape[1]
    inside = targets < width
    rows = np.arange(len(targets))
    # A target outside has the bound at most, and comes behind a head's item with the same score
    column = np.minimum(targets, width - 1)
    own = np.where(
        inside,
        head.scores[rows, column],
        head.bound,
    )  # (B,)
    ranks = np.count_nonzero(head.scores > own[:, None], axis=1)
    near = np.flatnonzero(ranks < SURE)  # where ties count
    ties = head.scores[near] == own[near, None]
    ties &= np.arange(width) < targets[near, None]
    ranks[near] += np.count_nonzero(ties, axis=1)
    return ranks, (inside & (own >= head.bound)) | (ranks >= SURE)


def _best_of_head(
    head: Head,
    k: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(B, k)`` places of the best items of the head, their scores, and whether no other follows.

    An item outside with the score of the last one would come behind it.
    """
    width = head.scores.shape[1]
    count = len(head.bound)
    if width < k:
        nothing = np.zeros((count, k), dtype=np.int64)
        unsure = np.zeros(count, dtype=bool)
        return nothing, nothing.astype(float), unsure
    best = top_k(head.scores, np.arange(width), k)
    values = np.take_along_axis(head.scores, best, axis=1)
    return best, values, values[:, -1] >= head.bound


def _bar(
    head: Head,
    place: np.ndarray,
    unwanted: Sequence[Collection[int]],
) -> None:
    """Give unwanted items of the head no chance."""
    for row, items in zip(head.scores, unwanted, strict=True):
        places = place[list(items)]
        row[places[places < len(row)]] = -np.inf


def best_entries(table: sparse.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest entries above 0 of every row, of equal ones the earlier item.

    >>> table = sparse.csr_matrix([[0.0, 2.0, 3.0, 2.0], [1.0, 0.0, 0.0, 0.0]])
    >>> items, values = best_entries(table, 2)
    >>> items.tolist(), values.tolist()
    ([[2, 1], [0, -1]], [[3.0, 2.0], [1.0, 0.0]])

    Returns:
        ``(B, k)`` item indexes, best first, and their ``(B, k)`` values; -1 and 0 behind the last.
    """
    shape = (table.shape[0], k)
    items = np.full(shape, -1, dtype=np.int64)
    values = np.zeros(shape)
    for row in range(len(items)):
        entries = slice(table.indptr[row], table.indptr[row + 1])
        known = table.indices[entries]
        value = table.data[entries]
        best = np.lexsort((known, -value))[:k]
        best = best[value[best] > 0]
        items[row, : len(best)] = known[best]
        values[row, : len(best)] = value[best]
    return items, values


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
