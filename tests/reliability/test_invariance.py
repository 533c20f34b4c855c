"""Settings that say how fast a result is made do not change it: micro-batches, recomputed
activations, batches of an evaluation.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import rl
import sft
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import evaluation_path, stage_path
from minionerec.pages import plots
from tests.worlds import tiny_run

SFT = {
    "tasks": {"sid_to_sid": 1.0, "sid_to_title": 1.0},
    "epochs": 1,
    "batch_size": 24,
    "learning_rate": 1e-2,
    "eval_rows": 10,
}
RL = {
    "num_generations": 4,
    "batch_size": 24,
    "epochs": 1.3,
    "evals": 2,
    "eval_rows": 10,
    "eval_beams": 10,
    "learning_rate": 1e-3,
    "rollout": "gumbel",
    "beta": 0.1,
    "sft_weight": 0.1,
}
TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(plots, "curves", lambda rows, path: path.write_text(""))


def trained(stage, experiment: Experiment) -> Path:
    path = stage_path(experiment, stage.__name__)
    stage.train(experiment, path)
    return path


def differences(one: Path, other: Path) -> tuple[float, float, int]:
    """Largest difference over all losses and validations, mean difference of the losses, and how
    many losses there were.
    """
    rows, others = (
        [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        for path in (one, other)
    )
    assert [sorted(row) for row in rows] == [sorted(row) for row in others]
    keys = ("loss", "grad_norm", "reward", "kl", "target_logp", "eval_NDCG@10", "eval_HR@10")
    pairs = [
        (key, row[key], twin[key])
        for row, twin in zip(rows, others, strict=True)
        for key in keys
        if key in row
    ]
    losses = [abs(a - b) for key, a, b in pairs if key == "loss"]
    return (
        max(abs(a - b) / max(1.0, abs(a)) for _, a, b in pairs),
        sum(losses) / len(losses),
        len(losses),
    )


@pytest.mark.parametrize("stage", [sft, rl])
def test_a_batch_cut_into_1_3_or_24_micro_batches_takes_the_same_steps(tmp_path, stage):
    """Rows of different lengths, an incomplete last batch, sampled rollouts; losses are sums over a
    count known beforehand.
    """
    if stage is rl:
        start = trained(sft, tiny_run(tmp_path / "start", sft=SFT))
    paths = []
    for micro in (24, 8, 1):
        folder = tmp_path / str(micro)
        experiment = tiny_run(
            folder,
            sft=SFT | ({"micro_batch_size": micro, "dropout": 0.0} if stage is sft else {}),
            rl=RL | {"micro_batch_size": micro},
        )
        if stage is rl:
            shutil.copytree(start, folder / "tiny/sft")
        paths.append(trained(stage, experiment))
    for other in paths[1:]:
        largest, mean, count = differences(paths[0], other)
        assert largest <= TOLERANCE and mean <= TOLERANCE and count >= 6


def test_activations_that_are_computed_again_take_the_same_steps_and_end_in_the_same_weights(
    tmp_path,
):
    """With dropout, whose draws must be the same the second time."""
    model = {
        "template": "compact",
        "text_vocab_size": 300,
        "config": {
            "model_type": "qwen2",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 128,
        },
    }
    paths = [
        trained(
            sft,
            tiny_run(
                tmp_path / str(again),
                model=model | {"gradient_checkpointing": again},
                sft=SFT | {"dropout": 0.1},
            ),
        )
        for again in (False, True)
    ]
    largest, mean, count = differences(*paths)
    assert largest <= TOLERANCE and mean <= TOLERANCE and count >= 6
    one, other = (load_file(path / "model.safetensors") for path in paths)
    assert max((one[name] - other[name]).abs().max().item() for name in one) <= 10 * TOLERANCE


def test_an_evaluation_does_not_depend_on_its_batches(tmp_path):
    """The same lists and the same metrics, to the last bit; scores are written with five digits."""
    experiment = tiny_run(tmp_path, sft=SFT)
    trained(sft, experiment)
    found = []
    for size in (40, 7, 1):
        sized = tiny_run(
            tmp_path,
            sft=SFT,
            evaluate={
                "checkpoint": "sft",
                "num_beams": 10,
                "bootstrap_samples": 20,
                "batch_size": size,
            },
        )
        path = evaluation_path(sized)
        evaluate.evaluate(sized, path)
        metrics = json.loads((path / "metrics.json").read_text())
        records = [
            json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()
        ]
        found.append(
            (
                {key: value for key, value in metrics.items() if key != "cost"},
                [record["item_ids"] for record in records],
                [score for record in records for score in record["scores"]],
            )
        )
        shutil.rmtree(path)
    for metrics, lists, scores in found[1:]:
        assert (metrics, lists) == found[0][:2]
        assert scores == pytest.approx(found[0][2], abs=2e-5)
