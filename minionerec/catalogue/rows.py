"""Rows: one prompt with its completion, for one task, rendered from samples."""

from __future__ import annotations

import bisect
import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from minionerec.catalogue.compact import MadeOnRead, SampleList
from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.samples import Sample
from minionerec.experiment.choices import CODE_TASKS

ITEM_TASKS = ("sid_to_title", "title_to_sid", "description_to_sid")  # that show a single item
NO_TARGET = -1  # of a row whose right answer nobody knows
FEW = 200_000  # rows; rendered they are half a gigabyte


class Label(NamedTuple):
    """One answer of a row with soft labels, and how much of the row's weight it carries."""

    item: int
    completion: list[int]
    own: float  # if the row's target alone is right
    teacher: float  # if the teacher alone is right


@dataclass(frozen=True, slots=True)
class Row:
    """One training example.

    ``target_item`` is the item that ``completion`` names (or ``NO_TARGET``) and ``history`` what a
    sequence task shows (else empty): rewards read them, never the prompt's text. ``labels`` are the
    answers that SFT trains on; empty: the completion alone.
    """

    task: str
    user_id: str
    prompt: list[int]
    completion: list[int]
    target_item: int
    history: tuple[int, ...] = ()
    labels: tuple[Label, ...] = ()


class Rows(MadeOnRead[Row]):
    """Rows of several tasks, each rendered when it is asked for; what is kept is not a row's.

    Attributes:
        parts: of each task, or of a share of it, the samples that its rows are of, or the items
            where a task shows one.
        more: rendered rows behind them.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, Sequence[int] | np.ndarray]],
        samples: Sequence[Sample],
        renderer: Renderer,
        more: Sequence[Row] = (),
    ):
        self.parts = parts
        self.samples = samples
        self.renderer = renderer
        self.more = more
        self._ends = list(itertools.accumulate(len(numbers) for _, numbers in parts))

    @property
    def _unrendered(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        """How many rows there are."""
        return self._unrendered + len(self.more)

    def __add__(self, more: list[Row]) -> Rows:
        """The same rows with others behind them."""
        return Rows(self.parts, self.samples, self.renderer, [*self.more, *more])

    def entry(self, number: int) -> Row:
        """Render one row."""
        if number >= self._unrendered:
            return self.more[number - self._unrendered]
        part = bisect.bisect_right(self._ends, number)
        task, numbers = self.parts[part]
        place = number - self._ends[part] + len(numbers)
        return row_of(task, int(numbers[place]), self.samples, self.renderer)

    def longest_possible(self) -> int:
        """Tokens that no row has more of: a renderer keeps to its limit, nothing is rendered."""
        longest = self.renderer.max_tokens
        for row in self.more:
            longest = max(longest, len(row.prompt) + len(row.completion))
        return longest

    def surely_fit(self) -> bool:
        """Whether each item's prompt fits by itself: then no row can be too long to render."""
        return all(self.renderer.every_item_fits(task) for task, _ in self.parts)

    def users(self) -> np.ndarray:
        """``(rows,)`` int64: equal for rows of one user, -1 for rows of none."""
        names: Sequence[str]
        if isinstance(self.samples, SampleList):
            of_sample = self.samples.users()
        else:
            names = [sample.user_id for sample in self.samples]
            of_sample = pd.factorize(np.array(names, dtype=object))[0]
        found = [np.empty(0, dtype=np.int64)]
        for task, numbers in self.parts:
            alone = task in ITEM_TASKS
            whole = np.asarray(numbers, dtype=np.int64)
            if alone:
                found.append(np.full(len(whole), -1))
            else:
                found.append(of_sample[whole])
        # Rendered rows behind the others: of codes and of no user, or where a user's train rows end
        number_of = {}
        if any(row.user_id for row in self.more):
            users, first = np.unique(of_sample, return_index=True)
            for user, place in zip(users.tolist(), first.tolist(), strict=True):
                number_of[self.samples[place].user_id] = user
        rendered = [number_of.get(row.user_id, -1) for row in self.more]
        found.append(np.array(rendered, dtype=np.int64))
        return np.concatenate(found)


def users_of(rows: Sequence[Row]) -> np.ndarray:
    """``(rows,)`` int: equal for rows of one user, -1 for rows of none."""
    if isinstance(rows, Rows):
        return rows.users()
    names = np.array([row.user_id for row in rows], dtype=object)
    return np.where(names == "", -1, pd.factorize(names)[0])


def row_of(task: str, number: int, samples: Sequence[Sample], renderer: Renderer) -> Row:
    """The row of one task for a sample, or for an item where the task shows one."""
    if task in ITEM_TASKS:
        prompt = renderer.prompt(task, (number,))
        return Row(task, "", prompt, renderer.completion(task, number), number)
    sample = samples[number]
    prompt = renderer.prompt(task, sample.history)
    completion = renderer.completion(task, sample.target)
    return Row(task, sample.user_id, prompt, completion, sample.target, sample.history)


def numbers_of(
    task: str, samples: Sequence[Sample], renderer: Renderer, num_items: int
) -> Sequence[int] | np.ndarray:
    """The samples that a task has rows of, or the items where it shows one.

    ``description_to_sid`` leaves out items without a description: there is nothing to show.
    """
    if task not in ITEM_TASKS:
        return range(len(samples))
    if task == "description_to_sid":
        described = [item for item in range(num_items) if renderer.has_description(item)]
        return np.array(described, dtype=np.int32)
    return range(num_items)


def mixture(
    shares: dict[str, float],
    samples: Sequence[Sample],
    renderer: Renderer,
    num_items: int,
    seed: int,
) -> list[Row] | Rows:
    """The rows of several tasks together.

    A share of .3 is a fixed random 30 % of a task's rows, 2 is all of them twice. Up to ``FEW``
    rows are rendered once and kept, more whenever they are read.
    """
    rng = np.random.default_rng(seed)
    # Rows of codes are no rows of items (minionerec/training/code_words.py)
    tasks = [task for task, share in shares.items() if share and task not in CODE_TASKS]
    with _no_garbage_collection():
        renderer.prepare(tasks)
    parts: list[tuple[str, Sequence[int] | np.ndarray]] = []
    for task in tasks:
        found = numbers_of(task, samples, renderer, num_items)
        whole = int(shares[task])
        parts += [(task, found)] * whole
        rest = round((shares[task] - whole) * len(found))
        order = rng.permutation(len(found))
        drawn = np.sort(order[:rest]).astype(np.int32)
        if rest:
            numbers = np.asarray(found, dtype=np.int32)
            parts.append((task, numbers[drawn]))
    rows = Rows(parts, samples, renderer)
    if len(rows) > FEW and rows.surely_fit():
        return rows
    # Rendered here, a row that does not fit is refused before anything is trained
    with _no_garbage_collection():
        return list(rows)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause garbage collection while rows are built and titles tokenised.

    Lists are many and hold no cycles: looking for garbage among them, and all that was imported,
    took a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
