"""Rules that cost nothing to train, and that a generative recommender has to beat.

All rank the full catalogue, may recommend an item again, and break ties by popularity, then by item order, so the same data
gives the same ranking everywhere. Item-to-item rules (Markov, item-kNN, text-kNN) score an item by what it is to the recent
history, ``score[j] = sum_m M[h_m, j] / m`` with h_1 the latest item. The few choices they leave open are a tiny grid
that ``choose`` decides on validation targets; test targets are never looked at.

* Popularity: train interactions per item; recent popularity: only the latest share of the train targets counts.
* Repeat-last: the items of the history, the latest first.
* Markov: ``M[i, j]`` counts how often j followed i within ``reach`` steps, a follower d steps away as 1/d, and preceded
  it, times ``backward``. ``reach`` 1 and ``backward`` 0 are the first-order chain (the MC of Rendle et al., FPMC, WWW 2010).
* Item-kNN: ``M[i, j] = users with both / (sqrt(users with i * users with j) + shrinkage)``, the cosine of Sarwar et al., WWW
  2001, with shrinkage against chance pairs. Departure: the diagonal is not dropped, it counts the users who have the
  item at least twice, so items that people buy again are offered again.
* Text-kNN: ``M[i, j]`` is the cosine of the two items' text embeddings, the ones that the SIDs are made from; whether items
  of the history may come again is one of the choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import chain, product
from typing import NamedTuple

import numpy as np
import scipy.sparse as sparse

from minionerec.catalogue.samples import Sample

ROWS_AT_ONCE = 512  # dense (rows, N) score blocks: bounds memory

WINDOWS = (3, 10)  # latest items that look things up
REACHES, BACKWARDS = (1, 3, 10), (0.0, 0.5)
SHRINKAGES = (0.0, 20.0, 100.0)
LATEST_SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)
TEXT_WINDOWS = (1, 3, 10)
LAST = -10.0  # below any weighted sum of cosines


class Rule(NamedTuple):
    """A function from histories to scores ``(B, N)``, how it was made, and of how many numbers it consists."""

    scores: Callable[[Sequence[Sequence[int]]], np.ndarray]
    made_with: dict[str, float]
    size: int


def popularity_order(counts: np.ndarray) -> np.ndarray:
    """``(N,)`` item indexes, most train interactions first, equal counts in item order."""
    return np.argsort(-counts, kind="stable")


def transition_counts(
    sequences: Sequence[Sequence[int]], num_items: int, reach: int, backward: float
) -> sparse.csr_matrix:
    """``(N, N)`` Markov matrix of the module's docstring.

    >>> transition_counts([[0, 1, 2]], 3, reach=2, backward=0.0).toarray().tolist()
    [[0.0, 1.0, 0.5], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    items, users = _flat(sequences)
    counts = sparse.csr_matrix((num_items, num_items))
    for distance in range(1, reach + 1):
        same = users[distance:] == users[:-distance]
        before, after = items[:-distance][same], items[distance:][same]
        counts += sparse.csr_matrix(
            (np.full(len(before), 1.0 / distance), (before, after)), shape=counts.shape
        )
    return (counts + backward * counts.T).tocsr()


def item_cosine(
    sequences: Sequence[Sequence[int]], num_items: int, shrinkage: float
) -> sparse.csr_matrix:
    """``(N, N)`` item-kNN matrix of the module's docstring.

    >>> item_cosine([[0, 1], [0], [1, 1]], 2, shrinkage=0.0).toarray().round(3).tolist()
    [[0.0, 0.5], [0.5, 0.5]]
    """
    items, users = _flat(sequences)
    times = sparse.csr_matrix(
        (np.ones(len(items)), (users, items)), shape=(len(sequences), num_items)
    )
    owns = (times > 0).astype(float)  # (users, N)
    holders = np.asarray(owns.sum(axis=0)).ravel()
    again = np.asarray((times > 1).sum(axis=0)).ravel().astype(float)
    both = (owns.T @ owns - sparse.diags(holders) + sparse.diags(again)).tocoo()
    norm = np.sqrt(holders[both.row] * holders[both.col]) + shrinkage
    matrix = sparse.csr_matrix(
        (both.data / norm, (both.row, both.col)), shape=(num_items, num_items)
    )
    matrix.eliminate_zeros()
    return matrix


def latest_items(
    histories: Sequence[Sequence[int]], num_items: int, window: int
) -> sparse.csr_matrix:
    """``(B, N)`` weights 1, 1/2, 1/3 ... into the past on the latest ``window`` items of each history; repeats add up."""
    entries = [
        (row, item, 1.0 / ago)
        for row, history in enumerate(histories)
        for ago, item in enumerate(history[: -window - 1 : -1], start=1)
    ]
    rows, items, weights = zip(*entries, strict=True) if entries else ((), (), ())
    return sparse.csr_matrix((weights, (rows, items)), shape=(len(histories), num_items))


def item_to_item(matrix: sparse.csr_matrix, window: int, **made_with: float) -> Rule:
    """The sum of the matrix rows of the latest ``window`` items, weighted as ``latest_items`` says."""
    return Rule(
        lambda histories: (
            latest_items(histories, len(matrix.indptr) - 1, window) @ matrix
        ).toarray(),
        {**made_with, "window": window},
        matrix.nnz,
    )


def popularity(counts: np.ndarray, **made_with: float) -> Rule:
    """The same counts ``(N,)`` for everybody."""
    return Rule(
        lambda histories: np.tile(counts.astype(float), (len(histories), 1)), made_with, len(counts)
    )


def repeat_last(num_items: int) -> Rule:
    """1, 1/2, 1/3 ... for the items of the history from the latest on; an item that stands there twice counts once."""

    def scores(histories: Sequence[Sequence[int]]) -> np.ndarray:
        table = np.zeros((len(histories), num_items))
        for row, history in enumerate(histories):
            for ago, item in enumerate(dict.fromkeys(reversed(history)), start=1):
                table[row, item] = 1.0 / ago
        return table

    return Rule(scores, {}, 0)


def text_neighbours(embeddings: np.ndarray, window: int, again: bool) -> Rule:
    """Cosine to the latest items; without ``again`` items of the history come last."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(min=1e-12)  # (N, D)

    def scores(histories: Sequence[Sequence[int]]) -> np.ndarray:
        table = (latest_items(histories, len(unit), window) @ unit) @ unit.T
        if not again:
            for row, history in enumerate(histories):
                table[row, list(history)] = LAST
        return table

    return Rule(scores, {"window": window, "again": again}, unit.size)


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
    ordered = scores[:, order]
    worst = -np.partition(-ordered, k - 1, axis=1)[:, k - 1]  # (B,) k-th best score
    best = np.empty((len(scores), k), dtype=np.int64)
    for row, threshold in enumerate(worst):
        candidates = np.flatnonzero(ordered[row] >= threshold)
        best[row] = candidates[np.argsort(-ordered[row, candidates], kind="stable")[:k]]
    return order[best]


def rank(
    scores_of: Callable[[Sequence[Sequence[int]]], np.ndarray],
    histories: Sequence[Sequence[int]],
    order: np.ndarray,
    k: int,
    unwanted: Sequence[Collection[int]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """``(B, k)`` item indexes, best first, and their ``(B, k)`` scores; -1 and -inf where only unwanted items are left.

    Args:
        scores_of: histories -> ``(B, N)``.
        unwanted: per history, items that must not be ranked.
    """
    found = []
    for start in range(0, len(histories), ROWS_AT_ONCE):
        scores = scores_of(histories[start : start + ROWS_AT_ONCE])
        for row, items in zip(
            scores, unwanted[start : start + ROWS_AT_ONCE] if unwanted else (), strict=False
        ):
            row[list(items)] = -np.inf
        items = top_k(scores, order, k)
        best = np.take_along_axis(scores, items, axis=1)
        found.append((np.where(best == -np.inf, -1, items), best))
    return np.concatenate([items for items, _ in found]), np.concatenate(
        [scores for _, scores in found]
    )


def ndcg_at_10(items: np.ndarray, samples: Sequence[Sample]) -> float:
    """Mean NDCG@10 of ``(B, >=10)`` ranked item indexes for the targets of the samples."""
    hits = items[:, :10] == np.array([sample.target for sample in samples])[:, None]
    return float((hits / np.log2(np.arange(hits.shape[1]) + 2)).sum(axis=1).mean())


def recent_candidates(train: Sequence[Sample], num_items: int) -> list[Rule]:
    """Popularity among the latest targets, for every share of them."""
    latest = np.array(
        [sample.target for sample in sorted(train, key=lambda sample: -sample.timestamp)],
        dtype=np.int64,
    )
    return [
        popularity(
            np.bincount(latest[: math.ceil(share * len(latest))], minlength=num_items), share=share
        )
        for share in LATEST_SHARES
    ]


def markov_candidates(sequences: Sequence[Sequence[int]], num_items: int) -> list[Rule]:
    """Every combination of reach, backward weight and window."""
    grid = [
        {"reach": reach, "backward": backward} for reach, backward in product(REACHES, BACKWARDS)
    ]
    matrices = [transition_counts(sequences, num_items, **choice) for choice in grid]
    return [
        item_to_item(matrix, window, **choice)
        for (matrix, choice), window in product(zip(matrices, grid, strict=True), WINDOWS)
    ]


def knn_candidates(sequences: Sequence[Sequence[int]], num_items: int) -> list[Rule]:
    """Every combination of shrinkage and window."""
    matrices = [item_cosine(sequences, num_items, shrinkage) for shrinkage in SHRINKAGES]
    return [
        item_to_item(matrix, window, shrinkage=shrinkage)
        for (matrix, shrinkage), window in product(zip(matrices, SHRINKAGES, strict=True), WINDOWS)
    ]


def text_candidates(embeddings: np.ndarray) -> list[Rule]:
    """Every window, with and without the items of the history."""
    return [
        text_neighbours(embeddings, window, again)
        for window, again in product(TEXT_WINDOWS, (True, False))
    ]


def choose(
    candidates: Sequence[Rule],
    valid: Sequence[Sample],
    order: np.ndarray,
    unwanted: Sequence[Collection[int]] | None = None,
) -> tuple[int, list[float]]:
    """The candidate with the best validation NDCG@10 (the first of equals), and the NDCG@10 of each.

    Without validation samples there is nothing to choose by: the first candidate, and an empty list.
    """
    if not valid:
        return 0, []
    histories = [sample.history for sample in valid]
    values = [
        ndcg_at_10(rank(rule.scores, histories, order, 10, unwanted)[0], valid)
        for rule in candidates
    ]
    return int(np.argmax(values)), values


def _flat(sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All sequences end to end ``(T,)``, and the number of the sequence each item is from ``(T,)``."""
    items = np.fromiter(chain.from_iterable(sequences), dtype=np.int64)
    return items, np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
