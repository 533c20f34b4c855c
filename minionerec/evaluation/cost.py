"""What a ranking cost: the part of ``metrics.json`` that is measured anew in every run and never the same twice."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from minionerec.experiment.artifacts import timings


def cost(
    parameters: int,
    seconds: float,
    users: int,
    *,
    train_seconds: float | None = None,
    prompt_tokens_per_user: float | None = None,
    peak_memory: float | None = None,
) -> dict[str, float | int | None]:
    """The ``cost`` of ``metrics.json``.

    Args:
        parameters: numbers that were learned; of a counting rule its non-zero counts.
        seconds: spent on ranking ``users`` test rows in this process and those it was launched with.
        users: rows ranked in that time; after a resume fewer than the split has.
        train_seconds: None where it was not measured.
        prompt_tokens_per_user: mean length of the prompts; None for rankers without prompts.
        peak_memory: in MiB, of the process that needed most; by default that of this one.
    """
    peak = peak_memory_mb() if peak_memory is None else peak_memory
    return {
        "parameters": parameters,
        "train_seconds": _rounded(train_seconds),
        "users": users,
        "seconds": _rounded(seconds),
        "users_per_second": _rounded(users / seconds),
        "prompt_tokens_per_user": _rounded(prompt_tokens_per_user),
        "peak_memory_mb": _rounded(peak),
    }


def training_seconds(run: Path, stage: str) -> float | None:
    """How long a stage's training took, validations included; of RL with the SFT before it.

    None where a part is not known: another machine's, or one that was killed before it could say. Steps that a kill
    threw away are not counted either.
    """
    total = 0.0
    for name in ("sft", "rl") if stage == "rl" else (stage,):
        parts = timings(run, name)
        beginnings = [i for i, row in enumerate(parts) if row["from_step"] == 0]
        parts = parts[beginnings[-1] :] if beginnings else []
        if not parts or any(
            a["to_step"] != b["from_step"] for a, b in zip(parts, parts[1:], strict=False)
        ):
            return None
        total += sum(row["seconds"] for row in parts)
    return total


def peak_memory_mb() -> float:
    """Most memory that this process has held so far, in MiB: on the GPU where it has used one, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
