"""What an experiment has measured on its test split, read back from disk and checked.

A directory is read only when its files have the digests of its manifest, its parents are the ones
on disk, and its name is that of what its manifest says it holds: numbers of two runs never stand in
one table, and none under another's name. Nothing heavier than numpy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from minionerec.evaluation import prediction_files
from minionerec.evaluation.predictions import Predictions
from minionerec.evaluation.statistics import compare
from minionerec.experiment.lineage import check_parents, require_own_name, require_stage
from minionerec.experiment.manifest import verify
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import result_name, stage_path

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
    def predictions(self) -> Predictions:
        """The rows of ``predictions.jsonl``; empty where there is no such file."""
        file = self.directory / "predictions.jsonl"
        if not file.is_file():
            return Predictions.of([])
        return prediction_files.read(file)


class Comparison(NamedTuple):
    """A result against another on the same rows."""

    name: str  # b
    against: str  # a
    figures: dict[str, dict[str, Any]]  # metric -> what ``statistics.compare`` says of a and b


def results(experiment: Experiment) -> list[Result]:
    """Baselines first (in the order of the settings), then SFT, RL and further checkpoints.

    Raises:
        UserError: a directory is damaged, stands under another's name, or was made from others than
            those on disk.
    """
    sids = read_sids(experiment)
    baselines = []
    for file in sorted(stage_path(experiment, "baselines").glob("[!.]*/metrics.json")):
        baselines.append(read_result(file.parent, True, sids))
    models = []
    for file in sorted(stage_path(experiment, "evaluate").glob("[!.]*-test/metrics.json")):
        models.append(read_result(file.parent, False, sids))
    methods = list(experiment.baselines.methods)
    titles = list(TITLES.values())
    return [*in_order(baselines, methods), *in_order(models, titles)]


def in_order(found: Sequence[Result], names: Sequence[str]) -> list[Result]:
    """The results of these names first, in their order; then the others by name."""

    def place(result: Result) -> tuple[int, str]:
        known = result.name in names
        return (names.index(result.name) if known else len(names), result.name)

    return sorted(found, key=place)


def read_result(directory: Path, is_baseline: bool, sids: dict[str, list[int]] | None) -> Result:
    """One result, checked; its metrics name the SIDs it was made with, if any."""
    manifest = verify(directory)
    check_parents(directory, manifest)
    metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    require_own_name(directory, manifest)
    name = directory.name
    if not is_baseline:
        name = title_of(str(manifest["settings"]["evaluate.checkpoint"]), directory)
        if manifest["stage"] == "fusion":
            name += ", fused"
    sid_of = sids if "sids_sha256" in metrics else None
    return Result(name, directory, metrics, is_baseline, sid_of)


def title_of(checkpoint: str, directory: Path) -> str:
    """What a table calls an evaluation; only this experiment's own stages are SFT and RL."""
    if checkpoint in TITLES:
        return TITLES[checkpoint]
    name = directory.name.removesuffix("-test").removesuffix("-fusion")
    is_of_path = name in TITLES or name == result_name(checkpoint)
    return checkpoint if is_of_path else name  # e.g. runs/other/sft


def read_sids(experiment: Experiment) -> dict[str, list[int]] | None:
    """Item -> SID; None where stage 1 is gone."""
    if not stage_path(experiment, "sids").exists():
        return None
    file = require_stage(experiment, "sids") / "sids.json"
    return json.loads(file.read_text(encoding="utf-8"))["sids"]


def best(found: Sequence[Result]) -> Result | None:
    """The result with the highest NDCG@10, the first of equals; None of none."""
    return max(found, key=lambda result: result.metrics.get("NDCG@10", 0.0), default=None)


def comparisons(found: Sequence[Result], experiment: Experiment) -> list[Comparison]:
    """Every checkpoint against the best baseline, and RL against SFT, where both have predictions.

    Raises:
        UserError: two of them rank different test rows.
    """
    models = {result.name: result for result in found if not result.is_baseline}
    baseline = best([result for result in found if result.is_baseline])
    pairs = []
    if baseline:
        pairs = [(baseline, model) for model in models.values()]
    if "SFT" in models and "RL" in models:
        pairs.append((models["SFT"], models["RL"]))
    compared = []
    for a, b in pairs:
        if a.predictions and b.predictions:
            keys = [key for key in KEYS if key in a.metrics and key in b.metrics]
            figures = compare(
                a.predictions,
                b.predictions,
                a.sid_of,
                b.sid_of,
                keys,
                seed=experiment.seed,
            )
            compared.append(Comparison(b.name, a.name, figures))
    return compared


def in_words(figures: dict[str, Any]) -> str:
    """What a paired difference shows: the interval decides.

    >>> in_words({"interval": [0.001, 0.02]}), in_words({"interval": [-0.001, 0.02]})
    ('better', 'no difference shown')
    """
    low, high = figures["interval"]
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no difference shown"
