"""Curves of a training run as a PNG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import Trainer

from minionerec.errors import UserError
from minionerec.pages.series import log_series
from minionerec.training.checkpoints import clean_history

matplotlib.use("Agg")  # no window: pictures are files
FEW_POINTS = 50  # fewer are marked one by one


def save_log(trainer: Trainer, directory: Path, before: Mapping[str, float] | None = None) -> None:
    """Write ``log.jsonl`` and ``curves.png`` of a finished run.

    Args:
        trainer: whose run it was.
        directory: to write into.
        before: metrics of the validation rows before the first step.
    """
    history = trainer.state.log_history
    if before is not None:
        first = {f"eval_{key}": value for key, value in before.items()}
        history = [{"step": 0, **first}, *history]
    write_log(clean_history(history), directory)


def write_log(rows: Sequence[Mapping[str, Any]], directory: Path) -> None:
    """Write the rows as ``log.jsonl`` and draw them as ``curves.png``."""
    with open(directory / "log.jsonl", "w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row) + "\n")
    curves(rows, directory / "curves.png")


def curves(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw loss (left) and HR / NDCG on validation rows (right) over optimiser steps.

    The same log gives the same bytes.

    Args:
        log: rows of ``log.jsonl``; one without ``step`` has no place in time and is left out.
        path: the PNG to write.

    Raises:
        UserError: the log holds no number to draw.
    """
    series = log_series(log)
    if not series:
        raise UserError(
            f"{path}: cannot be drawn, the log has no row with 'step' and a loss or metric"
        )
    losses = {key: points for key, points in series.items() if "loss" in key}
    metrics = {key: points for key, points in series.items() if "loss" not in key}
    panels = [panel for panel in (losses, metrics) if panel]
    figure = Figure(figsize=(6 * len(panels), 4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        draw_panel(axes, panel)
    figure.savefig(path, dpi=120, metadata={"Software": None})  # no version in the file


def draw_panel(axes: Axes, panel: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw one line per key."""
    for key, points in panel.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=key, marker="." if len(points) < FEW_POINTS else "")
    axes.set_xlabel("optimiser step")
    axes.grid(alpha=0.3)
    axes.legend()
