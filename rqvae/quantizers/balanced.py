"""Balanced residual k-means: at every level each code gets ``n // K`` or ``n // K + 1`` items.

Lloyd iterations whose assignment step is a transport problem: least total squared distance with
every cluster filled to its capacity. The idea of balanced residual quantisation is OneRec's
(arXiv:2502.18965, section 3.1, algorithm 1), which fills clusters greedily; here the assignment is
exact. Items choose the code with the least ``distance + price``, prices are first tuned by dual
(sub)gradient steps, then what is still over a capacity is moved along shortest paths in the graph
of clusters (successive shortest paths, Ahuja, Magnanti and Orlin, *Network Flows*, section 9.7).
Only K prices and a K x K graph, never an N x N matrix: about ``N K`` numbers per price step and
``K^2 + N`` per item moved. Large catalogues fit the centroids on a sample, and assign all items
once per level.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rqvae.quantizers.rqkmeans import (
    Quantised,
    cluster_means,
    fit_levels,
    kmeans,
    sample,
    squared_distances,
)

PRICE_STEPS = 50
STEP_ROWS = 4096  # items that the size of the first price step is estimated from
BALANCED_ROUNDS = 10  # balanced Lloyd iterations after the plain ones, at most


def fit_balanced_rqkmeans(
    embeddings: np.ndarray,
    sizes: list[int],
    iterations: int,
    seed: int,
) -> Quantised:
    """Residual k-means whose clusters have equal size, within one item, at every level.

    The prices are stored as ``price.<level>``: with them a new item joins the code that it would
    have had as one of the fitted ones, and near-duplicates stay together.
    """
    prices = {}

    def fit_level(
        residual: np.ndarray,
        size: int,
        level: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit on a sample, assign all: ``(N,)`` codes, ``(K, D)`` codebook."""
        points = sample(residual, size, seed + level)
        codebook = kmeans(points, size, iterations, seed + level)
        codes, price, codebook = balanced_lloyd(points, codebook, min(iterations, BALANCED_ROUNDS))
        if len(points) < len(residual):
            codes, price = balanced_assignment(squared_distances(residual, codebook), price)
            codebook = cluster_means(residual, codes, size)
        prices[f"price.{level}"] = price.astype(np.float32)
        return codes, codebook

    fitted = fit_levels(embeddings, sizes, fit_level)
    return replace(fitted, tensors={**fitted.tensors, **prices})


def balanced_lloyd(
    points: np.ndarray, codebook: np.ndarray, rounds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From the centroids of plain k-means.

    ``(N,)`` codes in equal shares, ``(K,)`` prices, ``(K, D)`` cluster means.
    """
    price = np.zeros(len(codebook))
    codes = np.full(len(points), -1)
    for _ in range(rounds):
        before = codes
        codes, price = balanced_assignment(squared_distances(points, codebook), price)
        codebook = cluster_means(points, codes, len(codebook))
        if (codes == before).all():
            break
    return codes, price, codebook


def balanced_assignment(cost: np.ndarray, price: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest assignment in which every column gets ``N // K`` or ``N // K + 1`` rows.

    Which columns get one more is decided by demand, most wanted first, ties to the lower number.

    Args:
        cost: ``(N, K)``, N at least K.
        price: ``(K,)`` to start from, e.g. those of a similar problem; any values give the same
            total cost.

    Returns:
        ``(N,)`` columns, and ``(K,)`` prices under which each row's column is its cheapest.
    """
    rows, columns = cost.shape
    codes = cheapest_column(cost, tune_prices(cost, price))
    wanted = np.bincount(codes, minlength=columns)
    capacity = np.full(columns, rows // columns)
    capacity[np.argsort(-wanted, kind="stable")[: rows % columns]] += 1
    return move_surplus(cost, codes, capacity)


def tune_prices(cost: np.ndarray, price: np.ndarray) -> np.ndarray:
    """Raise the price of overfull columns, lower that of others, by ever smaller steps.

    Keeps the best prices seen.
    """
    rows, columns = cost.shape
    two_best = np.zeros((1, 2))
    if columns > 1:
        two_best = np.partition(cost[:STEP_ROWS], 1, axis=1)[:, :2]
    # what it takes an average row to change its column
    step = float((two_best[:, 1] - two_best[:, 0]).mean())
    fair = rows / columns
    best = price
    least = np.inf
    for turn in range(PRICE_STEPS):
        counts = np.bincount(cheapest_column(cost, price), minlength=columns)
        surplus = np.maximum(counts - fair, 0).sum()
        if surplus < least:
            best = price
            least = surplus
        demand = np.clip(counts / fair - 1, -1, 1)
        price = price + step / np.sqrt(1 + turn) * demand
    return best


def cheapest_column(cost: np.ndarray, price: np.ndarray) -> np.ndarray:
    """``(N,)`` column with the least cost plus price of each row, block by block."""
    rows = max(1, 2**18 // cost.shape[1])  # blocks keep the sums in the cache
    columns = []
    for start in range(0, len(cost), rows):
        priced = cost[start : start + rows] + price
        columns.append(priced.argmin(axis=1))
    return np.concatenate(columns)


def move_surplus(
    cost: np.ndarray, codes: np.ndarray, capacity: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move rows from overfull to underfull columns, each time along the cheapest chain of moves.

    If ``codes`` is the cheapest assignment with its own column counts (the case when every row sits
    in its cheapest column under some prices), the result is the cheapest with ``capacity`` as
    counts, which must add up to N.

    Returns:
        ``(N,)`` columns, and prices as for ``balanced_assignment``.
    """
    codes = codes.copy()
    excess = np.bincount(codes, minlength=len(capacity)) - capacity
    shape = (len(capacity), len(capacity))
    # step[a, b]: cheapest change of cost when one row of column a, mover[a, b], goes to column b
    step = np.full(shape, np.inf)
    mover = np.zeros(shape, np.int64)
    stale = list(range(len(capacity)))
    while True:
        for column in stale:
            members = np.flatnonzero(codes == column)
            if len(members):
                prices = cost[members].astype(np.float64)
                own = cost[members, column].astype(np.float64)
                change = prices - own[:, None]
                mover[column] = members[change.argmin(axis=0)]
                step[column] = change.min(axis=0)
            else:
                step[column] = np.inf
        if not (excess > 0).any():
            return codes, -shortest_paths(step, np.zeros(len(capacity)))[0]
        distance, previous = shortest_paths(step, np.where(excess > 0, 0.0, np.inf))
        target = int(np.where(excess < 0, distance, np.inf).argmin())
        chain = [target]
        while previous[chain[-1]] >= 0:
            chain.append(int(previous[chain[-1]]))
        for to, start in zip(chain, chain[1:], strict=False):
            codes[mover[start, to]] = to
        excess[chain[-1]] -= 1
        excess[target] += 1
        stale = chain


def shortest_paths(step: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bellman-Ford in a graph without negative cycles.

    Args:
        step: ``(K, K)`` length of the edge from row to column.
        start: ``(K,)`` length with which a path may begin at each node; infinite: it may not.

    Returns:
        ``(K,)`` length of the shortest path to each node, and the node before it (-1: a path begins
        there).
    """
    distance = start.copy()
    previous = np.full(len(start), -1)
    # A gain within rounding of the lengths is none: following it could close a circle.
    lengths = np.abs(step[np.isfinite(step)])
    least_gain = 1e-12 * lengths.max(initial=0.0)
    for _ in range(len(start)):
        through = distance[:, None] + step
        before = through.argmin(axis=0)
        shorter = through[before, np.arange(len(start))]
        better = shorter < distance - least_gain
        if not better.any():
            break
        distance = np.where(better, shorter, distance)
        previous = np.where(better, before, previous)
    return distance, previous
