"""What both stages do before and after training."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers.integrations import integration_utils

import sft
from minionerec.errors import UserError
from minionerec.experiment.preflight import check_reporters
from minionerec.experiment.run import run_stage
from minionerec.experiment.stages import stage_path
from minionerec.model import backbone
from minionerec.training import run
from tests.worlds import tiny_run


def test_a_tracker_that_is_mistyped_or_not_installed_is_refused(monkeypatch):
    name = "get_available_reporting_integrations"
    monkeypatch.setattr(integration_utils, name, lambda: ["tensorboard"])
    check_reporters("none", "sft.report_to")
    check_reporters("tensorboard, none", "sft.report_to")
    for name, said in (
        ("tensorbord", "unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        ("xyz", "unknown tracker 'xyz'; none, tensorboard or wandb"),
        ("wandb", "'wandb' is not installed; pip install wandb, or set sft.report_to: none"),
    ):
        with pytest.raises(UserError) as caught:
            check_reporters(name, "sft.report_to")
        assert str(caught.value) == f"sft.report_to: {said}"


def test_a_tracker_that_is_missing_is_found_before_the_model_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    monkeypatch.setattr(backbone, "build", lambda *_, **__: pytest.fail("a model was built"))
    experiment = tiny_run(tmp_path, sft={"report_to": "wandb"})
    with pytest.raises(UserError, match=r"^sft.report_to: 'wandb' is not installed"):
        sft.train(experiment, stage_path(experiment, "sft"))


def test_what_a_tracker_writes_while_a_stage_is_made_is_there_when_it_is_finished(
    tmp_path, monkeypatch
):
    """TensorBoard and W&B write where these variables say; sft.partial goes with its end."""
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    places = run.keep_logs
    written = []

    def keep_and_write(folder, report_to):
        places(folder, ["tensorboard", "wandb"])
        for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR"):
            file = Path(os.environ[name]) / "events"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("step 1")
            written.append(file)

    monkeypatch.setattr(run, "keep_logs", keep_and_write)
    experiment = tiny_run(tmp_path, sft={"epochs": 1})
    run_stage("sft", sft.train, experiment)
    assert (
        stage_path(experiment, "sft").is_dir()
        and not stage_path(experiment, "sft.partial").exists()
    )
    assert [file.read_text() for file in written] == ["step 1", "step 1"]
    assert written[0] == tmp_path / "tiny" / "logs" / "sft" / "tensorboard" / "events"
