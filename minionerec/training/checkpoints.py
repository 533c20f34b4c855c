"""What both trainers hang on ``transformers.Trainer``: the order of rows, callbacks, and the state of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minionerec.experiment import artifacts

BEST_METRIC = "eval_NDCG@10"
TIMING_KEYS = (
    "runtime",
    "per_second",
    "total_flos",
    "train_loss",
)  # the last one is the mean since the last resume


def last_checkpoint(output: Path) -> Path | None:
    """The newest committed checkpoint of a working directory, verified.

    Raises:
        UserError: it is damaged.
    """
    found = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    if found:
        artifacts.verify(found[-1])
    return found[-1] if found else None


def first_not_finite(model: nn.Module) -> str:
    """``parameter X has N values that are not finite``, or that all are."""
    for name, parameter in model.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            return f"parameter '{name}' has {bad} values that are not finite"
    return "all parameters are finite"


def clean_history(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log without what depends on when a run was interrupted, keys sorted: any way to the end writes the same bytes."""
    return [
        {key: row[key] for key in sorted(row) if not any(word in key for word in TIMING_KEYS)}
        for row in history
    ]
