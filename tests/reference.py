"""Slow, obviously right versions of what the library computes fast. Tests compare the two; nothing
else uses these.
"""

from __future__ import annotations

import itertools
import math


def plain_hr(ranked: list[str], target: str, k: int) -> float:
    """1 if the target is among the first k items of a list without ties."""
    return 1.0 if target in ranked[:k] else 0.0


def plain_ndcg(ranked: list[str], target: str, k: int) -> float:
    """DCG@k over ideal DCG@k, written out as two sums; relevance is 1 for the target and 0
    elsewhere.
    """
    relevance = [1.0 if item == target else 0.0 for item in ranked]
    dcg = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(relevance[:k]))
    return dcg / (1.0 / math.log2(2))


def plain_mrr(ranked: list[str], target: str) -> float:
    """1 / (1 + number of items before the target); 0 without the target."""
    return 1.0 / (ranked.index(target) + 1) if target in ranked else 0.0


def plain_recall(ranked: list[str], relevant: set[str], k: int) -> float:
    """Share of the relevant items that are among the first k."""
    return len(relevant & set(ranked[:k])) / len(relevant)


def every_order(groups: list[list[str]]) -> list[list[str]]:
    """All rankings that agree with the order of the groups: every permutation inside every group."""
    orders = [itertools.permutations(group) for group in groups]
    return [list(itertools.chain(*parts)) for parts in itertools.product(*orders)]


def expected_metrics(groups: list[list[str]], target: str, ks: tuple[int, ...]) -> dict[str, float]:
    """Average of HR, NDCG, MRR and Recall over every order of tied items."""
    rankings = every_order(groups)
    mean = {f"HR@{k}": sum(plain_hr(r, target, k) for r in rankings) / len(rankings) for k in ks}
    mean |= {
        f"NDCG@{k}": sum(plain_ndcg(r, target, k) for r in rankings) / len(rankings) for k in ks
    }
    mean |= {
        f"MRR@{k}": sum(plain_mrr(r[:k], target) for r in rankings) / len(rankings) for k in ks
    }
    mean |= {
        f"Recall@{k}": sum(plain_recall(r, {target}, k) for r in rankings) / len(rankings)
        for k in ks
    }
    return mean | {"MRR": sum(plain_mrr(r, target) for r in rankings) / len(rankings)}


def plain_gini(counts: list[int]) -> float:
    """Mean absolute difference of all pairs over twice the mean."""
    n, mean = len(counts), sum(counts) / len(counts)
    return sum(abs(x - y) for x in counts for y in counts) / (2 * n * n * mean)


def plain_exposure(
    lists: list[list[str]], catalogue: list[str], train_counts: dict[str, int], k: int
) -> dict[str, float]:
    """One recommendation after the other, every list already cut to k."""
    shown = [item for items in lists for item in items]
    total = sum(train_counts[item] for item in catalogue) + len(catalogue)
    return {
        f"coverage@{k}": sum(item in shown for item in catalogue) / len(catalogue),
        f"gini@{k}": plain_gini([shown.count(item) for item in catalogue]),
        f"mean_popularity@{k}": sum(train_counts[item] for item in shown) / len(shown),
        f"novelty@{k}": sum(math.log2(total / (train_counts[item] + 1)) for item in shown)
        / len(shown),
    }


def exact_randomisation_p_value(differences: list[float]) -> float:
    """Share of all 2^n sign patterns whose sum is at least as far from 0 as the observed one."""
    observed = abs(sum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    extreme = sum(
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed - 1e-12
        for signs in patterns
    )
    return extreme / len(patterns)
