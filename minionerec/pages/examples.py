"""Worked examples: test rows drawn by a fixed seed, hits and misses alike, with titles for ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minionerec.catalogue.samples import Sample, load_samples
from minionerec.errors import UserError
from minionerec.evaluation.results import Result, best
from minionerec.experiment.lineage import require_stage
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import stage_path
from minionerec.pages.sid_tree import joined
from minionerec.rankers.places import Place, find_target

NUMBER = 20  # examples
FIRST = 10  # recommended items that each shows
GROUPS = ("with the target first", f"with it at 2 to {FIRST}", "with it further down or not at all")


class Example(NamedTuple):
    """One test row as people read it."""

    user_id: str
    history: list[str]  # titles, latest last
    first_titles: list[str]  # of the first ten items
    target: str  # title
    rank: str  # of the target, in words
    shown_at: int | None  # where the first ten hold the target, from 0


def best_examples(experiment: Experiment, found: Sequence[Result]) -> dict[str, Any]:
    """Examples of the best checkpoint (without one, of the best baseline); empty where none can be.

    Returns:
        ``how`` they were drawn, in a sentence, and what was ``drawn``.
    """
    models = [result for result in found if not result.is_baseline]
    chosen = best(models) or best(found)
    if chosen is None or not chosen.predictions or not stage_path(experiment, "data").exists():
        return {}
    data = require_stage(experiment, "data")
    how, drawn = draw_examples(chosen, data, experiment.data.max_history, experiment.seed)
    return {"how": how, "drawn": drawn}


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
    samples = load_samples(data_dir, max_history)
    rows = samples.splits["test"]
    ids = samples.item_ids
    if not are_of(result.predictions, rows, ids):
        raise UserError(
            f"{result.directory}: predictions.jsonl holds other test rows than {data_dir}, "
            "or in another order; delete it and make it again"
        )
    titles = dict(zip(ids, samples.items["title"], strict=True))
    for item, sid in (result.sid_of or {}).items():
        titles[item] = with_sid(titles[item], sid)
    places = []
    for row in result.predictions:
        places.append(find_target(row["item_ids"], row["target_item_id"], result.sid_of))
    groups = grouped(places)
    examples = []
    targets = [row["target_item_id"] for row in result.predictions]
    for number in pick(groups, targets, NUMBER, seed):
        history = [ids[item] for item in rows[number].history]
        examples.append(example(history, result.predictions[number], places[number], titles))
    counts = [f"{len(group):,} {name}" for group, name in zip(groups, GROUPS, strict=True)]
    how = (
        f"{len(examples)} rows of {result.name} with as many different targets, drawn at random "
        f"(seed {seed}) in equal parts from the {', '.join(counts)}."
    )
    return how, examples


def with_sid(title: str, sid: Sequence[int]) -> str:
    """A title with the item's codes behind it.

    >>> with_sid("Toy Story", [3, 0, 12])
    'Toy Story  ‹3·0·12›'
    """
    return f"{title}  {joined(sid)}"


def are_of(
    predictions: Sequence[dict[str, Any]], rows: Sequence[Sample], ids: Sequence[str]
) -> bool:
    """Whether predictions are of these test rows, in their order."""
    if len(predictions) != len(rows):
        return False
    for found, row in zip(predictions, rows, strict=True):
        if (found["user_id"], found["target_item_id"]) != (row.user_id, ids[row.target]):
            return False
    return True


def example(
    history: Sequence[str], found: dict[str, Any], place: Place, titles: dict[str, str]
) -> Example:
    """One row with titles for ids."""
    first = found["item_ids"][:FIRST]
    target = found["target_item_id"]
    return Example(
        user_id=found["user_id"],
        history=[titles[item] for item in history],
        first_titles=[titles[item] for item in first],
        target=titles[target],
        rank=in_words(place, len(found["item_ids"])),
        shown_at=first.index(target) if target in first else None,
    )


def grouped(places: Sequence[Place]) -> list[list[int]]:
    """Numbers of the rows whose target is first, at 2 to 10, and elsewhere."""
    groups: list[list[int]] = [[], [], []]
    for number, place in enumerate(places):
        if place.first is None or place.first >= FIRST:
            groups[2].append(number)
        else:
            groups[min(place.first, 1)].append(number)
    return groups


def pick(
    groups: Sequence[Sequence[int]], targets: Sequence[str], number: int, seed: int
) -> list[int]:
    """Row numbers, as many from each group as the smaller groups allow, group by group.

    A target is shown once: twenty rows of one bestseller would be one example.

    >>> groups = [[0], range(1, 9), range(9, 20)]
    >>> drawn = set(pick(groups, list("abcdefghijklmnopqrst"), 9, seed=0))
    >>> [len(drawn & set(group)) for group in groups]
    [1, 4, 4]
    """
    rng = np.random.default_rng(seed)
    taken: set[int] = set()
    shown: set[str] = set()
    drawn = []
    for group in groups:
        first_rows: dict[str, int] = {}
        for row in rng.permutation(np.array(group, np.int64)).tolist():
            first_rows.setdefault(targets[row], row)
        drawn.append(list(first_rows.values()))
    # The first of every group, then the second of every group, and so on.
    for turn in range(max(map(len, drawn))):
        for group in drawn:
            if turn < len(group) and len(taken) < number and targets[group[turn]] not in shown:
                taken.add(group[turn])
                shown.add(targets[group[turn]])
    return [row for group in drawn for row in group if row in taken]


def in_words(place: Place, length: int) -> str:
    """The rank of the target, from 1.

    >>> in_words(Place(2, 1, 2), 50), in_words(Place(2, 3, 2), 50)
    ('rank 3', 'rank 3 to 5 (they share a SID)')
    >>> in_words(Place(None, None, None), 50)
    'not in the first 50'
    """
    if place.first is None or place.size is None:
        return f"not in the first {length}"
    last = place.first + place.size
    if place.size == 1:
        return f"rank {last}"
    return f"rank {place.first + 1} to {last} (they share a SID)"
