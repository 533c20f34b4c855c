"""What a training log holds, as series to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DRAWN = ("loss", "HR@", "NDCG@")  # a key with one of these in it is worth a curve


def log_series(log: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The losses, HR and NDCG of a log as key -> [(step, value), ...].

    >>> log_series([{"step": 1, "loss": 2.5, "lr": 0.1}, {"step": 2, "eval_NDCG@10": 0.1}])
    {'loss': [(1, 2.5)], 'eval_NDCG@10': [(2, 0.1)]}
    """
    series = {}
    for row in log:
        for key in row:
            if key not in series and any(part in key for part in DRAWN):
                points = key_series(log, key)
                if points:
                    series[key] = points
    return series


def key_series(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """One number of a log as [(step, value), ...]; empty where it is never logged."""
    points = []
    for row in log:
        if "step" in row and isinstance(row.get(key), (int, float)):
            points.append((row["step"], row[key]))
    return points
