"""A value that is not a number stops a run within one optimiser step, is named, and is in nothing
that is committed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

import evaluate
import rl
import sft
from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.commit import committed
from minionerec.experiment.files import link_or_copy
from minionerec.experiment.manifest import MANIFEST, opened, verify
from minionerec.experiment.stages import evaluation_path, partial_path, settings_of, stage_path
from minionerec.model import backbone
from minionerec.training import run
from minionerec_trainer import RankingTrainer
from tests.worlds import tiny_run

SFT = {
    "tasks": {"sid_to_sid": 1.0},
    "epochs": 2,
    "evals_per_epoch": 2,
    "batch_size": 32,
    "learning_rate": 1e-2,
    "eval_rows": 10,
}
RL = {
    "num_generations": 4,
    "batch_size": 16,
    "epochs": 1.0,
    "evals": 4,
    "eval_rows": 10,
    "learning_rate": 1e-2,
    "beta": 0.1,
}
LAYER = "model.layers.0.mlp.up_proj.weight"


class Plant(TrainerCallback):
    """After a step, change something of the model."""

    def __init__(self, step, change):
        self.step, self.change = step, change

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                self.change(model)


def nan_in_layer(model):
    model.model.layers[0].mlp.up_proj.weight[3, 3] = float("nan")


def infinite_token(model):
    model.get_input_embeddings().weight[-1, 0] = float("inf")  # of the last SID token


def nan_in_next_gradient(model):
    parameter = model.model.layers[0].mlp.up_proj.weight
    parameter.register_hook(lambda gradient: gradient * float("nan"))


def stopped(stage, experiment: object, monkeypatch, capsys, plant: Plant | None = None) -> str:
    """What a stage says before it ends with exit code 2, with ``plant`` among its callbacks."""
    torch.set_num_threads(1)
    original = RankingTrainer.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if plant:
            self.add_callback(plant)

    monkeypatch.setattr(RankingTrainer, "__init__", init)
    path = stage_path(experiment, stage.__name__)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        stage.train(experiment, path)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and not path.exists()
    check_finite(partial_path(experiment, stage.__name__))
    return said


def check_finite(partial: Path) -> None:
    """Every committed checkpoint is whole, and every number of its weights and of its optimiser's
    state is one.
    """
    for checkpoint in partial.glob("checkpoint-*"):
        verify(checkpoint)
        states = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"].values()
        tensors = [
            *load_file(checkpoint / "model.safetensors").values(),
            *(value for state in states for value in state.values()),
        ]
        assert all(torch.isfinite(tensor).all() for tensor in tensors)


@pytest.mark.parametrize(
    "change, at, found",
    [
        (
            nan_in_layer,
            3,
            rf"step 4: the loss is nan; parameter '{LAYER}' has 1 values that are not finite",
        ),
        (
            nan_in_next_gradient,
            2,
            r"step 4: the loss is nan; parameter 'model.embed_tokens.weight' has \d+ values that "
            r"are not finite",
        ),
    ],
)
def test_sft_stops_at_the_next_step_and_names_parameter_and_last_good_checkpoint(
    tmp_path, monkeypatch, capsys, change, at, found
):
    """Checkpoints are written after steps 2, 4, ...: a gradient that is no number spoils all
    weights in step 3.
    """
    experiment = tiny_run(tmp_path, sft=SFT)
    said = stopped(sft, experiment, monkeypatch, capsys, Plant(at, change))
    good = partial_path(experiment, "sft") / "checkpoint-2"
    assert re.fullmatch(
        rf"{found}; the last good checkpoint is {good}; lower the learning rate or check the "
        rf"data\n",
        said,
    )


@pytest.mark.parametrize(
    "change, at, name", [(nan_in_layer, 4, LAYER), (infinite_token, 3, "model.embed_tokens.weight")]
)
def test_spoilt_weights_are_not_saved_even_where_no_loss_shows_them(
    tmp_path, monkeypatch, capsys, change, at, name
):
    """Spoilt in the very step that saves; or a token that is infinitely unlikely, which leaves
    losses without it finite.
    """
    experiment = tiny_run(tmp_path, sft=SFT)
    monkeypatch.setattr(RankingTrainer, "evaluate", lambda self, *_, **__: {"eval_NDCG@10": 0.0})
    said = stopped(sft, experiment, monkeypatch, capsys, Plant(at, change))
    good = partial_path(experiment, "sft") / "checkpoint-2"
    assert said == (
        f"step 4: parameter '{name}' has 1 values that are not finite; it was not saved; the last "
        f"good checkpoint is {good}; "
        "lower the learning rate\n"
    )


def test_a_validation_with_spoilt_weights_stops_too(tmp_path, monkeypatch, capsys):
    """It would rank nothing at all, which looks like a metric of 0."""
    said = stopped(sft, tiny_run(tmp_path, sft=SFT), monkeypatch, capsys, Plant(2, nan_in_layer))
    assert said.startswith(
        f"step 2: the model's scores are not numbers; parameter '{LAYER}' has 1 values that are "
        "not finite; there is no"
    )


def spoil_embeddings(experiment) -> None:
    """One item's embedding is NaN, in a directory that is whole: as if an earlier stage had written
    it so.
    """
    folder = stage_path(experiment, "sids")
    embeddings = np.load(folder / "embeddings.npy")
    embeddings[:, 0] = np.nan
    np.save(folder / "embeddings.npy", embeddings)
    folder.rename(folder.with_name("spoilt"))
    data = stage_path(experiment, "data")
    with committed(folder, "sids", settings_of(experiment, "sids"), [opened(data)]) as staging:
        for name in ("sids.json", "embeddings.npy"):
            link_or_copy(folder.with_name("spoilt") / name, staging / name)


def test_rl_names_the_reward_that_is_not_a_number(tmp_path, monkeypatch, capsys):
    experiment = tiny_run(tmp_path, sft=SFT, rl=RL | {"rewards": {"rule": 1.0, "semantic": 0.5}})
    spoil_embeddings(experiment)
    sft.train(experiment, stage_path(experiment, "sft"))
    said = stopped(rl, experiment, monkeypatch, capsys)
    assert said == (
        "step 1: the loss is nan, reward is nan, reward/semantic is nan; all parameters are "
        "finite; there is no earlier "
        "checkpoint; lower the learning rate or check the data\n"
    )


def test_rl_names_the_kl_of_a_reference_that_is_spoilt(tmp_path, monkeypatch, capsys):
    experiment = tiny_run(tmp_path, sft=SFT, rl=RL)
    sft.train(experiment, stage_path(experiment, "sft"))
    loaded = []

    def load(*args):
        model, tokenizer = original(*args)
        loaded.append(model)
        if len(loaded) == 2:  # the policy is the first
            nan_in_layer(model)
        return model, tokenizer

    original = backbone.load
    monkeypatch.setattr(backbone, "load", torch.no_grad()(load))
    said = stopped(rl, experiment, monkeypatch, capsys)
    assert re.fullmatch(
        r"step \d: the loss is nan, kl is nan; all parameters are finite; .*\n", said
    )


def test_rl_stops_in_the_step_after_its_policy_was_spoilt(tmp_path, monkeypatch, capsys):
    experiment = tiny_run(tmp_path, sft=SFT, rl=RL | {"evals": 3})
    sft.train(experiment, stage_path(experiment, "sft"))
    said = stopped(rl, experiment, monkeypatch, capsys, Plant(3, nan_in_layer))
    good = partial_path(experiment, "rl") / "checkpoint-2"
    assert said == (
        f"step 4: the model's scores are not numbers; parameter '{LAYER}' has 1 values that are "
        "not finite; the last good "
        f"checkpoint is {good}; lower the learning rate or check the data\n"
    )


def test_an_evaluation_of_a_spoilt_checkpoint_is_refused_instead_of_scoring_0(tmp_path):
    experiment = tiny_run(
        tmp_path, sft=SFT, evaluate={"num_beams": 10, "checkpoint": str(tmp_path / "foreign")}
    )
    made = stage_path(experiment, "sft")
    sft.train(experiment, made)
    made.rename(tmp_path / "foreign")
    (tmp_path / "foreign" / MANIFEST).unlink()
    weights = load_file(tmp_path / "foreign/model.safetensors")
    weights[LAYER][3, 3] = float("nan")
    save_file(weights, tmp_path / "foreign/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError,
        match="^the model's scores are not numbers: one of its weights is NaN or infinite; "
        "use an earlier ",
    ):
        evaluate.evaluate(experiment, evaluation_path(experiment))
    assert not evaluation_path(experiment).exists()


def test_no_number_of_a_log_is_replaced(tmp_path):
    """The Trainer shows the mean of earlier losses in place of one that is NaN unless it is told
    not to.
    """
    experiment = tiny_run(tmp_path, sft=SFT)
    path = stage_path(experiment, "sft")
    sft.train(experiment, path)
    assert (
        run.training_arguments(
            experiment, "sft", eval_steps=1, total_steps=1
        ).logging_nan_inf_filter
        is False
    )
    assert all(
        np.isfinite(row["loss"])
        for row in map(json.loads, (path / "log.jsonl").read_text().splitlines())
        if "loss" in row
    )
