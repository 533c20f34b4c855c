"""From ranked rows to the content of ``metrics.json``: metrics, intervals, exposure, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minionerec.evaluation.exposure import exposure
from minionerec.evaluation.metrics import (
    KS,
    SidOf,
    Values,
    as_string,
    mean,
    measured_ks,
    values_of,
)
from minionerec.evaluation.row_places import find_targets, repeats, tie_groups
from minionerec.evaluation.rows import (
    NOTHING,
    ROWS_AT_ONCE,
    Prediction,
    RankedRows,
    rows_of_records,
)
from minionerec.evaluation.slices import (
    Intervals,
    Pairs,
    slice_columns,
    slice_intervals_of,
    slice_names,
    sliced,
)
from minionerec.evaluation.statistics import Users, intervals_by, resampled_sums, user_sums


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
    """What ``metrics.json`` says about the rows of a ``predictions.jsonl``.

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
        As ``score_rows``.

    Raises:
        UserError: a row lacks a key, names a target outside the catalogue, or there is no row.
    """
    rows = rows_of_records(
        predictions,
        catalogue,
        histories,
    )
    counts = [train_counts.get(item, 0) for item in rows.item_ids[: rows.num_items]]
    return score_rows(
        rows, sid_of, np.array(counts), bootstrap_samples, seed, depth, train_pairs=train_pairs
    )


def score_rows(
    rows: RankedRows,
    sid_of: SidOf | None,
    train_counts: np.ndarray,
    bootstrap_samples: int = 1000,
    seed: int = 42,
    depth: int | None = None,
    train_pairs: Pairs | None = None,
) -> dict[str, Any]:
    """What ``metrics.json`` says about a ranking.

    Args:
        rows: in any order.
        sid_of: item -> SID, None for a ranker that knows items apart.
        train_counts: ``(N,)``.
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
    """
    if depth is None:
        depth = int((rows.items != NOTHING).sum(axis=1).max())
    ks = measured_ks(depth, rows.num_items)
    groups = None if sid_of is None else tie_groups(rows.item_ids, sid_of)
    distinct, of_row = find_targets(rows, groups)
    # Sums of rows round by their order: they are added up in one that only their content decides
    order = rows.canonical_order()
    of_row = of_row[order]
    users = rows.users[order]

    table = values_of(distinct)
    table_of_sids = values_of(map(as_string, distinct))
    item_level = {}
    means = {}
    sid_means = {}
    inflation = {}
    for key in table:
        if not is_measured(key, ks):
            continue
        item_level[key] = table[key][of_row]
        means[key] = mean(item_level[key])
        sid_means[key] = mean(table_of_sids[key][of_row])
        inflation[key] = sid_means[key] - means[key]
    names = slice_names(
        rows.targets,
        rows.histories,
        train_counts,
        train_pairs,
    )
    names = {kind: of_kind[order] for kind, of_kind in names.items()}
    intervals, slice_intervals = intervals_of(
        item_level,
        names,
        users,
        bootstrap_samples,
        seed,
    )
    return {
        **means,
        "sid_level": sid_means,
        "inflation": inflation,
        "num_users": len(np.unique(users)),
        "num_rows": len(rows),
        **exposure(
            rows.items,
            train_counts,
            ks,
        ),
        "invalid": int((rows.items >= rows.num_items).sum()),
        "duplicates": count_duplicates(rows.items),
        "intervals": intervals,
        "slices": sliced(item_level, names),
        "slice_intervals": slice_intervals,
    }


def intervals_of(
    values: Values,
    names: Mapping[str, np.ndarray],
    users: Users,
    samples: int,
    seed: int,
) -> tuple[dict[str, list[float]], Intervals]:
    """95 % bootstrap intervals of the metrics and of their slices, all from the same draws.

    Args:
        values: key -> ``(rows,)``.
        names: kind -> ``(rows,)`` the slice of each row.
        users: whose row it is, ``(rows,)``.
        samples: number of resamples; 0 gives empty dicts.
        seed: of the draws.
    """
    if not samples or not values:
        return {}, {}
    columns = slice_columns(values, names)
    sums, sizes = user_sums(
        values.values(),
        users,
        len(values),
    )
    tables = [sums, sizes]
    if columns:
        made = (make() for _, make in columns)
        of_slices, _ = user_sums(
            made,
            users,
            len(columns),
        )
        tables.append(of_slices)
    # The same draws serve everything: drawing is what takes the time
    drawn = resampled_sums(
        tables,
        samples,
        seed,
    )
    intervals = intervals_by(
        values,
        drawn[0],
        drawn[1],
    )
    if not columns:
        return intervals, {}
    return intervals, slice_intervals_of([place for place, _ in columns], drawn[2])


def is_measured(key: str, ks: Sequence[int]) -> bool:
    """Whether the K of a key is among ``ks``; ``MRR`` stands for the last of ``KS``."""
    return int(key.partition("@")[2] or KS[-1]) in ks


def count_duplicates(items: np.ndarray) -> int:
    """Recommended items that stand in their list already."""
    blocks = range(
        0,
        len(items),
        ROWS_AT_ONCE,
    )
    return sum(int(repeats(items[start : start + ROWS_AT_ONCE]).sum()) for start in blocks)
