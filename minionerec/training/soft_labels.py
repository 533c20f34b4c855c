"""Soft labels for SFT: a row's target is one good answer, not the only one.

A row keeps ``1 - weight`` of its label on its own target and spreads ``weight`` over the
``top_k`` items that a *teacher* ranks first for the same history. They are further completions of
the same prompt, so that a prefix tree reads the prompt once. This is distillation (Hinton et al.,
arXiv:1503.02531, section 2: a weighted sum of two cross-entropies) whose teacher is a mix of
rankers: counting rules and text neighbours (``minionerec/rankers/experts.py``), which cost nothing
to train, and networks over items (``minionerec/rankers/crossfit.py``).

Two promises. The teacher is asked about train rows only and has learned from train interactions
only: nothing held out reaches a label. And it is leave-one-out, or it would but repeat the target:
what the row's own target has added to the counts is taken out before the row is scored, and of
networks the one is asked that has not learned the row.

Beside the rows of train there is one for every item of the catalogue, which shows that item alone
and is taught by the teacher alone: the whole table of what leads to what, for items too that no
train row shows last, and without leaving anything out, as it has no target of its own. Rows that
show two items which follow each other in train (``pairs``) are more of the same kind, and so are
those that show every user's train items to their end (``open_histories``). What follows there is
held out and never read; a teacher has an answer nevertheless, for the very histories that come
before held-out targets.

Rows that show one item and ask for that very item (title -> SID) have one right answer and keep
it, as do titles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.rows import Label, Row, Rows
from minionerec.catalogue.samples import Sample, fixed_subset
from minionerec.errors import UserError
from minionerec.experiment.manifest import Parent
from minionerec.experiment.run import say
from minionerec.rankers import crossfit, experts, mixing
from minionerec.rankers.experts import Expert, mix, normalised
from minionerec.rankers.scores import rows_at_once
from minionerec.rankers.sparse_scores import best_entries
from minionerec.training.taught_rows import Labels, TaughtRows, answers, num_labelled

TASK = "sid_to_sid"  # of rows that show one item


class Recipe(NamedTuple):
    """``sft.soft_labels`` with its defaults: what ranked validation rows best (docs/LOG.md)."""

    weight: float
    final_weight: float
    top_k: int
    sharpness: float
    temperature: float
    items: int
    pairs: int
    open_histories: int

    @classmethod
    def of(cls, given: Mapping[str, float]) -> Recipe:
        """The keys that were given, and the defaults of the others."""
        weight = given.get("weight", 0.5)
        return cls(
            weight,
            given.get("final_weight", weight),
            int(given.get("top_k", 8)),
            given.get("sharpness", 1.5),
            given.get("temperature", 0.07),
            int(given.get("items", 1)),
            int(given.get("pairs", 0)),
            int(given.get("open_histories", 0)),
        )

    def weight_at(self, progress: float) -> float:
        """The teacher's weight when a share ``progress`` of all steps is done.

        It is ``weight`` for half of them and then goes straight to ``final_weight``.

        >>> recipe = Recipe.of({"weight": 0.5, "final_weight": 0.25})
        >>> [recipe.weight_at(done) for done in (0.0, 0.5, 0.75, 1.0)]
        [0.5, 0.5, 0.375, 0.25]
        """
        return self.weight + (self.final_weight - self.weight) * max(0.0, 2.0 * progress - 1.0)


class Teacher(NamedTuple):
    """The mix of rankers that ``sft.teacher`` names, ready to be asked."""

    experts: list[Expert]
    shares: list[float]  # weight of each expert
    exclude_history: bool  # what a row shows is never recommended, so it is never taught
    folds: dict[str, int] | None  # which of the networks has not learned a user's rows
    parents: list[Parent]  # directories of the networks

    def beside(
        self, rows: Sequence[Row], recipe: Recipe, renderer: Renderer
    ) -> list[Row] | TaughtRows:
        """The rows with its answers beside their own; it is asked without what they added to it."""
        return with_labels(
            rows,
            self.experts,
            self.shares,
            recipe,
            renderer,
            exclude_history=self.exclude_history,
            folds=self.folds,
        )

    def alone(
        self,
        histories: Sequence[tuple[int, ...]],
        recipe: Recipe,
        renderer: Renderer,
        users: Sequence[str] | None = None,
    ) -> list[Row]:
        """Rows that it alone answers, as ``teacher_rows``."""
        return teacher_rows(
            histories,
            self.experts,
            self.shares,
            recipe,
            renderer,
            exclude_history=self.exclude_history,
            users=users,
        )


def teacher_of(catalogue: Catalogue, recipe: Recipe, weights: Mapping[str, float]) -> Teacher:
    """Build the teacher of a catalogue; networks are trained if they are not there yet.

    Args:
        catalogue: what it learns from.
        recipe: of soft labels.
        weights: of the rankers in the mix; none: those that expect validation rows best.

    Raises:
        UserError: the teacher lacks what it reads, or more items are asked of it than there are.
    """
    experiment = catalogue.experiment
    num_items = len(catalogue.item_ids)
    if recipe.top_k > num_items:
        raise UserError(
            f"sft.soft_labels: top_k: got {recipe.top_k}, but the catalogue has {num_items} items; "
            "lower it"
        )
    exclude = experiment.evaluate.exclude_history
    # Choices by thousands of rows are as good as by all
    splits = catalogue.samples.splits
    valid = fixed_subset(splits["valid"], experts.CHOSEN_BY, seed=0)
    samples = replace(catalogue.samples, splits={**splits, "valid": valid})
    unwanted = None
    if exclude:
        unwanted = fixed_subset(catalogue.seen("valid"), experts.CHOSEN_BY, seed=0)
    embeddings_file = catalogue.sids_stage.path / "embeddings.npy"
    temperature = recipe.temperature
    # Networks are trained by themselves, once, each without a part of the rows
    networks: dict[str, Expert] = {}
    parents = []
    for name in crossfit.parts(weights)[1]:
        networks[name], parent = crossfit.cross_fitted(catalogue, name)
        parents.append(parent)
    if not weights:
        lists = mixing.rankers_lists(samples, valid, embeddings_file, unwanted)
        best = mixing.tried({}, lists, valid, num_items=num_items, by="log p")[0]
        weights = best.weights
        temperature = best.temperature
        say(
            f"teacher: {mixing.in_yaml(weights)} at temperature {temperature:g} expects validation "
            f"rows best, log p {best.metrics['log p']:.4f}, NDCG@10 {best.metrics['NDCG@10']:.4f}"
        )
    shares = {name: weight for name, weight in weights.items() if weight}
    rules = experts.build(
        crossfit.parts(weights)[0],
        samples,
        embeddings_file=embeddings_file,
        temperature=temperature,
        unwanted=unwanted,
    )
    named = {expert.name: expert for expert in rules} | networks
    for name, share in shares.items():
        say(f"teacher: {share:g} {name} {named[name].made_with}")
    return Teacher(
        [named[name] for name in shares],
        list(shares.values()),
        exclude,
        crossfit.folds_of(catalogue.train_targets()) if networks else None,
        parents,
    )


def taught(
    catalogue: Catalogue, rows: Sequence[Row], renderer: Renderer, recipe: Recipe
) -> tuple[list[Row] | TaughtRows, list[Parent]]:
    """The rows with the labels of ``sft.teacher``, and behind them those of single items.

    Returns:
        The rows, and the directories of the networks that teach them.

    Raises:
        UserError: as ``teacher_of``.
    """
    teacher = teacher_of(catalogue, recipe, catalogue.experiment.sft.teacher)
    num_items = len(catalogue.item_ids)
    # Rows of train keep their targets beside the teacher's answers; rows of items have none
    labelled = teacher.beside(rows, recipe, renderer)
    # Items and pairs are short: each has one row, whatever train rows end in them
    pairs = drawn_pairs(
        catalogue.samples.train_sequences,
        recipe.pairs * num_items,
        catalogue.experiment.seed,
    )
    # Where train ends the next item is held out: only a teacher may answer
    ends: dict[str, tuple[int, ...]] = {}
    if recipe.open_histories:
        ends = ends_of_users(
            catalogue.samples.splits["train"], catalogue.experiment.data.max_history
        )
    of_items = teacher.alone([(item,) for item in range(num_items)], recipe, renderer)
    of_pairs = teacher.alone(pairs, recipe, renderer)
    # Rows beside their user's own share tokens with them
    of_ends = teacher.alone(list(ends.values()), recipe, renderer, list(ends))
    more = recipe.items * of_items + of_pairs + recipe.open_histories * of_ends
    return labelled + more, teacher.parents


def ends_of_users(train: Sequence[Sample], max_history: int) -> dict[str, tuple[int, ...]]:
    """User -> the latest items of all that train has of them: ``open_histories``, and whose.

    Beside their user's other rows they cost few tokens.

    Args:
        train: samples of the train split, each user's in order.
        max_history: most items of a history.

    >>> ends_of_users([Sample("u", (4,), 7, 10), Sample("u", (4, 7), 5, 20)], 2)
    {'u': (7, 5)}
    """
    ends = {}
    for sample in train:
        ends[sample.user_id] = (*sample.history, sample.target)[-max_history:]
    return ends


def drawn_pairs(sequences: Sequence[Sequence[int]], count: int, seed: int) -> list[tuple[int, ...]]:
    """Items that follow each other in train, every pair once; ``count`` of them drawn at random.

    >>> sorted(drawn_pairs([[3, 1, 2], [3, 1]], 9, 0)), len(drawn_pairs([[3, 1, 2]], 1, 0))
    ([(1, 2), (3, 1)], 1)
    """
    known: set[tuple[int, int]] = set()
    for sequence in sequences:
        known.update(pairwise(sequence))
    ordered: list[tuple[int, ...]] = sorted(known)
    chosen = np.random.default_rng(seed).permutation(len(ordered))[:count]
    return [ordered[place] for place in chosen]


def teacher_labels(
    teacher: Sequence[Expert],
    shares: Sequence[float],
    histories: Sequence[Sequence[int]],
    targets: Sequence[int] | None,
    recipe: Recipe,
    *,
    exclude_history: bool,
    folds: Sequence[int] | None = None,
) -> Labels:
    """The ``top_k`` best items of every train row by a mix of experts, asked leave-one-out.

    Args:
        teacher: of the mix.
        shares: weight of each expert.
        histories: what the rows show.
        targets: the rows' own targets, which the experts take out of their counts; None for
            histories that have none.
        recipe: of soft labels: ``top_k``, at most the catalogue, and ``sharpness``, to which power
            probabilities become weights.
        exclude_history: items that a row shows get no weight, as they are never recommended.
        folds: with networks among the experts, the fold of each row's user or window.
    """
    items = np.full((len(histories), recipe.top_k), -1, dtype=np.int64)
    weights = np.zeros((len(histories), recipe.top_k))
    step = rows_at_once(teacher[0].num_items)
    for start in range(0, len(histories), step):
        block = slice(start, start + step)
        shown = histories[block]
        # Leave-one-out: the row's own transition is no evidence for its own label
        own = None if targets is None else targets[block]
        dealt = None if folds is None else folds[block]
        probabilities = mix(teacher, shares, shown, own, dealt)  # (B, N) sparse
        # What is never recommended must not be taught either: it would take weight from the rest
        if exclude_history:
            for row, history in enumerate(shown):
                entries = slice(probabilities.indptr[row], probabilities.indptr[row + 1])
                is_shown = np.isin(probabilities.indices[entries], history)
                probabilities.data[entries][is_shown] = 0.0
        # A teacher may know fewer than K items: the other places stay empty
        items[block], weights[block] = best_entries(probabilities, recipe.top_k)
    # Renormalised over the K: what the rest of the catalogue had is shared out among them
    weights = normalised(weights**recipe.sharpness)
    return Labels(items, weights)


def takes_labels(row: Row) -> bool:
    """Whether other items could be right: the row shows a history and asks for the next item."""
    return bool(row.history) and row.task.endswith("to_sid")


def with_labels(
    rows: Sequence[Row],
    teacher: Sequence[Expert],
    shares: Sequence[float],
    recipe: Recipe,
    renderer: Renderer,
    *,
    exclude_history: bool,
    folds: Mapping[str, int] | None = None,
) -> list[Row] | TaughtRows:
    """The rows, those that take labels with the teacher's answers beside their own.

    Several tasks may have rows of the same history and target: the teacher is asked once. With
    networks in the teacher ``folds`` says which of them has not learned a user's rows.
    """
    # Equal questions have one number, so that tasks that share a history share the answer
    asked: dict[tuple[tuple[int, ...], int, int], int] = {}
    numbers = np.full(len(rows), -1, dtype=np.int32)  # of each row's question; -1: it has none
    for place, row in enumerate(rows):
        if takes_labels(row):
            numbers[place] = asked.setdefault(question(row, folds), len(asked))
    found = teacher_labels(
        teacher,
        shares,
        [history for history, _, _ in asked],
        [target for _, target, _ in asked],
        recipe,
        exclude_history=exclude_history,
        folds=None if folds is None else [fold for _, _, fold in asked],
    )
    if isinstance(rows, Rows):
        return TaughtRows(rows, numbers, found)
    labelled = []
    for row, number in zip(rows, numbers.tolist(), strict=True):
        if number >= 0:
            labels = answers(row, found.items[number], found.weights[number], renderer)
            row = replace(row, labels=labels)
        labelled.append(row)
    return labelled


def question(row: Row, folds: Mapping[str, int] | None) -> tuple[tuple[int, ...], int, int]:
    """What a row asks the teacher: history, target, and the fold that no network may know."""
    return row.history, row.target_item, 0 if folds is None else folds[row.user_id]


def teacher_rows(
    histories: Sequence[tuple[int, ...]],
    teacher: Sequence[Expert],
    shares: Sequence[float],
    recipe: Recipe,
    renderer: Renderer,
    *,
    exclude_history: bool,
    users: Sequence[str] | None = None,
) -> list[Row]:
    """A row for every history, with what the teacher says follows it.

    Of single items they teach the whole table of which item leads to which, also for items that no
    train row shows last; of longer histories, what the teacher makes of several items together.
    They have no target of their own that would have to be taken out of the counts. ``users`` puts
    them beside the rows of train that share their tokens; None: each stands alone.
    """
    found = teacher_labels(
        teacher,
        shares,
        histories,
        None,
        recipe,
        exclude_history=exclude_history,
    )
    rows = []
    for number, history in enumerate(histories):
        labels = []
        items, weights = found.items[number], found.weights[number]
        for other, weight in zip(items.tolist(), weights.tolist(), strict=True):
            if weight > 0:
                completion = renderer.completion(TASK, other)
                labels.append(Label(other, completion, weight, weight))
        # An item that nothing follows and no text is like teaches nothing
        if labels:
            # With equal weights for both sides the teacher's share of the loss changes nothing here
            first = labels[0]
            prompt = renderer.prompt(TASK, history)
            user = users[number] if users else ""
            rows.append(
                Row(TASK, user, prompt, first.completion, first.item, history, tuple(labels))
            )
    return rows


def price(
    rows: Sequence[Row],
    batches: Sequence[Sequence[int]],
    collate: Callable[[Sequence[Row]], dict[str, Any]],
) -> str:
    """What soft labels cost, in words: tokens of these batches of rows without and with them."""
    plain, soft = 0, 0
    for batch in batches:
        chosen = [rows[i] for i in batch]
        # The same rows as a plain run would read them
        alone = [replace(row, labels=()) for row in chosen]
        plain += collate(alone)["tree"].input_ids.numel()
        soft += collate(chosen)["tree"].input_ids.numel()
    return (
        f"soft labels: {num_labelled(rows):,} of {len(rows):,} rows have them; "
        f"a forward reads {soft / len(batches):,.0f} tokens instead of "
        f"{plain / len(batches):,.0f}: {soft / plain:.1f} x the plain run"
    )
