"""What is held out stays out: other test rows change nothing of SFT and RL, other validation rows only what is chosen.

No list of rows is looked at: the stages run on data that differs in just these rows, and everything they write is compared.

python -m pytest tests/commands/test_held_out.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import rl
import sft
from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.rows import NO_TARGET, Row
from minionerec.experiment.commit import commit
from minionerec.experiment.manifest import MANIFEST
from minionerec.experiment.manifest import opened as opened_directory
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import settings_of, stage_path
from minionerec.model.policy import Policy
from minionerec.training.rl_rows import rl_rows
from tests.worlds import tiny_run, weights_digest

TASKS = {
    "sid_to_sid": 1.0,
    "title_to_sid": 1.0,
    "sids_to_title": 0.5,
    "titles_to_sid": 0.5,
}
# A teacher for whom nothing is chosen on validation rows, so that these may change what is measured
# alone
TEACHER = {"popularity": 1.0}
SETTINGS = {
    "sft": {
        "epochs": 1,
        "evals_per_epoch": 2.0,
        "patience": 0,
        "tasks": TASKS,
        "soft_labels": {"top_k": 3},
        "teacher": TEACHER,
    },
    "rl": {
        "epochs": 0.5,
        "evals": 2,
        "tasks": {"sid_to_sid": 1.0, "titles_to_sid": 0.3},
        "rewards": {"rule": 1.0, "collaborative": 1.0},
        "teacher": TEACHER,
        "open_histories": True,
        "sft_weight": 0.1,
        "anchor": "labels",
    },
}


def open_rows(catalogue: Catalogue) -> list[Row]:
    """The prompts of RL that have no target."""
    rows, _ = rl_rows(catalogue, Policy.create(catalogue, 0.0).renderer)
    return [row for row in rows if row.target_item == NO_TARGET]


def other_targets(experiment: Experiment, split: str) -> None:
    """Let every target of a split be another item, in data that is whole by its manifest."""
    data = stage_path(experiment, "data")
    sids = stage_path(experiment, "sids")
    for folder in (data, sids):
        folder.rename(folder.with_name(f"old-{folder.name}"))
        (folder.with_name(f"old-{folder.name}") / MANIFEST).unlink()
    rows = pd.read_parquet(data.with_name("old-data") / "interactions.parquet")
    held_out = rows["split"] == split
    number = rows.loc[held_out, "item_id"].str[1:].astype(int)
    rows.loc[held_out, "item_id"] = [f"i{(n + 11) % 24}" for n in number]
    rows.to_parquet(data.with_name("old-data") / "interactions.parquet")
    for folder, parents in ((data, []), (sids, [data])):
        settings = settings_of(experiment, folder.name)
        old = folder.with_name(f"old-{folder.name}")
        opened = [opened_directory(parent) for parent in parents]
        commit(old, folder, folder.name, settings, opened)


class Outcome:
    """Everything that SFT and RL wrote about a run."""

    def __init__(self, folder: Path, change: str) -> None:
        torch.set_num_threads(1)
        experiment = tiny_run(folder, **SETTINGS)
        if change:
            other_targets(experiment, change)
        catalogue = Catalogue.open(experiment)
        self.prompts = open_rows(catalogue)
        self.weights = {}
        self.losses = {}
        self.validations = {}
        for stage, train in (("sft", sft.train), ("rl", rl.train)):
            path = stage_path(experiment, stage)
            train(experiment, path)
            self.weights[stage] = weights_digest(path)
            lines = (path / "log.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            self.losses[stage] = [row["loss"] for row in rows if "loss" in row]
            self.validations[stage] = [
                {key: value for key, value in row.items() if key.startswith("eval_")}
                for row in rows
                if "eval_NDCG@10" in row
            ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Outcome:
    return Outcome(tmp_path_factory.mktemp("plain"), "")


def without_times(rows: list[dict]) -> list[dict]:
    """Validation rows without what the clock says."""
    clocks = ("runtime", "per_second", "seconds")
    return [{k: v for k, v in row.items() if not k.endswith(clocks)} for row in rows]


def test_other_test_targets_change_no_bit_of_sft_and_rl(plain, tmp_path):
    other = Outcome(tmp_path, "test")
    assert other.weights == plain.weights
    assert other.losses == plain.losses
    for stage in ("sft", "rl"):
        assert without_times(other.validations[stage]) == without_times(plain.validations[stage])
        assert len(plain.validations[stage]) >= 2


@pytest.mark.parametrize("split", ["valid", "test"])
def test_open_histories_end_where_train_ends(plain, tmp_path, split):
    """The tiny world's users have their last two items held out."""
    experiment = tiny_run(tmp_path, **SETTINGS)
    samples = Catalogue.open(experiment).samples
    held_out = samples.splits["valid"][0]
    histories = [row.history for row in plain.prompts]
    assert held_out.history in histories
    assert (*held_out.history[-4:], held_out.target) not in histories
    # Other held-out targets: the same prompts with the same answers
    other_targets(experiment, split)
    assert open_rows(Catalogue.open(experiment)) == plain.prompts


def test_other_validation_targets_change_what_is_measured_but_not_what_is_learned(plain, tmp_path):
    other = Outcome(tmp_path, "valid")
    assert other.losses["sft"] == plain.losses["sft"]
    for stage in ("sft", "rl"):
        assert without_times(other.validations[stage]) != without_times(plain.validations[stage])
