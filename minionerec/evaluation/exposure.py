"""How recommendations are spread over the catalogue.

Shapes: n rows, W items of a list, N items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minionerec.evaluation.metrics import KS
from minionerec.evaluation.rows import ROWS_AT_ONCE


def exposure(
    items: np.ndarray, train_counts: np.ndarray, ks: Sequence[int] = KS
) -> dict[str, float]:
    """How the recommendations are spread; what is not in the catalogue does not count.

    For every K: ``coverage@K``, the share of the catalogue that is in some top K; ``gini@K`` of how
    often each item is in one (0 is even, near 1 is all on one item); ``mean_popularity@K``, train
    interactions of a recommended item; ``novelty@K``, mean self-information of a recommended item
    in bits (Zhou et al. 2010, doi:10.1073/pnas.1000488107), ``-log2 p`` with p its share of the
    train interactions. One is added to every item's count there, so that an item without any has
    p = 1 / (interactions + items).

    Args:
        items: ``(n, W)`` lists of item indexes; those outside 0 to N - 1 do not count.
        train_counts: ``(N,)``.
        ks: the lengths to look at.
    """
    num_items = len(train_counts)
    bits = -np.log2((train_counts + 1) / (train_counts.sum() + num_items))  # (N,)
    spread: dict[str, float] = {}
    for k in ks:
        shown = times_shown(items, num_items, k)  # (N,)
        slots = max(int(shown.sum()), 1)
        spread[f"coverage@{k}"] = np.count_nonzero(shown) / num_items
        spread[f"gini@{k}"] = gini(shown) if shown.any() else 0.0
        spread[f"mean_popularity@{k}"] = int(train_counts @ shown) / slots
        spread[f"novelty@{k}"] = math.fsum((bits * shown).tolist()) / slots
    return spread


def times_shown(items: np.ndarray, num_items: int, k: int) -> np.ndarray:
    """``(N,)`` in how many first-k lists each item of the catalogue stands."""
    shown = np.zeros(num_items, dtype=np.int64)
    for start in range(0, len(items), ROWS_AT_ONCE):
        block = items[start : start + ROWS_AT_ONCE, :k]
        known = block[(block >= 0) & (block < num_items)]
        shown += np.bincount(known, minlength=num_items)
    return shown


def gini(counts: np.ndarray) -> float:
    """Mean absolute difference of two draws over twice the mean.

    ``sum_i (2i - n - 1) x_(i) / (n sum x)`` with x sorted.

        >>> gini(np.array([1, 1, 1])), gini(np.array([0, 0, 4]))
        (0.0, 0.6666666666666666)
    """
    x = np.sort(counts)
    n = len(counts)
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float((weights * x).sum() / (n * x.sum()))
