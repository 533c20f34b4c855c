"""Worked examples: test rows drawn by a fixed seed, hits and misses alike, with titles instead of ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minionerec.errors import UserError
from minionerec.evaluation.metrics import Place, find_target
from minionerec.evaluation.results import Result

NUMBER, FIRST = 20, 10  # examples, and recommended items that each shows
GROUPS = ("with the target first", f"with it at 2 to {FIRST}", "with it further down or not at all")


class Example(NamedTuple):
    """One test row as people read it."""

    user_id: str
    history: list[str]  # titles, latest last
    first_titles: list[str]  # of the first ten items
    target: str  # title
    rank: str  # of the target, in words
    shown_at: int | None  # where the first ten hold the target, from 0


def draw_examples(
    result: Result, data_dir: Path, max_history: int, seed: int
) -> tuple[str, list[Example]]:
    """How the examples were drawn, in a sentence, and the examples.

    Args:
        result: whose lists are shown.
        data_dir: a checked ``runs/<name>/data``.
        max_history: items of the history that prompts show.
        seed: of the draw.

    Raises:
        UserError: the predictions are of other test rows than the data's.
    """
    from minionerec.catalogue.samples import (
        load_samples,  # brings transformers, which the table alone does not need
    )

    samples = load_samples(data_dir, max_history)
    rows, ids = samples.splits["test"], samples.item_ids
    if [(row["user_id"], row["target_item_id"]) for row in result.predictions] != [
        (row.user_id, ids[row.target]) for row in rows
    ]:
        raise UserError(
            f"{result.directory}: predictions.jsonl holds other test rows than {data_dir}, or in another order; "
            "delete it and make it again"
        )
    titles = dict(zip(ids, samples.items["title"], strict=True))
    places = [
        find_target(row["item_ids"], row["target_item_id"], result.sid_of)
        for row in result.predictions
    ]
    groups = grouped(places)
    examples = []
    for number in pick(groups, NUMBER, seed):
        row, found = rows[number], result.predictions[number]
        first = found["item_ids"][:FIRST]
        examples.append(
            Example(
                row.user_id,
                [titles[ids[item]] for item in row.history],
                [titles[item] for item in first],
                titles[found["target_item_id"]],
                in_words(places[number], len(found["item_ids"])),
                first.index(found["target_item_id"]) if found["target_item_id"] in first else None,
            )
        )
    counts = ", ".join(f"{len(group):,} {name}" for group, name in zip(groups, GROUPS, strict=True))
    return (
        f"{len(examples)} rows of {result.name}, drawn at random (seed {seed}) in equal parts from the {counts}.",
        examples,
    )


def grouped(places: Sequence[Place]) -> list[list[int]]:
    """Numbers of the rows whose target is first, at 2 to 10, and elsewhere."""
    groups: list[list[int]] = [[], [], []]
    for number, place in enumerate(places):
        groups[2 if place.first is None or place.first >= FIRST else min(place.first, 1)].append(
            number
        )
    return groups


def pick(groups: Sequence[Sequence[int]], number: int, seed: int) -> list[int]:
    """Row numbers, as many from each group as the smaller groups allow, group by group.

    >>> [len(set(pick([[0], range(1, 9), range(9, 20)], 9, seed=0)) & set(group)) for group in ([0], range(1, 9), range(9, 20))]
    [1, 4, 4]
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.array(group, np.int64)).tolist() for group in groups]
    in_turn = [row for row in chain.from_iterable(zip_longest(*drawn)) if row is not None][:number]
    return [row for group in drawn for row in group if row in in_turn]


def in_words(place: Place, length: int) -> str:
    """The rank of the target, from 1.

    >>> in_words(Place(2, 1, 2), 50), in_words(Place(2, 3, 2), 50), in_words(Place(None, None, None), 50)
    ('rank 3', 'rank 3 to 5 (they share a SID)', 'not in the first 50')
    """
    if place.first is None:
        return f"not in the first {length}"
    last = place.first + place.size
    return (
        f"rank {last}"
        if place.size == 1
        else f"rank {place.first + 1} to {last} (they share a SID)"
    )
