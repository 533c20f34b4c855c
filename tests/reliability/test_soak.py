"""Memory does not creep: 500 steps of RL with validations and checkpoints.

bash test.sh tests/reliability/test_soak.py -m slow -s
"""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import rl
import sft
from minionerec.experiment.stages import stage_path
from minionerec_trainer import RankingTrainer
from tests.worlds import tiny_run

WARM_UP, EVERY = 100, 20


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Watch(TrainerCallback):
    """Notes memory and open files every so many steps."""

    def __init__(self):
        self.memory, self.files = {}, {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % EVERY == 0:
            gc.collect()
            self.memory[state.global_step], self.files[state.global_step] = (
                resident(),
                len(os.listdir("/proc/self/fd")),
            )


@pytest.mark.slow
def test_500_steps_of_rl_keep_their_memory(tmp_path, monkeypatch):
    """With a reference that moves, dropout off as RL has it, ten validations; less than 1 % after a
    warm-up, no file left open.
    """
    torch.set_num_threads(1)
    experiment = tiny_run(
        tmp_path,
        sft={"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "eval_rows": 10},
        rl={
            "num_generations": 4,
            "batch_size": 16,
            "micro_batch_size": 8,
            "epochs": 500 * 16 / 113,
            "evals": 10,
            "eval_rows": 10,
            "learning_rate": 1e-4,
            "beta": 0.1,
            "sync_ref_steps": 50,
        },
    )
    sft.train(experiment, stage_path(experiment, "sft"))
    watch, original = Watch(), RankingTrainer.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(watch)

    monkeypatch.setattr(RankingTrainer, "__init__", init)
    rl.train(experiment, stage_path(experiment, "rl"))
    after_warm_up = {step: memory for step, memory in watch.memory.items() if step >= WARM_UP}
    assert max(watch.memory) == 500
    growth = max(after_warm_up.values()) / after_warm_up[WARM_UP] - 1
    print(
        f"resident: {after_warm_up[WARM_UP] / 1e6:.1f} MB after {WARM_UP} steps, "
        f"{after_warm_up[500] / 1e6:.1f} MB after 500, "
        f"largest growth {growth:.2%}; open files {watch.files[WARM_UP]} -> {watch.files[500]}"
    )
    assert growth < 0.01
    assert watch.files[500] <= watch.files[WARM_UP]
