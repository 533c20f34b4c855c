"""What items are to each other, counted, and the scores that a history looks up there.

* Markov: ``M[i, j]`` counts how often j followed i within ``reach`` steps, a follower d steps away
  as 1/d, and preceded it, times ``backward``. ``reach`` 1 and ``backward`` 0 are the first-order
  chain (the MC of Rendle et al., FPMC, WWW 2010).
* Item-kNN: ``M[i, j] = users with both / (sqrt(users with i * users with j) + shrinkage)``, the
  cosine of Sarwar et al., WWW 2001, with shrinkage against chance pairs. Departure: the diagonal is
  not dropped, it counts the users who have the item at least twice, so items that people buy again
  are offered again.

A history scores item j with ``sum_m M[h_m, j] / m``, h_1 its latest item.

Shapes: B histories, N items, T interactions, H items of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sparse

from minionerec.catalogue.compact import IntLists
from minionerec.rankers.scores import ROWS_AT_ONCE, Histories
from minionerec.rankers.sparse_scores import Head, HeadOf, SparseScoresOf

ROUNDING = 1e-12  # a bound is added up in another way than what it bounds

Matrix = Callable[[], sparse.csr_matrix]  # gives a matrix between items, (N, N)


# -------------------------------------------------------------------------------------------------
# Matrices


def transition_counts(
    sequences: Sequence[Sequence[int]],
    num_items: int,
    reach: int,
    backward: float,
) -> sparse.csr_matrix:
    """``(N, N)`` Markov matrix of the module's docstring.

    >>> counts = transition_counts([[0, 1, 2]], 3, reach=2, backward=0.0)
    >>> counts.toarray().tolist()
    [[0.0, 1.0, 0.5], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    return both_ways(followers(sequences, num_items, reach), backward)


def followers(
    sequences: Sequence[Sequence[int]],
    num_items: int,
    reach: int,
    nearer: int = 0,
    known: sparse.csr_matrix | None = None,
) -> sparse.csr_matrix:
    """``transition_counts`` without what came before.

    Args:
        sequences: of items, each user's in order.
        num_items: N.
        reach: farthest follower that counts.
        nearer: a reach whose counts are known.
        known: these counts.
    """
    items, users = _flat(sequences)  # (T,), (T,)
    counts = sparse.csr_matrix((num_items, num_items)) if known is None else known
    for distance in range(nearer + 1, reach + 1):
        # Sequences lie end to end: a pair counts if both places belong to the same one.
        same = users[distance:] == users[:-distance]
        before = items[:-distance][same]
        after = items[distance:][same]
        weights = np.full(len(before), 1.0 / distance)
        counts += sparse.csr_matrix((weights, (before, after)), shape=counts.shape)
    return counts


def both_ways(counts: sparse.csr_matrix, backward: float) -> sparse.csr_matrix:
    """``followers`` with what came before added, times ``backward``."""
    if not backward:
        return counts
    before = counts.T.tocsr()  # a copy, scaled in place: matrices are up to gigabytes
    before.data *= backward
    return counts + before


def item_cosine(
    sequences: Sequence[Sequence[int]],
    num_items: int,
    shrinkage: float,
) -> sparse.csr_matrix:
    """``(N, N)`` item-kNN matrix of the module's docstring.

    >>> item_cosine([[0, 1], [0], [1, 1]], 2, shrinkage=0.0).toarray().round(3).tolist()
    [[0.0, 0.5], [0.5, 0.5]]
    """
    items, users = _flat(sequences)
    shape = (len(sequences), num_items)
    times = sparse.csr_matrix((np.ones(len(items)), (users, items)), shape=shape)  # (users, N)
    owns = (times > 0).astype(float)
    holders = np.asarray(owns.sum(axis=0)).ravel()  # (N,) users with the item
    again = np.asarray((times > 1).sum(axis=0)).ravel().astype(float)  # (N,) with it twice or more
    # owns.T @ owns has the holders on its diagonal; those who have the item again take their place.
    both = (owns.T @ owns - sparse.diags(holders) + sparse.diags(again)).tocoo()
    norm = np.sqrt(holders[both.row] * holders[both.col]) + shrinkage
    matrix = sparse.csr_matrix(
        (both.data / norm, (both.row, both.col)), shape=(num_items, num_items)
    )
    matrix.eliminate_zeros()
    return matrix


def _flat(
    sequences: Sequence[Sequence[int]],
) -> tuple[np.ndarray, np.ndarray]:
    """All sequences end to end ``(T,)``, and the number of the sequence of each item ``(T,)``."""
    lists = IntLists.of(sequences)
    return lists.flat.astype(np.int64), lists.owners()


# -------------------------------------------------------------------------------------------------
# Scores


def latest_items(
    histories: Histories,
    num_items: int,
    window: int,
) -> sparse.csr_matrix:
    """``(B, N)`` weights 1, 1/2, 1/3 ... on the latest ``window`` items; of repeats the sum."""
    lists = IntLists.of(histories)
    lengths = np.minimum(np.diff(lists.starts), window)
    ends = np.cumsum(lengths)
    starts = np.concatenate([[0], ends])
    before = np.repeat(starts[:-1], lengths)  # items of earlier rows
    ago = np.arange(1, starts[-1] + 1) - before
    items = lists.flat[np.repeat(lists.starts[1:], lengths) - ago]  # latest first
    shape = (len(lists), num_items)
    weights = sparse.csr_matrix((1.0 / ago, items, starts), shape)
    weights.sum_duplicates()
    return weights


def matrix_scores(matrix: Matrix, window: int) -> SparseScoresOf:
    """The sum of the matrix rows of the latest ``window`` items, weighted by ``latest_items``."""

    def scores(histories: Histories) -> sparse.csr_matrix:
        rows = matrix()
        return latest_items(histories, rows.shape[0], window) @ rows  # (B, N)

    return scores


def matrix_head(
    matrix: Matrix,
    window: int,
    items: np.ndarray,
) -> HeadOf:
    """Of ``matrix_scores`` those of some items, and a bound for the others."""
    rows = matrix()
    columns = rows[:, items]  # (N, H)
    num_items = rows.shape[0]
    among = np.zeros(num_items, dtype=bool)
    among[items] = True
    found = []
    for start in range(0, num_items, ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE]
        others = np.where(
            among[block.indices],
            0.0,
            block.data,
        )
        places = (block.indices, block.indptr)
        block = sparse.csr_matrix((others, *places), block.shape)
        largest_of_row = block.max(axis=1)
        found.append(largest_of_row.toarray().ravel())
    largest = np.concatenate(found)  # (N,) in the other columns

    def head_of(histories: Histories) -> Head:
        recent = latest_items(histories, num_items, window)
        bound = recent @ largest
        # The head is nearly full where it counts: added up as dense rows of the items that occur
        used, places = np.unique(recent.indices, return_inverse=True)
        dense = columns[used].toarray()  # (U, H)
        shape = (recent.shape[0], len(used))
        among_used = sparse.csr_matrix((recent.data, places, recent.indptr), shape)
        return Head(among_used @ dense, bound * (1 + ROUNDING))

    return head_of
