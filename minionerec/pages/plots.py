"""Curves of a training run as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer

from minionerec.errors import UserError
from minionerec.training.checkpoints import clean_history


def save_log(trainer: Trainer, directory: Path) -> None:
    """``log.jsonl`` and ``curves.png`` of a finished run."""
    rows = clean_history(trainer.state.log_history)
    with open(directory / "log.jsonl", "w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)
    curves(rows, directory / "curves.png")


def curves(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss (left) and HR / NDCG on validation rows (right) over optimiser steps, as a PNG with reproducible bytes.

    Args:
        log: rows of ``log.jsonl``; a row without ``step`` belongs to no point in time and is not drawn.
        path: file to write.

    Raises:
        UserError: the log holds no number to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    series = log_series(log)
    if not series:
        raise UserError(
            f"{path}: cannot be drawn, the log has no row with 'step' and a loss or metric"
        )
    panels = [
        [key for key in series if "loss" in key],
        [key for key in series if "loss" not in key],
    ]
    panels = [keys for keys in panels if keys]
    figure = Figure(figsize=(6 * len(panels), 4), layout="constrained")
    for axes, keys in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for key in keys:
            axes.plot(
                *zip(*series[key], strict=True),
                label=key,
                marker="." if len(series[key]) < 50 else "",
            )
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def log_series(log: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The losses, HR and NDCG of a log as key -> [(step, value), ...].

    >>> log_series([{"step": 1, "loss": 2.5, "lr": 0.1}, {"step": 2, "eval_NDCG@10": 0.1}, {"done": True}])
    {'loss': [(1, 2.5)], 'eval_NDCG@10': [(2, 0.1)]}
    """
    drawn = dict.fromkeys(
        key for row in log for key in row if "loss" in key or "HR@" in key or "NDCG@" in key
    )
    return {key: points for key in drawn if (points := key_series(log, key))}


def key_series(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """One number of a log as [(step, value), ...]; empty where it is never logged."""
    return [
        (row["step"], row[key])
        for row in log
        if "step" in row and isinstance(row.get(key), (int, float))
    ]
