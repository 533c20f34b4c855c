"""Killed at any moment, told to stop at any step, started in another process: the same command ends in the same bits.

bash test.sh tests/reliability/test_kill.py
bash test.sh tests/reliability/test_kill.py -m slow        100 kills of every stage
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minionerec.experiment import run
from minionerec.experiment.manifest import verify
from minionerec.training.batches import MicroBatchSeeds
from minionerec.training.callbacks import StopSignal
from tests import forks


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> forks.Reference:
    return forks.Reference(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", forks.STAGES)
def test_a_stage_killed_at_any_moment_continues_to_the_same_bits(reference, tmp_path, stage, kills):
    """Also when what continues is killed again: the command is repeated until it gets through, on ever new copies.

    The moments are spread over a run's length, which is measured again and again: other work may share the machine.
    """
    rng, hit, attempt, length = random.Random(kills), 0, 0, reference.seconds[stage]
    while hit < kills:
        attempt += 1
        folder = tmp_path / str(attempt)
        folder.mkdir()
        config, code = reference.before(stage, folder), -signal.SIGKILL
        while code:
            started = time.monotonic()
            code, said = forks.run(
                stage, config, kill_after=rng.uniform(0, length) if hit < kills else None
            )
            forks.check_whole(folder / "runs/shop")
            assert code in (0, -signal.SIGKILL), said
            hit += code == -signal.SIGKILL
            length = 1.1 * length if code else min(length, time.monotonic() - started)
        reference.check(stage, folder)
        shutil.rmtree(folder)


def at_step(step: int, *signals: int) -> None:
    """In a forked stage: send itself signals in the middle of a step, counted from 0."""
    original = MicroBatchSeeds.start

    def start(self, now):
        original(self, now)
        if now == step and self.place == 0:
            for number in signals:
                os.kill(os.getpid(), number)

    MicroBatchSeeds.start = start


@pytest.mark.parametrize(
    "stage, step, number",
    [
        ("sft", 0, signal.SIGTERM),
        ("sft", 5, signal.SIGINT),
        ("rl", 2, signal.SIGINT),
        ("rl", -1, signal.SIGTERM),
    ],
)
def test_a_stop_signal_ends_the_step_saves_it_and_the_same_command_ends_in_the_same_bits(
    reference, tmp_path, stage, step, number
):
    """Step -1 is the last one, after which nothing but the commit is left."""
    config = reference.before(stage, tmp_path)
    steps = len(
        [
            row
            for row in forks.artefacts(reference.folder / "runs/shop" / stage)["log.jsonl"]
            if "loss" in row
        ]
    )
    step %= steps
    code, said = forks.run(stage, config, before=lambda: at_step(step, number))
    assert code == 128 + number, said
    assert re.search(
        rf"stopped by signal {int(number)} at step {step + 1}, which is saved; the same command continues",
        said,
    )
    assert "Traceback" not in said
    verify(tmp_path / f"runs/shop/{stage}.partial/checkpoint-{step + 1}")
    code, said = forks.run(stage, config)
    assert (
        code == 0
        and f"continuing from {tmp_path}/runs/shop/{stage}.partial/checkpoint-{step + 1}" in said
    )
    reference.check(stage, tmp_path)


def test_a_second_signal_ends_a_stage_at_once_and_nothing_is_lost(reference, tmp_path):
    config = reference.before("sft", tmp_path)
    code, said = forks.run("sft", config, before=lambda: at_step(4, signal.SIGTERM, signal.SIGTERM))
    assert code == -signal.SIGTERM, said
    assert forks.check_whole(tmp_path / "runs/shop") >= 4  # data, embeddings, sids and a checkpoint
    assert forks.run("sft", config)[0] == 0
    reference.check("sft", tmp_path)


def test_rollouts_that_are_still_to_be_reused_are_used_up_before_a_stop():
    """With ``num_iterations`` 2 a run stopped in step 3 ends with step 4: within two steps, and
    nothing else needs to be saved.
    """
    stop = StopSignal()
    stop.received, stop.every = signal.SIGTERM, 2
    args, control = type("", (), {"device": "cpu"}), type("", (), {"should_training_stop": False})()
    for step, stops in ((3, False), (4, True)):
        stop.on_step_end(args, type("", (), {"global_step": step}), control)
        assert control.should_training_stop == stops


def test_two_processes_with_other_hash_seeds_write_the_same_bits_in_every_stage(
    reference, tmp_path
):
    config = reference.before("data", tmp_path)
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.forks", str(config), *forks.STAGES],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": seed},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for stage in forks.STAGES:
        reference.check(stage, tmp_path)


def test_a_run_killed_between_its_commit_and_its_end_leaves_nothing_behind(reference, tmp_path):
    """Found by the random kills: the finished stage was right, its checkpoints stayed for ever."""

    def die_before_cleaning_up():
        run.remove = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    config = reference.before("sft", tmp_path)
    assert forks.run("sft", config, before=die_before_cleaning_up)[0] == -signal.SIGKILL
    assert (tmp_path / "runs/shop/sft.partial").exists()
    code, said = forks.run("sft", config)
    assert code == 0 and "is finished" in said
    reference.check("sft", tmp_path)
