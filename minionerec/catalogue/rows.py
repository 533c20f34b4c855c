"""Rows: one prompt with its completion, for one task, rendered from samples."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.samples import Sample
from minionerec.experiment.choices import CODE_TASKS


class Label(NamedTuple):
    """One answer of a row with soft labels, and how much of the row's weight it carries."""

    item: int
    completion: list[int]
    own: float  # if the row's target alone is right
    teacher: float  # if the teacher alone is right


@dataclass(frozen=True, slots=True)
class Row:
    """One training example.

    ``target_item`` is the item that ``completion`` names and ``history`` what a sequence task shows
    (else empty): rewards read them, never the prompt's text. ``labels`` are the answers that SFT
    trains on; empty: the completion alone.
    """

    task: str
    user_id: str
    prompt: list[int]
    completion: list[int]
    target_item: int
    history: tuple[int, ...] = ()
    labels: tuple[Label, ...] = ()


def task_rows(
    task: str, samples: Sequence[Sample], renderer: Renderer, num_items: int
) -> list[Row]:
    """All rows of one task: one per sample, or one per item for the tasks that show a single item.

    ``description_to_sid`` leaves out items without a description: there is nothing to show.
    """
    if task in ("sid_to_title", "title_to_sid", "description_to_sid"):
        rows = []
        for item in range(num_items):
            if task == "description_to_sid" and not renderer.has_description(item):
                continue
            prompt = renderer.prompt(task, (item,))
            rows.append(Row(task, "", prompt, renderer.completion(task, item), item))
        return rows
    rows = []
    for sample in samples:
        prompt = renderer.prompt(task, sample.history)
        completion = renderer.completion(task, sample.target)
        row = Row(task, sample.user_id, prompt, completion, sample.target, sample.history)
        rows.append(row)
    return rows


def mixture(
    shares: dict[str, float],
    samples: Sequence[Sample],
    renderer: Renderer,
    num_items: int,
    seed: int,
) -> list[Row]:
    """The rows of several tasks together.

    A share of .3 is a fixed random 30 % of a task's rows, 2 is all of them twice.
    """
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for task, share in shares.items():
        # Rows of codes are no rows of items (minionerec/training/code_words.py)
        if not share or task in CODE_TASKS:
            continue
        with _no_garbage_collection():
            found = task_rows(task, samples, renderer, num_items)
        rows += found * int(share)
        rest = round((share - int(share)) * len(found))
        rows += [found[i] for i in sorted(rng.permutation(len(found))[:rest])]
    return rows


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
