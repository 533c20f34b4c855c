"""What the counts of a prepared data set say about its settings: a line each, or none."""

from __future__ import annotations

from typing import Any

from minionerec.experiment.settings import Experiment

FEW_ROWS = 500  # test rows; fewer leave wide intervals
NEWCOMERS = 0.5  # share of the test users without a row of train
HARDLY_EVER = 0.001  # share of interactions with an item that the user had before


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
    return lines
