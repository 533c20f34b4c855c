"""From predictions to the content of ``metrics.json``: metrics, intervals, exposure, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minionerec.errors import UserError
from minionerec.evaluation.exposure import exposure
from minionerec.evaluation.metrics import (
    KS,
    Prediction,
    SidOf,
    Values,
    mean,
    measured_ks,
    row_metrics,
)
from minionerec.evaluation.slices import Pairs, slice_intervals, slice_names, sliced
from minionerec.evaluation.statistics import bootstrap_intervals

ROW_KEYS = ("user_id", "target_item_id", "item_ids", "scores")


def score_predictions(
    predictions: Sequence[Prediction],
    sid_of: SidOf | None,
    catalogue: Sequence[str],
    train_counts: Mapping[str, int],
    histories: Sequence[Sequence[str]] | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 42,
    depth: int | None = None,
    train_pairs: Pairs | None = None,
) -> dict[str, Any]:
    """What ``metrics.json`` says about a ranking.

    Args:
        predictions: one per test row, in any order.
        sid_of: item -> SID, None for a ranker that knows items apart.
        catalogue: every item id that may be recommended.
        train_counts: item -> train interactions; absent is 0.
        histories: item ids before the target, oldest first, parallel to ``predictions``; None: no
            slices that need them.
        bootstrap_samples: resamples of the intervals; 0 leaves ``intervals`` empty.
        seed: of the resampling.
        depth: how many items a list was asked for; by default the longest list counts.
        train_pairs: items that follow each other directly in train; None: no slice by them.

    Returns:
        ``HR@K``, ``NDCG@K``, ``MRR@K``, ``Recall@K`` for the K of ``measured_ks`` and, with the
        last of ``KS`` among them, ``MRR`` over the whole list; the same under ``sid_level`` and, as
        difference to the item level, ``inflation``; ``num_users``, ``num_rows``; what ``exposure``
        says of each K; ``invalid`` and ``duplicates``; ``intervals`` key -> [low, high]; ``slices``
        kind -> name -> HR@10, NDCG@10, count; their intervals in ``slice_intervals``.

    Raises:
        UserError: a row lacks a key, names a target outside the catalogue, or there is no row.
    """
    known = set(catalogue)
    check_predictions(predictions, known)
    predictions, histories = sorted_rows(predictions, histories)
    lists = [row["item_ids"] for row in predictions]
    users = [row["user_id"] for row in predictions]
    if depth is None:
        depth = max(map(len, lists))
    ks = measured_ks(depth, len(known))

    all_items, all_sids = row_metrics(predictions, sid_of)
    item_level = only_measured(all_items, ks)
    names = slice_names(predictions, histories, train_counts, train_pairs)
    sid_level = only_measured(all_sids, ks)
    means = {}
    sid_means = {}
    inflation = {}
    for key in item_level:
        means[key] = mean(item_level[key])
        sid_means[key] = mean(sid_level[key])
        inflation[key] = sid_means[key] - means[key]
    return {
        **means,
        "sid_level": sid_means,
        "inflation": inflation,
        "num_users": len(set(users)),
        "num_rows": len(predictions),
        **exposure(lists, catalogue, train_counts, ks),
        "invalid": count_invalid(lists, known),
        "duplicates": count_duplicates(lists),
        "intervals": bootstrap_intervals(item_level, users, bootstrap_samples, seed),
        "slices": sliced(item_level, names),
        "slice_intervals": slice_intervals(item_level, names, users, bootstrap_samples, seed),
    }


def only_measured(values: Values, ks: Sequence[int]) -> Values:
    """The keys whose K is among ``ks``; ``MRR`` stands for the last of ``KS``."""
    kept = {}
    for key, rows in values.items():
        k = int(key.partition("@")[2] or KS[-1])
        if k in ks:
            kept[key] = rows
    return kept


def count_invalid(lists: Sequence[Sequence[str]], catalogue: set[str]) -> int:
    """Recommended ids that the catalogue does not have."""
    count = 0
    for items in lists:
        count += sum(item not in catalogue for item in items)
    return count


def count_duplicates(lists: Sequence[Sequence[str]]) -> int:
    """Recommended ids that stand in their list already."""
    return sum(len(items) - len(set(items)) for items in lists)


def check_predictions(predictions: Sequence[Prediction], catalogue: set[str]) -> None:
    """Refuse rows that cannot be scored.

    Raises:
        UserError: naming the first such row, counted from 1.
    """
    if not predictions:
        raise UserError("predictions: there is no row to score; the split that was ranked is empty")
    for number, row in enumerate(predictions, start=1):
        for key in ROW_KEYS:
            if key not in row:
                raise UserError(
                    f"predictions, row {number}: has no '{key}'; expected {', '.join(ROW_KEYS)}"
                )
        if len(row["item_ids"]) != len(row["scores"]):
            raise UserError(
                f"predictions, row {number}: {len(row['item_ids'])} item_ids but "
                f"{len(row['scores'])} scores; expected one score per item"
            )
        if row["target_item_id"] not in catalogue:
            raise UserError(
                f"predictions, row {number}: target '{row['target_item_id']}' is not in the "
                "catalogue; these predictions belong to other data, make them again"
            )


def sorted_rows(
    predictions: Sequence[Prediction], histories: Sequence[Sequence[str]] | None
) -> tuple[list[Prediction], list[list[str]] | None]:
    """Rows, each with its history, in an order that depends on their content alone.

    Raises:
        UserError: there are more or fewer histories than rows.
    """
    if histories is not None and len(histories) != len(predictions):
        raise UserError(
            f"histories: got {len(histories)} for {len(predictions)} predictions; "
            "expected one per row"
        )
    keys = []
    for number, row in enumerate(predictions):
        history = list(histories[number]) if histories is not None else []
        keys.append((row["user_id"], row["target_item_id"], row["item_ids"], history))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rows = [predictions[i] for i in order]
    if histories is None:
        return rows, None
    return rows, [list(histories[i]) for i in order]
