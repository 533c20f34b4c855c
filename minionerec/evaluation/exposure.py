"""How recommendations are spread over the catalogue. Shapes: N items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from minionerec.evaluation.metrics import KS


def exposure(
    lists: Sequence[Sequence[str]],
    catalogue: Sequence[str],
    train_counts: Mapping[str, int],
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """How the recommendations are spread; ids that are not in the catalogue do not count.

    For every K: ``coverage@K``, the share of the catalogue that is in some top K; ``gini@K`` of how
    often each item is in one (0 is even, near 1 is all on one item); ``mean_popularity@K``, train
    interactions of a recommended item; ``novelty@K``, mean self-information of a recommended item
    in bits (Zhou et al. 2010, doi:10.1073/pnas.1000488107), ``-log2 p`` with p its share of the
    train interactions. One is added to every item's count there, so that an item without any has
    p = 1 / (interactions + items).
    """
    num_items = len(catalogue)
    index = {item: i for i, item in enumerate(catalogue)}
    popularity = np.array([train_counts.get(item, 0) for item in catalogue])  # (N,)
    bits = -np.log2((popularity + 1) / (popularity.sum() + num_items))  # (N,)
    spread: dict[str, float] = {}
    for k in ks:
        shown = times_shown(lists, index, k)  # (N,)
        slots = max(int(shown.sum()), 1)
        spread[f"coverage@{k}"] = np.count_nonzero(shown) / num_items
        spread[f"gini@{k}"] = gini(shown) if shown.any() else 0.0
        spread[f"mean_popularity@{k}"] = int(popularity @ shown) / slots
        spread[f"novelty@{k}"] = math.fsum(bits * shown) / slots
    return spread


def times_shown(lists: Sequence[Sequence[str]], index: Mapping[str, int], k: int) -> np.ndarray:
    """``(N,)`` in how many first-k lists each item of the catalogue stands."""
    places = []
    for items in lists:
        for item in items[:k]:
            if item in index:
                places.append(index[item])
    return np.bincount(places, minlength=len(index))


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
