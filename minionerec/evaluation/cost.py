"""What a ranking cost: the part of ``metrics.json`` that is never the same twice."""

from __future__ import annotations

import resource
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from minionerec.experiment.files import timings

NOTED = ("from_step", "to_step", "seconds")


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
        seconds: spent on ranking ``users`` test rows in this process and those it was launched
            with.
        users: rows ranked in that time; after a resume fewer than the split has.
        train_seconds: None where it was not measured.
        prompt_tokens_per_user: mean length of the prompts; None for rankers without prompts.
        peak_memory: in MiB, of the process that needed most; by default that of this one.
    """
    return {
        "parameters": parameters,
        "train_seconds": rounded(train_seconds),
        "users": users,
        "seconds": rounded(seconds),
        "users_per_second": rounded(users / seconds),
        "prompt_tokens_per_user": rounded(prompt_tokens_per_user),
        "peak_memory_mb": rounded(peak_memory_mb() if peak_memory is None else peak_memory),
    }


def training_seconds(run: Path, stage: str) -> float | None:
    """How long a stage's training took, validations included; of RL with the SFT before it.

    None where a part is not known: another machine's, or one that was killed before it could say.
    Steps that a kill threw away are not counted either.
    """
    stages = ("sft", "rl") if stage == "rl" else (stage,)
    total = 0.0
    for name in stages:
        parts = parts_of_last_training(timings(run, name))
        if not parts or not all(map(is_note, parts)) or not are_without_gap(parts):
            return None
        total += sum(row["seconds"] for row in parts)
    return total


def parts_of_last_training(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows from the last one that began at step 0; none where no row did."""
    for place in range(len(rows) - 1, -1, -1):
        if rows[place].get("from_step") == 0:
            return rows[place:]
    return []


def is_note(row: dict[str, Any]) -> bool:
    """Whether a row is one that ``note_training`` wrote."""
    return all(isinstance(row.get(key), (int, float)) for key in NOTED)


def are_without_gap(parts: list[dict[str, Any]]) -> bool:
    """Whether each part begins at the step at which the one before it ended."""
    return all(before["to_step"] == after["from_step"] for before, after in pairwise(parts))


def peak_memory_mb() -> float:
    """Most memory that this process has held so far, in MiB.

    On the GPU where it has used one, else resident memory.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def rounded(value: float | None) -> float | None:
    """A figure with three digits; None stays None."""
    return None if value is None else round(value, 3)
