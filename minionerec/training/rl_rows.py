"""What RL trains on: rows of train, what a teacher says of them, and prompts without a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.rows import NO_TARGET, Label, Row, mixture
from minionerec.catalogue.samples import held_out, open_histories
from minionerec.experiment.manifest import Parent
from minionerec.training.soft_labels import TASK, Recipe, teacher_of


def rl_rows(catalogue: Catalogue, renderer: Renderer) -> tuple[Sequence[Row], list[Parent]]:
    """The rows of ``rl.tasks`` and ``rl.open_histories``, with the answers of ``rl.anchor``.

    Returns:
        The rows, and the directories of the networks that teach them.

    Raises:
        UserError: the teacher lacks what it reads.
    """
    experiment = catalogue.experiment
    # What SFT left to RL, or all that SFT saw
    train = catalogue.samples.splits["train"]
    earlier, latest = held_out(train, experiment.sft.holdout_for_rl)
    known = mixture(
        experiment.rl.tasks,
        latest or earlier,
        renderer,
        len(catalogue.item_ids),
        experiment.seed,
    )
    histories = []
    if experiment.rl.open_histories:
        sequences = catalogue.samples.train_sequences
        histories = open_histories(sequences, experiment.data.max_history)
    # Labels are made for both kinds at once: a teacher is dear to build
    if experiment.rl.anchor == "labels":
        return _labelled(catalogue, known, histories, renderer)
    if not histories:
        return known, []
    unknown = []
    for history in histories:
        prompt = renderer.prompt(TASK, history)
        unknown.append(Row(TASK, "", prompt, [], NO_TARGET, history))
    return [*known, *unknown], []


def _labelled(
    catalogue: Catalogue,
    known: Sequence[Row],
    histories: Sequence[tuple[int, ...]],
    renderer: Renderer,
) -> tuple[list[Row], list[Parent]]:
    """Both kinds of rows with labels by ``sft.soft_labels``, as they weighed when SFT ended."""
    experiment = catalogue.experiment
    recipe = Recipe.of(experiment.sft.soft_labels)
    # Who rewards teaches too, so that the control of RL knows all that RL does
    teacher = teacher_of(catalogue, recipe, experiment.rl.teacher or experiment.sft.teacher)
    # Rows of train are asked about without what they have themselves added to the counts
    taught = teacher.beside(known, recipe, renderer)
    of_teacher = teacher.alone(histories, recipe, renderer)
    weight = recipe.weight_at(1.0)
    rows = [replace(row, labels=_settled(row.labels, weight)) for row in taught]
    # The teacher's favourite is an answer to learn from, but no target to be rewarded for
    rows += [replace(row, target_item=NO_TARGET) for row in of_teacher]
    return rows, teacher.parents


def _settled(labels: Sequence[Label], teacher_weight: float) -> tuple[Label, ...]:
    """The same answers with one weight each: it no longer changes with the steps done."""
    settled = []
    for label in labels:
        weight = (1.0 - teacher_weight) * label.own + teacher_weight * label.teacher
        settled.append(Label(label.item, label.completion, weight, weight))
    return tuple(settled)
