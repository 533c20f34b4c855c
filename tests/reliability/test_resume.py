"""A run continued from any of its checkpoints ends in the same bits, also from the last one; a
checkpoint that lacks a piece is refused.

bash test.sh tests/reliability/test_resume.py
bash test.sh tests/reliability/test_resume.py -m slow        from every step
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import minionerec_trainer
import rl
import sft
from minionerec.errors import UserError
from minionerec.experiment.manifest import MANIFEST
from minionerec.experiment.stages import partial_path, stage_path
from minionerec.pages import plots
from minionerec.training.checkpoints import last_checkpoint
from tests.forks import artefacts
from tests.worlds import tiny_run

SFT = {
    "tasks": {"sid_to_sid": 1.0},
    "epochs": 3,
    "evals_per_epoch": 4,
    "batch_size": 32,
    "micro_batch_size": 16,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "dropout": 0.1,
    "eval_rows": 10,
    "patience": 0,
}
RL = {
    "num_generations": 4,
    "batch_size": 16,
    "micro_batch_size": 8,
    "epochs": 1.7,
    "evals": 12,
    "eval_rows": 10,
    "eval_beams": 10,
    "learning_rate": 1e-2,
    "beta": 0.1,
    "sync_ref_steps": 3,
}
CASES = {  # stage, its settings, the steps after which it saves
    "sft": (sft, SFT, range(1, 13)),
    "sft that stops early": (sft, SFT | {"patience": 3, "learning_rate": 1e-4}, range(1, 5)),
    "rl": (rl, RL, range(1, 13)),
    "rl with reused rollouts": (
        rl,
        RL | {"epochs": 0.85, "evals": 6, "num_iterations": 2, "rollout": "gumbel"},
        range(2, 13, 2),
    ),
}


def world(folder: Path, stage, settings: dict):
    """An experiment that is ready for the stage."""
    torch.set_num_threads(1)
    experiment = tiny_run(folder, **{"sft": SFT | {"epochs": 1}, stage.__name__: settings})
    if stage is rl:
        sft.train(experiment, stage_path(experiment, "sft"))
    return experiment


@pytest.fixture
def saves(monkeypatch, tmp_path):
    """Keeps what an unfinished stage has on disk after each of its saves, by step; pictures are
    left out.
    """
    monkeypatch.setattr(plots, "curves", lambda rows, path: path.write_text(json.dumps(rows)))
    original, kept = minionerec_trainer.RankingTrainer.save_checkpoint, {}

    def save(self, *args):
        original(self, *args)
        kept[self.state.global_step] = tmp_path / f"after-{self.state.global_step}"
        shutil.rmtree(kept[self.state.global_step], ignore_errors=True)
        shutil.copytree(self.args.output_dir, kept[self.state.global_step], copy_function=os.link)

    monkeypatch.setattr(minionerec_trainer.RankingTrainer, "save_checkpoint", save)
    return kept


def interrupted(experiment, stage: str, kept: Path) -> None:
    """Leave a stage as it was after a save: what lay on disk then, and no finished directory."""
    partial = partial_path(experiment, stage)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(kept, partial)


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_a_run_resumed_from_any_step_ends_in_the_same_bits(tmp_path, saves, case, every):
    """Weights, log, choice of the best step; dropout, accumulation, a reference that moves, reused
    rollouts, an early stop.
    """
    stage, settings, steps = CASES[case]
    experiment = world(tmp_path, stage, settings)
    saves.clear()
    path = stage_path(experiment, stage.__name__)
    stage.train(experiment, path)
    expected, after = artefacts(path), dict(saves)
    assert list(after) == list(steps)
    for step in reversed(sorted(after, reverse=True)[::every]):
        shutil.rmtree(path)
        interrupted(experiment, stage.__name__, after[step])
        torch.rand(17)  # whatever another process did before
        stage.train(experiment, path)
        assert artefacts(path) == expected, step


def test_a_run_whose_folder_was_moved_still_hands_on_its_best_step(tmp_path, saves):
    """The Trainer remembers the best checkpoint by its old path, does not find it, and ends with
    the last step instead.
    """
    experiment = world(tmp_path / "here", sft, SFT | {"learning_rate": 3e-2})
    path = stage_path(experiment, "sft")
    sft.train(experiment, path)
    assert (
        json.loads((saves[12] / "checkpoint-12/trainer_state.json").read_text())["best_global_step"]
        < 12
    )
    expected = artefacts(path)
    shutil.rmtree(path)
    interrupted(experiment, "sft", saves[12])
    (tmp_path / "here").rename(tmp_path / "there")
    moved = world(tmp_path / "there", sft, SFT | {"learning_rate": 3e-2})
    sft.train(moved, stage_path(moved, "sft"))
    assert artefacts(stage_path(moved, "sft")) == expected


def test_every_piece_of_a_checkpoint_that_is_missing_is_named(tmp_path, saves):
    """The Trainer goes on without random numbers or optimiser and says so to a log that nobody
    reads.
    """
    experiment = world(tmp_path, rl, RL | {"epochs": 0.4, "evals": 3})
    rl.train(experiment, stage_path(experiment, "rl"))
    checkpoint = saves[3] / "checkpoint-3"
    files = {
        str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*") if file.is_file()
    } - {MANIFEST}
    assert {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "ref_model/model.safetensors",
        "tokenizer.json",
        "sids.json",
        "prompt_template.json",
    } <= files
    for name in sorted(files):
        (checkpoint / name).rename(tmp_path / "elsewhere")
        with pytest.raises(UserError) as caught:
            last_checkpoint(saves[3])
        assert str(caught.value) == (
            f"{checkpoint / name}: is missing though MANIFEST.json lists it; delete {checkpoint} "
            "and "
            "make it again"
        )
        (tmp_path / "elsewhere").rename(checkpoint / name)
    assert last_checkpoint(saves[3]) == checkpoint


def test_a_damaged_best_checkpoint_is_never_handed_on(tmp_path, saves):
    """It is not the one that a run continues from, so that nothing else looks at it."""
    experiment = world(tmp_path, sft, SFT | {"learning_rate": 3e-2})
    path = stage_path(experiment, "sft")
    sft.train(experiment, path)
    shutil.rmtree(path)
    partial = partial_path(experiment, "sft")
    interrupted(experiment, "sft", saves[12])
    state = json.loads((partial / "checkpoint-12/trainer_state.json").read_text())
    best = partial / f"checkpoint-{state['best_global_step']}"
    weights = bytearray((best / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (best / "model.safetensors").unlink()
    (best / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=f"^{best}/model.safetensors: is damaged"):
        sft.train(experiment, path)
    assert not path.exists()
