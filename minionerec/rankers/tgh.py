"""TGH, a training-free control: near neighbours in the graph of transitions, ordered by text.

Han et al., arXiv:2605.07125: the latest one or two items are looked up in the graph of train
transitions, and each ring around them (the items that are exactly 1, 2, 3 steps away) gives a fixed
share of the list, ordered by the cosine of the texts; the first ring's items also earn for the
weight of their edge. A model that does not beat this on a data set has learnt only its surface.

* TGH-1: 7, 2 and 1 items of the rings 1, 2 and 3 around the latest item.
* TGH-2: 5 and 1 items of the rings 1 and 2 around the latest item, 3 and 1 of those around the item
  before it.

An edge a -> b stands for b following a directly in some train sequence; ring 1 holds the item
itself only where it followed itself. An edge earns ``alpha * log(1 + count)``, divided by the
largest such logarithm among the edges of a. Departures:

1. Lists are longer than ten items, so what the shares leave of the rings follows in the same order,
   and behind it the rest of the catalogue by cosine (the paper draws it at random).
2. The embeddings are the experiment's.
3. Variant and ``alpha`` are chosen on validation rows.

Shapes: B histories, N items, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sparse

from minionerec.rankers.baseline import Inputs, Ranking
from minionerec.rankers.item_matrices import transition_counts
from minionerec.rankers.rules import Rule, rank_with_best


class Share(NamedTuple):
    """So many items of a ring around the latest item (``ago`` 1) or the one before it (2)."""

    ago: int
    ring: int
    items: int


VARIANTS = {
    1: (Share(1, 1, 7), Share(1, 2, 2), Share(1, 3, 1)),
    2: (Share(1, 1, 5), Share(1, 2, 1), Share(2, 1, 3), Share(2, 2, 1)),
}
ALPHAS = (0.0, 0.5, 2.0)  # the paper's is 0.5


class Graph(NamedTuple):
    """Transitions and texts of a catalogue."""

    edges: sparse.csr_matrix  # (N, N) 0 or 1
    weights: sparse.csr_matrix  # (N, N) log(1 + count), the heaviest edge of an item at 1
    unit: np.ndarray  # (N, D) text embeddings of length 1


def rank_test(method: str, inputs: Inputs, directory: Path) -> Ranking:
    """Count on train, choose on validation, rank test; leaves nothing in ``directory``."""
    rules = candidates(
        inputs.samples.train_sequences,
        inputs.embeddings(),
        inputs.popularity_order(),
        again=inputs.unwanted is None,
    )
    return rank_with_best(method, rules, inputs)


def build_graph(sequences: Sequence[Sequence[int]], embeddings: np.ndarray) -> Graph:
    """Count the transitions of the train sequences.

    >>> build_graph([[0, 1], [0, 1], [0, 2]], np.eye(3)).weights.toarray().round(2)[0].tolist()
    [0.0, 1.0, 0.63]
    """
    counts = transition_counts(sequences, len(embeddings), reach=1, backward=0.0)
    counts.eliminate_zeros()
    weights = counts.log1p()
    heaviest = weights.max(axis=1).toarray().ravel()  # (N,)
    weights = sparse.diags(1.0 / np.where(heaviest > 0, heaviest, 1.0)) @ weights
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return Graph((counts > 0).astype(np.float32), weights.tocsr(), embeddings / lengths.clip(1e-12))


def rings(edges: sparse.csr_matrix, source: int, depth: int) -> list[np.ndarray]:
    """The items that are exactly 1, 2, ... ``depth`` steps from an item, each ring in item order.

    >>> chain = build_graph([[0, 1, 2, 3]], np.eye(4)).edges
    >>> [ring.tolist() for ring in rings(chain, source=1, depth=3)]
    [[2], [3], []]
    """
    reached = np.zeros(edges.shape[0], dtype=bool)
    found = []
    frontier = np.array([source])
    for _ in range(depth):
        ahead = np.unique(edges[frontier].indices)
        frontier = ahead[~reached[ahead]]
        reached[frontier] = True
        reached[source] = True  # after the first ring, which may hold it
        found.append(frontier)
    return found


def ordered_rings(
    graph: Graph,
    source: int,
    depth: int,
    alpha: float,
    places: np.ndarray,
) -> list[np.ndarray]:
    """The rings, each with its best item first; equals in the order of ``places`` ``(N,)``."""
    found = []
    for number, ring in enumerate(rings(graph.edges, source, depth)):
        value = graph.unit[ring] @ graph.unit[source]
        if number == 0:
            value = value + alpha * graph.weights[source].toarray().ravel()[ring]
        found.append(ring[np.lexsort((places[ring], -value))])
    return found


def tgh(graph: Graph, order: np.ndarray, variant: int, alpha: float, again: bool) -> Rule:
    """The rule of the module's docstring.

    Args:
        graph: from ``build_graph``.
        order: ``(N,)`` items, the one to prefer among equals first.
        variant: key of ``VARIANTS``.
        alpha: what the heaviest edge is worth, in units of cosine.
        again: whether items of the history take up places; False where they must not be ranked.
    """
    shares = VARIANTS[variant]
    depth = max(share.ring for share in shares)
    places = np.argsort(order)

    def scores(histories: Sequence[Sequence[int]]) -> np.ndarray:
        latest = [history[-1] for history in histories]
        table = graph.unit[latest] @ graph.unit.T  # (B, N) cosines, below every placed item
        sources = {item for history in histories for item in history[-2:]}
        rings_of = {item: ordered_rings(graph, item, depth, alpha, places) for item in sources}
        for row, history in enumerate(histories):
            free = np.ones(len(order), dtype=bool)
            if not again:
                free[list(history)] = False
            items = _place(history, rings_of, shares, free)
            table[row, items] = 2.0 + np.arange(len(items), 0, -1)
        return table

    made_with = {"variant": variant, "alpha": alpha}
    return Rule(scores, made_with, lambda: graph.edges.nnz + graph.unit.size)


def _place(
    history: Sequence[int],
    rings_of: dict[int, list[np.ndarray]],
    shares: Sequence[Share],
    free: np.ndarray,
) -> np.ndarray:
    """The items of all rings, best first: every ring's share, then what the shares left.

    Takes what it places out of ``free``.
    """
    picked = []
    for share in shares:
        if share.ago <= len(history):
            ring = rings_of[history[-share.ago]][share.ring - 1]
            picked.append(ring[free[ring]][: share.items])
            free[picked[-1]] = False
    for share in shares:
        if share.ago <= len(history):
            ring = rings_of[history[-share.ago]][share.ring - 1]
            picked.append(ring[free[ring]])
            free[picked[-1]] = False
    return np.concatenate(picked)


def candidates(
    sequences: Sequence[Sequence[int]],
    embeddings: np.ndarray,
    order: np.ndarray,
    again: bool,
) -> list[Rule]:
    """Every variant with every ``alpha``."""
    graph = build_graph(sequences, embeddings)
    return [
        tgh(graph, order, variant, alpha, again) for variant, alpha in product(VARIANTS, ALPHAS)
    ]
