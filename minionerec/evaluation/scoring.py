"""From predictions to the content of ``metrics.json``: metrics, slices, exposure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minionerec.errors import UserError
from minionerec.evaluation.metrics import KS, Prediction, SidOf, _mean, measured_ks, row_metrics
from minionerec.evaluation.statistics import bootstrap_intervals

HISTORY_BUCKETS = ((1, 1), (2, 4), (5, 9), (10, math.inf))  # items in the history, inclusive bounds


def score_predictions(
    predictions: Sequence[Prediction],
    sid_of: SidOf | None,
    catalogue: Sequence[str],
    train_counts: Mapping[str, int],
    histories: Sequence[Sequence[str]] | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 42,
    depth: int | None = None,
) -> dict[str, Any]:
    """What ``metrics.json`` says about a ranking.

    Args:
        predictions: one per test row, in any order.
        sid_of: item -> SID, None for a ranker that knows items apart.
        catalogue: every item id that may be recommended.
        train_counts: item -> train interactions; absent is 0.
        histories: item ids before the target, oldest first, parallel to ``predictions``; None: no slices that need them.
        bootstrap_samples: resamples of the intervals; 0 leaves ``intervals`` empty.
        seed: of the resampling.
        depth: how many items a list was asked for; by default the longest list counts.

    Returns:
        ``HR@K``, ``NDCG@K``, ``MRR@K``, ``Recall@K`` for the K of ``measured_ks`` and, with the last of ``KS`` among them,
        ``MRR`` over the whole list; the same under ``sid_level`` and, as difference to the item level, ``inflation``;
        ``num_users``, ``num_rows``; what ``exposure`` says of each K; ``invalid`` and ``duplicates``; ``intervals`` key ->
        [low, high]; ``slices`` kind -> name -> HR@10, NDCG@10, count.

    Raises:
        UserError: a row lacks a key, names a target outside the catalogue, or there is no row.
    """
    known = set(catalogue)
    check_predictions(predictions, known)
    predictions, histories = _sorted_rows(predictions, histories)
    ks = measured_ks(
        depth if depth is not None else max(len(row["item_ids"]) for row in predictions), len(known)
    )
    item_level, sid_level = (
        {key: values for key, values in level.items() if int(key.partition("@")[2] or KS[-1]) in ks}
        for level in row_metrics(predictions, sid_of)
    )
    means, sid_means = (
        {key: _mean(values) for key, values in level.items()} for level in (item_level, sid_level)
    )
    users = [row["user_id"] for row in predictions]
    return {
        **means,
        "sid_level": sid_means,
        "inflation": {key: sid_means[key] - means[key] for key in means},
        "num_users": len(set(users)),
        "num_rows": len(predictions),
        **exposure([row["item_ids"] for row in predictions], catalogue, train_counts, ks),
        "invalid": sum(item not in known for row in predictions for item in row["item_ids"]),
        "duplicates": sum(len(row["item_ids"]) - len(set(row["item_ids"])) for row in predictions),
        "intervals": bootstrap_intervals(item_level, users, bootstrap_samples, seed),
        "slices": sliced(item_level, slice_names(predictions, histories, train_counts)),
    }


def check_predictions(predictions: Sequence[Prediction], catalogue: set[str]) -> None:
    """Refuse rows that cannot be scored.

    Raises:
        UserError: naming the first such row, counted from 1.
    """
    if not predictions:
        raise UserError("predictions: there is no row to score; the split that was ranked is empty")
    for number, row in enumerate(predictions, start=1):
        missing = [
            key for key in ("user_id", "target_item_id", "item_ids", "scores") if key not in row
        ]
        if missing:
            raise UserError(
                f"predictions, row {number}: has no '{missing[0]}'; "
                "expected user_id, target_item_id, item_ids, scores"
            )
        if len(row["item_ids"]) != len(row["scores"]):
            raise UserError(
                f"predictions, row {number}: {len(row['item_ids'])} item_ids but {len(row['scores'])} scores; "
                "expected one score per item"
            )
        if row["target_item_id"] not in catalogue:
            raise UserError(
                f"predictions, row {number}: target '{row['target_item_id']}' is not in the catalogue; "
                "these predictions belong to other data, make them again"
            )


def exposure(
    lists: Sequence[Sequence[str]],
    catalogue: Sequence[str],
    train_counts: Mapping[str, int],
    ks: Sequence[int] = KS,
) -> dict[str, float]:
    """How the recommendations are spread over the catalogue; ids that are not in it do not count.

    For every K: ``coverage@K``, the share of the catalogue that is in some top K; ``gini@K`` of how often each item is in one
    (0 is even, near 1 is all on one item); ``mean_popularity@K``, train interactions of a recommended item; ``novelty@K``, mean
    self-information of a recommended item in bits (Zhou et al. 2010, doi:10.1073/pnas.1000488107), ``-log2 p`` with p its share
    of the train interactions. One is added to every item's count there, so that an item without any has
    p = 1 / (interactions + items).
    """
    n, index = len(catalogue), {item: i for i, item in enumerate(catalogue)}
    popularity = np.array([train_counts.get(item, 0) for item in catalogue])
    bits = -np.log2((popularity + 1) / (popularity.sum() + n))
    spread: dict[str, float] = {}
    for k in ks:
        shown = np.bincount(
            [index[item] for items in lists for item in items[:k] if item in index], minlength=n
        )
        slots = max(int(shown.sum()), 1)
        spread |= {
            f"coverage@{k}": np.count_nonzero(shown) / n,
            f"gini@{k}": gini(shown) if shown.any() else 0.0,
            f"mean_popularity@{k}": int(popularity @ shown) / slots,
            f"novelty@{k}": math.fsum(bits * shown) / slots,
        }
    return spread


def gini(counts: np.ndarray) -> float:
    """Mean absolute difference of two draws over twice the mean: ``sum_i (2i - n - 1) x_(i) / (n sum x)``, x sorted."""
    x, n = np.sort(counts), len(counts)
    return float(((2 * np.arange(1, n + 1) - n - 1) * x).sum() / (n * x.sum()))


def slice_names(
    predictions: Sequence[Prediction],
    histories: Sequence[Sequence[str]] | None,
    train_counts: Mapping[str, int],
) -> dict[str, list[str]]:
    """For every kind of slice the slice each row belongs to: kind -> ``(rows,)`` names.

    ``target_popularity`` splits by train interactions: items are ordered by count, and a third of all interactions each
    makes head, mid and tail (items with equal counts stay together); cold items have none.
    """
    targets = [row["target_item_id"] for row in predictions]
    kind_of = popularity_thirds(train_counts)
    names = {"target_popularity": [kind_of.get(target, "cold") for target in targets]}
    if histories is None:
        return names
    yes_no = {True: "yes", False: "no"}
    return names | {
        "history_length": [_bucket(len(history)) for history in histories],
        "target_in_history": [
            yes_no[target in history] for target, history in zip(targets, histories, strict=True)
        ],
        "target_repeats_last": [
            yes_no[history[-1:] == [target]]
            for target, history in zip(targets, map(list, histories), strict=True)
        ],
    }


def popularity_thirds(train_counts: Mapping[str, int]) -> dict[str, str]:
    """head, mid or tail for every item with a train interaction: the third of all interactions in which its count lies.

    >>> popularity_thirds({"a": 5, "b": 2, "c": 2, "d": 1, "e": 0})  # more popular: 0, 5, 5, 9 of 10
    {'a': 'head', 'b': 'mid', 'c': 'mid', 'd': 'tail'}
    """
    total = sum(train_counts.values())
    per_count = Counter(count for count in train_counts.values() if count > 0)
    third, above = {}, 0
    for count in sorted(per_count, reverse=True):
        third[count] = ("head", "mid", "tail")[3 * above // total]
        above += count * per_count[count]
    return {item: third[count] for item, count in train_counts.items() if count > 0}


def sliced(
    values: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, dict[str, float]]]:
    """HR@10, NDCG@10 (where they are measured) and the number of rows of every slice that has rows."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for kind, of_row in names.items():
        rows = defaultdict(list)
        for index, name in enumerate(of_row):
            rows[name].append(index)
        shown = [key for key in ("HR@10", "NDCG@10") if key in values]
        table[kind] = {
            name: {
                **{key: _mean(values[key][rows[name]]) for key in shown},
                "count": len(rows[name]),
            }
            for name in sorted(rows)
        }
    return table


def _sorted_rows(
    predictions: Sequence[Prediction], histories: Sequence[Sequence[str]] | None
) -> tuple[list[Prediction], list[list[str]] | None]:
    """Rows in an order that depends on their content alone."""
    if histories is not None and len(histories) != len(predictions):
        raise UserError(
            f"histories: got {len(histories)} for {len(predictions)} predictions; expected one per row"
        )
    pairs = zip(
        predictions, histories if histories is not None else [()] * len(predictions), strict=True
    )
    ordered = sorted(
        ((row, list(history)) for row, history in pairs),
        key=lambda pair: (
            pair[0]["user_id"],
            pair[0]["target_item_id"],
            pair[0]["item_ids"],
            pair[1],
        ),
    )
    return [row for row, _ in ordered], None if histories is None else [
        history for _, history in ordered
    ]


def _bucket(length: int) -> str:
    low, high = next(bounds for bounds in HISTORY_BUCKETS if length <= bounds[1])
    return f"{low}" if low == high else f"{low}-{high}" if high < math.inf else f"{low}+"
