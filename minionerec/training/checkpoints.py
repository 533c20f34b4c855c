"""Checkpoints of a training run: whole or absent, and each as complete as the final one."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minionerec.experiment.commit import cleared_on_error
from minionerec.experiment.commit import commit as commit_directory
from minionerec.experiment.files import remove, size_of
from minionerec.experiment.manifest import Parent, verify
from minionerec.model.policy import Policy

CHECKPOINT_NAME = re.compile(r"checkpoint-\d+")
BEST_METRIC = "eval_NDCG@10"
# What depends on when a run was interrupted; ``train_loss`` is the mean since the last resume.
TIMING_KEYS = ("runtime", "per_second", "total_flos", "train_loss")


@dataclass(frozen=True)
class CheckpointContents:
    """What makes an intermediate checkpoint as complete as the final one."""

    stage: str
    settings: dict[str, Any]
    parents: list[Parent]
    policy: Policy  # writes what belongs beside the weights
    sources: dict[str, Any] = field(default_factory=dict)  # files it starts from: fingerprints


class CheckpointKeeper:
    """Writes, commits and forgets the checkpoints of one run.

    A checkpoint is written into a staging folder, gets its manifest, and one rename gives it its
    name. Only then are older ones deleted, so that at every moment the last good checkpoint is on
    disk.

    Args:
        output: the working directory of the run.
        contents: what every checkpoint holds besides weights and the Trainer's state.
    """

    def __init__(self, output: Path, contents: CheckpointContents):
        self.output = output
        self.contents = contents
        self.staging: Path | None = None  # while a checkpoint is being written

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies once it is committed."""
        return self.output / f"checkpoint-{step}"

    def best(self, step: int) -> Path:
        """The checkpoint of the best step, verified: what is handed on in the end.

        Raises:
            UserError: it is damaged.
        """
        verify(self.path(step))
        return self.path(step)

    @contextlib.contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Inside, a checkpoint is written in ``staging``; yields the folder of this step there.

        Raises:
            UserError: the disk is full; says how much a checkpoint needs and which one is intact.
        """
        self.staging = self.output / ".staging"
        with cleared_on_error(self.path(step), self.staging, self.make_room):
            yield self.staging / f"checkpoint-{step}"
        self.staging = None

    def clear_staging(self) -> None:
        """Delete what a killed run left of a checkpoint."""
        shutil.rmtree(self.output / ".staging", ignore_errors=True)

    def complete(self, staged: Path, history: Sequence[dict[str, Any]]) -> None:
        """Add the SIDs, how the model is asked, and the log: they belong to every checkpoint."""
        self.contents.policy.save_companions(staged)
        with open(staged / "log.jsonl", "w", encoding="utf-8") as handle:
            for row in clean_history(history):
                handle.write(json.dumps(row) + "\n")

    def commit(self, staged: Path, step: int) -> None:
        """Give a staged checkpoint its manifest and its name."""
        contents = self.contents
        commit_directory(
            staged,
            self.path(step),
            contents.stage,
            contents.settings,
            contents.parents,
            sources=contents.sources,
        )

    def forget_older(self, keep: set[Path]) -> None:
        """Delete all checkpoints but those to keep."""
        # The last and the best one stay: one to continue from, one to hand on
        for checkpoint in all_checkpoints(self.output):
            if checkpoint not in keep:
                remove(checkpoint)

    def last_good(self) -> str:
        """Which checkpoint is the last good one, in words."""
        last = last_checkpoint(self.output)
        return f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"

    def make_room(self) -> str:
        """What to do when the disk is full, in words."""
        # The size of the last one is the best guess for the next
        last = last_checkpoint(self.output)
        needed = ""
        if last:
            needed = f"a checkpoint needs about {size_of(last) / 1e6:.1f} MB; "
        return f"{needed}{self.last_good()}; make room, then run the same command again"


def last_checkpoint(output: Path) -> Path | None:
    """The newest committed checkpoint of a working directory, verified.

    Raises:
        UserError: it is damaged.
    """
    found = all_checkpoints(output)
    if not found:
        return None
    verify(found[-1])
    return found[-1]


def all_checkpoints(output: Path) -> list[Path]:
    """The committed checkpoints of a working directory, oldest first.

    Other names, such as the copy ``checkpoint-5 (1)`` that a file manager makes, are nobody's
    checkpoint.
    """
    named = [path for path in output.glob("checkpoint-*") if CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(named, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimiser step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def clean_history(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log without what depends on when a run was interrupted, its keys sorted.

    An interrupted and continued run then writes the same bytes as one that was left alone.
    """
    cleaned = []
    for row in history:
        kept = [key for key in sorted(row) if not any(word in key for word in TIMING_KEYS)]
        cleaned.append({key: row[key] for key in kept})
    return cleaned
