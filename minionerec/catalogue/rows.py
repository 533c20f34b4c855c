"""Rows: one prompt with its completion, for one task, rendered from samples."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np

from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.samples import Sample
from minionerec.errors import UserError
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


class Rows(Sequence[Row]):
    """Rows of several tasks, each rendered when it is asked for: five bytes a row.

    Attributes:
        tasks: the names that ``of_row`` numbers.
        of_row: ``(rows,)`` the task of each.
        numbers: ``(rows,)`` the sample that a row is of, or the item where a task shows one.
        more: rendered rows behind them.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        of_row: np.ndarray,
        numbers: np.ndarray,
        samples: Sequence[Sample],
        renderer: Renderer,
        more: Sequence[Row] = (),
    ):
        self.tasks = tasks
        self.of_row = of_row
        self.numbers = numbers
        self.samples = samples
        self.renderer = renderer
        self.more = more

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.numbers) + len(self.more)

    def __add__(self, more: list[Row]) -> Rows:
        """The same rows with others behind them."""
        return Rows(
            self.tasks,
            self.of_row,
            self.numbers,
            self.samples,
            self.renderer,
            [*self.more, *more],
        )

    @overload
    def __getitem__(self, number: int) -> Row: ...

    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...

    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        """Render one row, or several."""
        if isinstance(number, slice):
            return [self[place] for place in range(len(self))[number]]
        number = range(len(self))[number]
        if number >= len(self.numbers):
            return self.more[number - len(self.numbers)]
        task = self.tasks[int(self.of_row[number])]
        return row_of(task, int(self.numbers[number]), self.samples, self.renderer)

    def longest_possible(self) -> int:
        """Tokens that no row has more of: a renderer keeps to its limit, nothing is rendered."""
        longest = self.renderer.max_tokens
        for row in self.more:
            longest = max(longest, len(row.prompt) + len(row.completion))
        return longest

    def surely_fit(self, num_items: int) -> bool:
        """Whether each item's prompt fits by itself: then no row can be too long to render."""
        try:
            for task in self.tasks:
                for item in range(num_items):
                    if task != "description_to_sid" or self.renderer.has_description(item):
                        self.renderer.prompt(task, (item,))
        except UserError:
            return False
        return True


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
) -> np.ndarray:
    """The samples that a task has rows of, or the items where it shows one.

    ``description_to_sid`` leaves out items without a description: there is nothing to show.
    """
    if task not in ITEM_TASKS:
        return np.arange(len(samples), dtype=np.int32)
    items = np.arange(num_items, dtype=np.int32)
    if task == "description_to_sid":
        return items[[renderer.has_description(item) for item in range(num_items)]]
    return items


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
    parts: list[np.ndarray] = []
    sizes = []
    for task in tasks:
        found = numbers_of(task, samples, renderer, num_items)
        whole = int(shares[task])
        rest = round((shares[task] - whole) * len(found))
        drawn = np.sort(rng.permutation(len(found))[:rest])
        parts += [*[found] * whole, found[drawn]]
        sizes.append(whole * len(found) + rest)
    of_row = np.repeat(np.arange(len(tasks), dtype=np.uint8), sizes)
    numbers = np.concatenate(parts) if parts else np.empty(0, np.int32)
    rows = Rows(tasks, of_row, numbers, samples, renderer)
    if len(rows) > FEW and rows.surely_fit(num_items):
        return rows
    # Rendered here, a row that does not fit is refused before anything is trained
    with _no_garbage_collection():
        return list(rows)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause garbage collection while rows are built.

    Rows are many, hold no cycles and stay: looking for garbage among them took a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
