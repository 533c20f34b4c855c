"""Rows of a large catalogue with a teacher's answers beside their own, made when they are read.

As arrays a row's eight answers are 128 bytes; a rendered row with labels is some kB of objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.rows import Label, Row, Rows


class Labels(NamedTuple):
    """A teacher's best items for every row; weights add up to 1, or to 0 if it knows none."""

    items: np.ndarray  # (rows, K) item indexes, -1 where there are fewer
    weights: np.ndarray  # (rows, K)


class TaughtRows(Rows):
    """As ``Rows``, with labels.

    Args:
        rows: without labels.
        numbers: ``(rows,)`` which answers each row has beside its own, -1 for none.
        found: the answers.
    """

    def __init__(self, rows: Rows, numbers: np.ndarray, found: Labels):
        super().__init__(rows.parts, rows.samples, rows.renderer, rows.more)
        self.numbers = numbers
        self.found = found

    def __add__(self, more: list[Row]) -> TaughtRows:
        """The same rows with others behind them, which have the labels that they have."""
        nothing = np.full(len(more), -1, dtype=self.numbers.dtype)
        numbers = np.concatenate([self.numbers, nothing])
        return TaughtRows(super().__add__(more), numbers, self.found)

    def entry(self, number: int) -> Row:
        """Render one row and its labels."""
        row = super().entry(number)
        place = int(self.numbers[number])
        if place < 0:
            return row
        items, weights = self.found.items[place], self.found.weights[place]
        return replace(row, labels=answers(row, items, weights, self.renderer))

    def num_labelled(self) -> int:
        """How many rows have labels; none is rendered."""
        knows = (self.found.weights > 0).sum(axis=1) > 0  # whether the teacher has an answer
        asked = self.numbers[self.numbers >= 0]
        rendered = sum(bool(row.labels) for row in self.more)
        return int(knows[asked].sum()) + rendered


def num_labelled(rows: Sequence[Row]) -> int:
    """How many rows have labels."""
    if isinstance(rows, TaughtRows):
        return rows.num_labelled()
    return sum(bool(row.labels) for row in rows)


def answers(
    row: Row, items: np.ndarray, weights: np.ndarray, renderer: Renderer
) -> tuple[Label, ...]:
    """The row's target and the teacher's items, each once; none where the teacher knows nothing.

    Args:
        row: with its own target.
        items: ``(K,)`` item indexes, -1 where there are fewer.
        weights: ``(K,)``.
        renderer: of the completions.
    """
    teacher = {}
    for item, weight in zip(items.tolist(), weights.tolist(), strict=True):
        if weight > 0:
            teacher[item] = weight
    if not teacher:
        return ()
    # The teacher may name the target too: it is one answer then, with both weights
    target = row.target_item
    labels = [Label(target, row.completion, 1.0, teacher.pop(target, 0.0))]
    for item, weight in teacher.items():
        labels.append(Label(item, renderer.completion(row.task, item), 0.0, weight))
    return tuple(labels)
