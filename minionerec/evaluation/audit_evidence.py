"""What the audit's checks look at, and the form of their answers.

Shapes: N items, n interactions in global order, B test rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from minionerec.catalogue.compact import IntLists, SampleList
from minionerec.catalogue.samples import Samples, train_counts
from minionerec.catalogue.templates import Template


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
    embeddings: np.ndarray | None  # (N, D)
    prompts: Prompts | None  # None until a checkpoint brings a tokenizer

    def rows(self, split: str) -> SampleList:
        """The samples of a split as arrays, as ``samples.load_samples`` reads them.

        Raises:
            TypeError: they are a list of samples.
        """
        rows = self.samples.splits[split]
        if not isinstance(rows, SampleList):
            raise TypeError(f"{split}: got a {type(rows).__name__}, expected a SampleList")
        return rows

    @cached_property
    def test(self) -> SampleList:
        """The rows that the numbers will be about."""
        return self.rows("test")

    @cached_property
    def targets(self) -> np.ndarray:
        """(B,) item indexes of the test targets."""
        return self.test.targets()

    @cached_property
    def histories(self) -> IntLists:
        """What came before each test target."""
        return self.test.histories()

    @cached_property
    def last(self) -> np.ndarray:
        """(B,) the latest item of each history."""
        return self.histories.flat[self.histories.starts[1:] - 1]

    @cached_property
    def title_keys(self) -> np.ndarray:
        """(N,) a number per item; items whose titles have the same words have the same."""
        return pd.factorize(self.samples.items["title"].map(title_key))[0]

    @cached_property
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


def title_key(title: str) -> str:
    """A title's words, without case and punctuation.

    >>> title_key('Bolt, M3 (10-pack)') == title_key('bolt m3 10 PACK')
    True
    """
    return " ".join(re.findall(r"\w+", title.casefold()))
