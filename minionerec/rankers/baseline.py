"""What every baseline reads and gives back; ``rank_test`` finds the one that a name stands for."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from minionerec.catalogue.compact import IntLists
from minionerec.catalogue.samples import Samples, train_counts
from minionerec.catalogue.sids import SidTable
from minionerec.experiment.baselines import BASELINES
from minionerec.experiment.files import load_array
from minionerec.experiment.run import say
from minionerec.experiment.settings import Experiment
from minionerec.rankers.fitting import Log
from minionerec.rankers.scores import popularity_order


class Inputs(NamedTuple):
    """What a baseline may read."""

    samples: Samples
    sids: SidTable | None  # for those whose row of the table says that they read stage 1
    sids_dir: Path | None
    experiment: Experiment
    depth: int  # items to rank for every test row; a smaller catalogue is ranked whole
    # Split -> per row the items that must not be ranked; None: all may be.
    unwanted: dict[str, IntLists] | None = None

    def embeddings(self) -> np.ndarray:
        """``(N, D)`` float32 text embeddings of the items, from stage 1."""
        if self.sids_dir is None:
            raise ValueError("the embeddings of stage 1 are not among these inputs")
        return load_array(self.sids_dir / "embeddings.npy").astype(np.float32)

    def popularity_order(self) -> np.ndarray:
        """``(N,)`` items, the one to prefer in a tie first: most interactions, then item order."""
        counts = train_counts(self.samples.train_sequences, len(self.samples.items))
        return popularity_order(counts)

    @property
    def test_histories(self) -> list[tuple[int, ...]]:
        """What the test rows show."""
        return [sample.history for sample in self.samples.splits["test"]]

    def unwanted_of(self, split: str) -> IntLists | None:
        """Per row of a split the items that must not be ranked."""
        return None if self.unwanted is None else self.unwanted[split]


class Ranking(NamedTuple):
    """The test rows ranked, and what it took."""

    items: Sequence[Sequence[int]] | np.ndarray  # of every row, best first; -1: nothing more
    scores: Sequence[Sequence[float]] | np.ndarray
    facts: dict[str, Any]  # for metrics.json: what was chosen on validation rows
    parameters: int  # numbers learned; of a rule its non-zero counts
    ready: float  # time.perf_counter() when training had ended and ranking began
    log: Sequence[dict[str, Any]] = ()  # of the training that was chosen; rules have none
    sids_tie: bool = False  # items that share a SID cannot be told apart


def rank_test(method: str, inputs: Inputs, directory: Path) -> Ranking:
    """Make one baseline and rank the test rows with it.

    Args:
        method: a key of ``BASELINES``.
        inputs: what it may read.
        directory: where a network leaves its weights.
    """
    module = importlib.import_module(f"minionerec.rankers.{BASELINES[method].module}")
    return module.rank_test(method, inputs, directory)


def parameters_of(model: nn.Module) -> int:
    """Numbers that a network has learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def printer(method: str) -> Log:
    """A function that prints a row of a training's log, with the seconds since now."""
    start = time.perf_counter()

    def show(row: dict[str, Any]) -> None:
        words = []
        for key, value in row.items():
            words.append(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}")
        words.append(f"{time.perf_counter() - start:.0f} s")
        say(f"{method}: {', '.join(words)}")

    return show
