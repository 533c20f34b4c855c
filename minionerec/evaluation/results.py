"""What an experiment has measured on its test split, read back from disk and checked.

A directory is read only when its files have the digests of its manifest and its parents are the ones on disk: numbers of two
runs never stand in one table. Nothing heavier than numpy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from minionerec.evaluation.statistics import compare
from minionerec.experiment import artifacts
from minionerec.experiment.settings import Experiment

TITLES = {"sft": "SFT", "rl": "RL"}
KEYS = ("NDCG@10", "HR@10")  # what two results are compared on


@dataclass(frozen=True)
class Result:
    """One ranking of the test rows and what was measured on it."""

    name: str
    directory: Path  # holds metrics.json and predictions.jsonl
    metrics: dict[str, Any]
    is_baseline: bool
    sid_of: dict[str, list[int]] | None  # item -> SID, None for a ranker that knows items apart

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        """The rows of ``predictions.jsonl``; empty where there is no such file."""
        file = self.directory / "predictions.jsonl"
        return (
            [json.loads(line) for line in file.read_bytes().splitlines()] if file.is_file() else []
        )


class Comparison(NamedTuple):
    """A result against another on the same rows: ``figures`` is what ``metrics.compare`` says of each key, ``against`` being a."""

    name: str
    against: str
    figures: dict[str, dict[str, Any]]


def results(experiment: Experiment) -> list[Result]:
    """Baselines first (in the order of the settings), then SFT, RL and further checkpoints.

    Raises:
        UserError: a directory is damaged, or was made from others than those on disk.
    """
    baselines, evaluate = (
        artifacts.stage_path(experiment, stage) for stage in ("baselines", "evaluate")
    )
    methods = {
        file.parent.name: file.parent for file in sorted(baselines.glob("[!.]*/metrics.json"))
    }
    checkpoints = {
        file.parent.name.removesuffix("-test"): file.parent
        for file in sorted(evaluate.glob("[!.]*-test/metrics.json"))
    }
    sids = read_sids(experiment)
    known = [name for name in experiment.baselines.methods if name in methods]
    found = [
        read_result(name, methods[name], True, sids) for name in dict.fromkeys([*known, *methods])
    ]
    for name in sorted(checkpoints, key=lambda name: (name not in TITLES, name == "rl", name)):
        found.append(read_result(TITLES.get(name, name), checkpoints[name], False, sids))
    return found


def read_result(
    name: str, directory: Path, is_baseline: bool, sids: dict[str, list[int]] | None
) -> Result:
    """One result, checked; its metrics name the SIDs it was made with, if any."""
    artifacts.check_parents(directory, artifacts.verify(directory))
    metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    return Result(name, directory, metrics, is_baseline, sids if "sids_sha256" in metrics else None)


def read_sids(experiment: Experiment) -> dict[str, list[int]] | None:
    """Item -> SID; None where stage 1 is gone."""
    if not artifacts.stage_path(experiment, "sids").exists():
        return None
    return json.loads(
        (artifacts.require_stage(experiment, "sids") / "sids.json").read_text(encoding="utf-8")
    )["sids"]


def best(found: Sequence[Result]) -> Result | None:
    """The result with the highest NDCG@10; None of none."""
    return max(found, key=lambda result: result.metrics.get("NDCG@10", 0.0), default=None)


def comparisons(found: Sequence[Result], experiment: Experiment) -> list[Comparison]:
    """Every checkpoint against the best baseline, and RL against SFT, where both have predictions.

    Raises:
        UserError: two of them rank different test rows.
    """
    models = {result.name: result for result in found if not result.is_baseline}
    baseline = best([result for result in found if result.is_baseline])
    pairs = [(baseline, model) for model in models.values() if baseline] + (
        [(models["SFT"], models["RL"])] if {"SFT", "RL"} <= models.keys() else []
    )
    return [
        Comparison(
            b.name,
            a.name,
            compare(
                a.predictions,
                b.predictions,
                a.sid_of,
                b.sid_of,
                [key for key in KEYS if key in a.metrics and key in b.metrics],
                seed=experiment.seed,
            ),
        )
        for a, b in pairs
        if a.predictions and b.predictions
    ]


def in_words(figures: dict[str, Any]) -> str:
    """What a paired difference shows: the interval decides.

    >>> in_words({"interval": [0.001, 0.02]}), in_words({"interval": [-0.001, 0.02]})
    ('better', 'no difference shown')
    """
    low, high = figures["interval"]
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"
