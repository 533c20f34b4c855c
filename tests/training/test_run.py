"""What both stages do before and after training."""

from __future__ import annotations

import pytest
from transformers.integrations import integration_utils

import sft
from minionerec.errors import UserError
from minionerec.experiment.stages import stage_path
from minionerec.model import backbone
from minionerec.training import run
from tests.worlds import tiny_run


def test_a_tracker_that_is_mistyped_or_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(run, "get_available_reporting_integrations", lambda: ["tensorboard"])
    run.check_reporters("none", "sft.report_to")
    run.check_reporters("tensorboard, none", "sft.report_to")
    for name, said in (
        ("tensorbord", "unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        ("xyz", "unknown tracker 'xyz'; none, tensorboard or wandb"),
        ("wandb", "'wandb' is not installed; pip install wandb, or set sft.report_to: none"),
    ):
        with pytest.raises(UserError) as caught:
            run.check_reporters(name, "sft.report_to")
        assert str(caught.value) == f"sft.report_to: {said}"


def test_a_tracker_that_is_missing_is_found_before_the_model_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    monkeypatch.setattr(backbone, "build", lambda *_, **__: pytest.fail("a model was built"))
    experiment = tiny_run(tmp_path, sft={"report_to": "wandb"})
    with pytest.raises(UserError, match=r"^sft.report_to: 'wandb' is not installed"):
        sft.train(experiment, stage_path(experiment, "sft"))
