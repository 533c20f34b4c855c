"""What the counts of a prepared data set say about its settings: a line each, or none."""

from __future__ import annotations

import math
from typing import Any

from minionerec.experiment.settings import Experiment

FEW_ROWS = 500  # test rows; fewer leave wide intervals
NEWCOMERS = 0.5  # share of the test users without a row of train
HARDLY_EVER = 0.001  # share of interactions with an item that the user had before
# Of a model from scratch. On a shop of 54 items 32 steps had a validation NDCG@10 of .31, 250 had
# .71 (docs/LOG.md)
FEW_STEPS = 250


def advice_on(stats: dict[str, Any], experiment: Experiment) -> list[str]:
    """Lines about settings that probably do not fit the data.

    Args:
        stats: the content of ``stats.json``.
        experiment: whose settings they are.
    """
    lines = []
    test = stats["splits"]["test"]
    new = test["users_without_train"]
    if stats["split"] == "global_time" and new > NEWCOMERS * test["users"]:
        lines.append(
            f"{new:,} of {test['users']:,} test users have no row in train: a split by time tests "
            "on newcomers here. data.split leave_one_out gives every user rows in all three"
        )
    if stats["repeat_rate"] < HARDLY_EVER and not experiment.evaluate.exclude_history:
        lines.append(
            f"{stats['repeat_rate']:.1%} of interactions repeat an item: set "
            "evaluate.exclude_history true, so that neither model nor baselines recommend what a "
            "user had"
        )
    if test["samples"] < FEW_ROWS:
        lines.append(
            f"{test['samples']:,} test rows leave wide intervals: read the 95 % beside every "
            "figure, and compare settings on several seeds"
        )
    steps = sft_steps(stats["splits"]["train"]["samples"], experiment)
    if experiment.model.backbone == "scratch" and steps < FEW_STEPS:
        lines.append(
            f"SFT will be about {steps:,} steps, too few for a model from scratch: lower "
            "sft.batch_size and sft.micro_batch_size, e.g. to 16, or raise sft.epochs"
        )
    return lines


def sft_steps(targets: int, experiment: Experiment) -> int:
    """About how many steps SFT will take; tasks of items or codes count as if of targets.

    >>> sft_steps(332, Experiment(name="x").changed({"sft.epochs": 8, "sft.batch_size": 128}))
    104
    """
    sft = experiment.sft
    rows = targets * sum(sft.tasks.values())
    return sft.epochs * math.ceil(rows / sft.batch_size)
