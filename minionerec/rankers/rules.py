"""Rules that cost nothing to train, and that a generative recommender has to beat.

All rank the full catalogue, may recommend an item again, and break ties by popularity, then by item
order. Item-to-item rules (Markov, item-kNN, text-kNN) score an item by what it is to the recent
history, ``score[j] = sum_m M[h_m, j] / m`` with h_1 the latest item. The few choices they leave
open are a tiny grid that ``choose`` decides on validation targets; test targets are never read.

* Popularity: train interactions per item; recent popularity: only the latest share of the train
  targets counts.
* Repeat-last: the items of the history, the latest first.
* Markov and item-kNN: what followed, and what the same users have (``item_matrices.py``).
* Text-kNN: ``M[i, j]`` is the cosine of the two items' text embeddings, the ones that the SIDs are
  made from; whether items of the history may come again is one of the choices.

Shapes: B histories, N items, D width of an embedding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sparse

from minionerec.catalogue.samples import Sample, histories_of, targets_of, train_counts
from minionerec.experiment.run import say
from minionerec.rankers.baseline import Inputs, Ranking
from minionerec.rankers.item_matrices import (
    Matrix,
    both_ways,
    followers,
    item_cosine,
    latest_items,
    matrix_head,
    matrix_scores,
)
from minionerec.rankers.scores import (
    Histories,
    ScoresOf,
    ndcg_at_10,
    ndcg_of_ranks,
    rank_by_scores,
)
from minionerec.rankers.sparse_scores import (
    HEAD,
    HEAD_OF_TEN,
    HeadOf,
    SparseScoresOf,
    places_of,
    rank_by_sparse_scores,
    target_ranks,
)

# The grids.
WINDOWS = (3, 10)  # latest items that look things up
REACHES = (1, 3, 10)
BACKWARDS = (0.0, 0.5)
SHRINKAGES = (0.0, 20.0, 100.0)
LATEST_SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)
TEXT_WINDOWS = (1, 3, 10)
LAST = -10.0  # below any weighted sum of cosines


class Rule(NamedTuple):
    """A function from histories to scores, and how it was made."""

    scores: ScoresOf
    made_with: dict[str, Any]
    size: Callable[[], int]  # of how many numbers it consists
    sparse: SparseScoresOf | None = None  # the same scores without their zeros
    for_all: np.ndarray | None = None  # (N,) scores that do not depend on the history
    head: Callable[[np.ndarray], HeadOf] | None = None  # of those that come first in an order

    def rank(
        self,
        histories: Histories,
        order: np.ndarray,
        k: int,
        unwanted: Sequence[Collection[int]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As ``scores.rank_by_scores``, in the cheapest way."""
        if self.for_all is not None:
            return rank_alike(self.for_all, histories, order, k, unwanted)
        if self.sparse is not None:
            return rank_by_sparse_scores(
                self.sparse, histories, order, k, unwanted, self._head_of(order, HEAD)
            )
        return rank_by_scores(self.scores, histories, order, k, unwanted)

    def valid_ndcg_at_10(
        self,
        valid: Sequence[Sample],
        order: np.ndarray,
        unwanted: Sequence[Collection[int]] | None = None,
    ) -> float:
        """Mean NDCG@10 of validation rows."""
        histories = histories_of(valid)
        if self.sparse is None or unwanted:
            items, _ = self.rank(histories, order, 10, unwanted)
            return ndcg_at_10(items, valid)
        ranks = target_ranks(
            self.sparse, histories, targets_of(valid), order, self._head_of(order, HEAD_OF_TEN)
        )
        return ndcg_of_ranks(ranks)

    def _head_of(self, order: np.ndarray, size: int) -> HeadOf | None:
        return None if self.head is None else self.head(order[:size])


def rank_test(method: str, inputs: Inputs, directory: Path) -> Ranking:
    """Count on train, choose on validation, rank test; a rule leaves nothing in ``directory``."""
    return rank_with_best(method, candidates_of(method, inputs), inputs)


def rank_with_best(method: str, candidates: Sequence[Rule], inputs: Inputs) -> Ranking:
    """Choose among candidates on validation rows and rank the test rows with that one."""
    order = inputs.popularity_order()
    valid = inputs.samples.splits["valid"]
    best, values = choose(candidates, valid, order, inputs.unwanted_of("valid"))
    chosen = candidates[best]
    if len(candidates) > 1 and values:
        say(f"{method}: validation NDCG@10 {max(values):.4f} chooses {chosen.made_with}")
    elif len(candidates) > 1:
        say(f"{method}: no validation rows to choose by, taking {chosen.made_with}")
    tried = []
    for rule, value in zip(candidates, values, strict=False):  # no values without validation rows
        tried.append({**rule.made_with, "valid_NDCG@10": value})
    ready = time.perf_counter()
    histories = histories_of(inputs.samples.splits["test"])
    items, scores = chosen.rank(histories, order, inputs.depth, inputs.unwanted_of("test"))
    facts = {"chosen": chosen.made_with, "tried": tried}
    return Ranking(items, scores, facts, chosen.size(), ready)


def choose(
    candidates: Sequence[Rule],
    valid: Sequence[Sample],
    order: np.ndarray,
    unwanted: Sequence[Collection[int]] | None = None,
) -> tuple[int, list[float]]:
    """The candidate with the best validation NDCG@10 (the first of equals), and that of each.

    Without validation samples there is nothing to choose by: the first, and an empty list.
    """
    if not valid:
        return 0, []
    values = [rule.valid_ndcg_at_10(valid, order, unwanted) for rule in candidates]
    return int(np.argmax(values)), values


# -------------------------------------------------------------------------------------------------
# Rules


def item_to_item(matrix: Matrix, window: int, **made_with: float) -> Rule:
    """The rule of ``matrix_scores``."""
    rule = from_sparse(
        matrix_scores(matrix, window), {**made_with, "window": window}, lambda: matrix().nnz
    )
    return rule._replace(head=partial(matrix_head, matrix, window))


def from_sparse(scores: SparseScoresOf, made_with: dict[str, Any], size: Callable[[], int]) -> Rule:
    """A rule whose scores are sparse."""
    return Rule(lambda histories: scores(histories).toarray(), made_with, size, scores)


def popularity(counts: np.ndarray, **made_with: float) -> Rule:
    """The same counts ``(N,)`` for everybody."""

    def scores(histories: Histories) -> np.ndarray:
        return np.tile(counts.astype(float), (len(histories), 1))  # (B, N)

    return Rule(scores, made_with, lambda: len(counts), for_all=counts.astype(float))


def rank_alike(
    scores: np.ndarray,
    histories: Histories,
    order: np.ndarray,
    k: int,
    unwanted: Sequence[Collection[int]] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The same ``(N,)`` scores for everybody: one order, of which each gets the beginning."""
    best_first = np.lexsort((places_of(order), -scores))

    def nothing(block: Histories) -> sparse.csr_matrix:
        return sparse.csr_matrix((len(block), len(scores)))

    items, found = rank_by_sparse_scores(nothing, histories, best_first, k, unwanted)
    return items, np.where(items >= 0, scores[items], found)


def repeat_last(num_items: int) -> Rule:
    """The rule of ``repeat_scores``."""
    return from_sparse(repeat_scores(num_items), {}, lambda: 0)


def repeat_scores(num_items: int) -> SparseScoresOf:
    """1, 1/2, 1/3 ... for the items of the history from the latest on, each item once."""

    def scores(histories: Histories) -> sparse.csr_matrix:
        rows = []
        items = []
        weights = []
        for row, history in enumerate(histories):
            distinct = dict.fromkeys(reversed(history))
            for ago, item in enumerate(distinct, start=1):
                rows.append(row)
                items.append(item)
                weights.append(1.0 / ago)
        shape = (len(histories), num_items)
        return sparse.csr_matrix((weights, (rows, items)), shape=shape)

    return scores


def text_neighbours(embeddings: np.ndarray, window: int, again: bool) -> Rule:
    """Cosine to the latest items; without ``again`` items of the history come last."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / lengths.clip(min=1e-12)  # (N, D)

    def scores(histories: Histories) -> np.ndarray:
        recent = latest_items(histories, len(unit), window) @ unit  # (B, D)
        table = recent @ unit.T  # (B, N)
        if not again:
            for row, history in enumerate(histories):
                table[row, list(history)] = LAST
        return table

    return Rule(scores, {"window": window, "again": again}, lambda: unit.size)


# -------------------------------------------------------------------------------------------------
# What each method chooses from


def candidates_of(method: str, inputs: Inputs) -> list[Rule]:
    """The rules among which validation targets decide; one where nothing is open."""
    samples = inputs.samples
    num_items = len(samples.items)
    match method:
        case "popularity":
            return [popularity(train_counts(samples.train_sequences, num_items))]
        case "recent_popularity":
            return recent_candidates(samples.splits["train"], num_items)
        case "repeat_last":
            return [repeat_last(num_items)]
        case "markov":
            return markov_candidates(samples.train_sequences, num_items)
        case "item_knn":
            return knn_candidates(samples.train_sequences, num_items)
        case "text_knn":
            return text_candidates(inputs.embeddings())
        case _:
            raise ValueError(f"no rule of that name: {method}")


def recent_candidates(train: Sequence[Sample], num_items: int) -> list[Rule]:
    """Popularity among the latest targets, for every share of them."""
    by_time = sorted(train, key=lambda sample: -sample.timestamp)
    latest = np.array([sample.target for sample in by_time], dtype=np.int64)
    rules = []
    for share in LATEST_SHARES:
        counted = latest[: math.ceil(share * len(latest))]
        rules.append(popularity(np.bincount(counted, minlength=num_items), share=share))
    return rules


def markov_candidates(sequences: Sequence[Sequence[int]], num_items: int) -> list[Rule]:
    """Every combination of reach, backward weight and window.

    A matrix is counted when a rule is first asked, and only the latest one is kept.
    """
    latest: dict[int, sparse.csr_matrix] = {}  # reach -> counts

    def counts(reach: int) -> sparse.csr_matrix:
        """Counts of a reach; those of a shorter one are gone on from."""
        if reach not in latest:
            nearer = max((known for known in latest if known < reach), default=0)
            found = followers(sequences, num_items, reach, nearer, latest.get(nearer))
            latest.clear()
            latest[reach] = found
        return latest[reach]

    @lru_cache(maxsize=1)
    def made(reach: int, backward: float) -> sparse.csr_matrix:
        """The matrix of a combination."""
        return both_ways(counts(reach), backward)

    rules = []
    for reach, backward in product(REACHES, BACKWARDS):
        matrix = partial(made, reach, backward)
        for window in WINDOWS:
            rules.append(item_to_item(matrix, window, reach=reach, backward=backward))
    return rules


def knn_candidates(sequences: Sequence[Sequence[int]], num_items: int) -> list[Rule]:
    """Every combination of shrinkage and window."""
    made = lru_cache(maxsize=1)(partial(item_cosine, sequences, num_items))
    rules = []
    for shrinkage in SHRINKAGES:
        matrix = partial(made, shrinkage)
        for window in WINDOWS:
            rules.append(item_to_item(matrix, window, shrinkage=shrinkage))
    return rules


def text_candidates(embeddings: np.ndarray) -> list[Rule]:
    """Every window, with and without the items of the history."""
    grid = product(TEXT_WINDOWS, (True, False))
    return [text_neighbours(embeddings, window, again) for window, again in grid]
