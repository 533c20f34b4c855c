"""What the audit's checks look at, and the form of their answers.

Shapes: N items, n interactions in global order, B test rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from minionerec.catalogue.samples import Sample, Samples, train_counts
from minionerec.catalogue.templates import Template

ROWS_AT_ONCE = 512  # of dense (rows, N) blocks: bounds memory


@dataclass(frozen=True)
class Prompts:
    """What a trained checkpoint reads."""

    tasks: Sequence[str]  # those that the experiment trains
    template: Template
    sids: Sequence[str]  # (N,) the SID of each item as a prompt writes it
    render: Callable[[str, Sequence[int]], str]  # task, shown items -> the prompt's tokens as text


@dataclass(frozen=True)
class Evidence:
    """What the checks look at."""

    samples: Samples  # histories as prompts show them
    interactions: pd.DataFrame  # user_id, item_id, timestamp, split; (n,) rows in global order
    split_rule: str  # data.split: global_time, leave_one_out, own
    embeddings: np.ndarray | None  # (N, D), rows of length 1
    prompts: Prompts | None  # None until a checkpoint brings a tokenizer

    @property
    def test(self) -> Sequence[Sample]:
        """The rows that the numbers will be about."""
        return self.samples.splits["test"]

    @property
    def targets(self) -> np.ndarray:
        """(B,) item indexes of the test targets."""
        return np.array([sample.target for sample in self.test])

    @property
    def train_counts(self) -> np.ndarray:
        """(N,) train interactions of each item."""
        return train_counts(self.samples.train_sequences, len(self.samples.items))


class Check(NamedTuple):
    """One answer."""

    name: str
    verdict: str  # ok, look or problem
    found: str  # a sentence with the figures
    wanted: str  # the threshold of ok
    advice: str  # what to make of another verdict
    figures: dict[str, Any]


def grade(value: float, ok: float, problem: float) -> str:
    """``ok`` up to the first bound, ``problem`` above the second, ``look`` between.

    >>> grade(0.1, 0.1, 0.5), grade(0.2, 0.1, 0.5), grade(0.6, 0.1, 0.5)
    ('ok', 'look', 'problem')
    """
    if value <= ok:
        return "ok"
    return "problem" if value > problem else "look"
