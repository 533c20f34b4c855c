"""A disk that fails or is full: what was there before is whole, nothing half-written gets a name, one line says what to do.

bash test.sh tests/reliability/test_disk.py
"""

from __future__ import annotations

import builtins
import io
import itertools
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import evaluate
import rl
import sft
from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.lock import locked
from minionerec.experiment.manifest import verify
from minionerec.experiment.stages import evaluation_path, partial_path, stage_path
from minionerec.pages import plots
from minionerec.training.checkpoints import last_checkpoint
from tests import forks
from tests.reliability.test_artifacts import demo, make
from tests.worlds import tiny_run

ROOT = Path(__file__).resolve().parents[2]
ROOM = r"\(\d+\.\d MB of it were written, \d+\.\d MB are free now\)"


def for_writing(path: object, mode: str = "r", *rest: object, **named: object) -> bool:
    """Whether these arguments of ``open`` open a file for writing."""
    return bool(set(mode) & set("wax+"))


class FailingDisk:
    """Lets the operating system's Nth call that makes, opens for writing, syncs or renames fail,
    for any code in this process.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, error: int):
        self.calls, self.fail_at, self.error = 0, fail_at, error
        for name in ("fsync", "rename"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        monkeypatch.setattr(
            os, "mkdir", self.counted(os.mkdir, lambda path, *rest: not os.path.isdir(path))
        )
        for module in (io, builtins):
            monkeypatch.setattr(module, "open", self.counted(module.open, for_writing))

    def counted(self, function, matters=lambda *args, **named: True):
        """``function``, which raises instead when it is called for the Nth time in a way that
        matters.
        """

        def call(*args, **named):
            if matters(*args, **named):
                self.calls += 1
                if self.calls == self.fail_at:
                    raise OSError(self.error, os.strerror(self.error))
            return function(*args, **named)

        return call


@pytest.mark.parametrize("error", [28, 5])  # ENOSPC, EIO
def test_failing_any_single_disk_operation_never_leaves_a_half_directory(tmp_path, error):
    """Fail the 1st, 2nd, 3rd ... operation until a save gets through, as sqlite's crash tests do;
    then save on the same spot.
    """
    for fail_at in itertools.count(1):
        experiment = demo(tmp_path / str(fail_at))
        data, final = make(experiment, "data"), stage_path(experiment, "sids")
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, fail_at, error)
            try:
                make(experiment, "sids", "data")
                message = ""
            except UserError as caught:
                message = str(caught)
        verify(data)
        assert {entry.name for entry in final.parent.iterdir()} <= {
            "data",
            "sids",
        }  # no staging folder either
        if final.exists():
            verify(final)
        if disk.calls < fail_at:
            break
        assert re.fullmatch(
            rf"{final}: cannot be written: {os.strerror(error)} {ROOM}; make room or pass another --output_dir, "
            r"then run again \(nothing half-written was left behind\)",
            message,
        )
        if not final.exists():
            verify(make(experiment, "sids", "data"))
    # mkdir of the staging folder and of nested/; 5 files and the manifest opened; the 6 synced, the
    # 2 folders synced; rename; the parent synced: 2 + 6 + 6 + 2 + 1 + 1 = 18 operations, so that
    # the 19th attempt fails nothing.
    assert fail_at == 19


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from minionerec.errors import one_line_errors
from minionerec.experiment.commit import committed
from minionerec.experiment.files import append_log

rows = np.zeros((1000, 64), np.float32)                                  # 256,000 bytes, more than a file may have below

def with_numpy(folder):
    np.save(folder / "rows.npy", rows)

def with_safetensors(folder):
    from safetensors.numpy import save_file
    save_file({"rows": rows}, folder / "rows.safetensors")

def with_parquet(folder):
    import pandas as pd
    pd.DataFrame(np.random.default_rng(0).normal(size=(4000, 8)), columns=list("abcdefgh")).to_parquet(folder / "rows.parquet")

def with_text(folder):
    (folder / "rows.txt").write_text("x" * 256_000)

def with_log(folder):
    for step in range(20_000):
        append_log(folder / "log.jsonl", {"step": step})

final, writer = Path(sys.argv[1]), globals()["with_" + sys.argv[2]]
with committed(final.parent / "warm-up", "sids", {}, []) as staging:      # imports what it needs, and must stay intact
    (staging / "a.txt").write_text("a")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with one_line_errors(), committed(final, "sids", {}, []) as staging:
    writer(staging)
"""


@pytest.mark.parametrize("library", ["numpy", "safetensors", "parquet", "text", "log"])
def test_a_disk_that_is_full_is_said_in_one_line_and_leaves_nothing_half_written(tmp_path, library):
    """The kernel refuses every byte after the 100,000th of a file (RLIMIT_FSIZE), whoever writes
    it.
    """
    final = tmp_path / "sids"
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(final), library],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"{final}: cannot be written: ") and run.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["warm-up"]
    verify(tmp_path / "warm-up")


def check_checkpoints(partial: Path) -> Path:
    """Every checkpoint is whole and nothing else has a final name; returns the newest."""
    for path in partial.glob("[!.]*"):
        assert path.name.startswith("checkpoint-")
        verify(path)
    return last_checkpoint(partial)


def with_failing_disk(
    fail_at: int, path: Path, work: Callable[[], None]
) -> tuple[FailingDisk, int]:
    """Work under the lock of ``path`` as a script does; -> the disk, and the script's exit code."""
    try:
        with one_line_errors(), locked(path), pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, fail_at, 28)
            work()
        return disk, 0
    except SystemExit as stopped:
        return disk, stopped.code


@pytest.mark.parametrize("stage", [sft, rl])
def test_failing_any_single_disk_operation_of_a_checkpoint_leaves_the_one_before(
    tmp_path, monkeypatch, capsys, stage
):
    """The trainer of a real stage saves again and again at its end, until an attempt gets through."""
    trainers = []
    monkeypatch.setattr(plots, "save_log", lambda trainer, *_: trainers.append(trainer))
    experiment = tiny_run(
        tmp_path,
        sft={"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "eval_rows": 10},
        rl={
            "num_generations": 4,
            "batch_size": 16,
            "epochs": 0.3,
            "evals": 2,
            "beta": 0.1,
            "sync_ref_steps": 1,
            "eval_rows": 10,
        },
    )
    for name in (sft, rl)[: 1 + (stage is rl)]:
        name.train(experiment, stage_path(experiment, name.__name__))
    trainer, partial = trainers[-1], partial_path(experiment, stage.__name__)
    for fail_at in itertools.count(1):
        before = check_checkpoints(partial)
        trainer.state.global_step += 1
        path = partial / f"checkpoint-{trainer.state.global_step}"
        disk, code = with_failing_disk(
            fail_at, partial, lambda: trainer.save_checkpoint(trainer.model)
        )
        said = capsys.readouterr().err
        assert check_checkpoints(partial) == (path if path.exists() else before)
        if path.exists() and before.exists():
            assert sorted(os.listdir(path)) == sorted(
                os.listdir(before)
            )  # no failure was passed over
        if disk.calls < fail_at:
            break
        assert code == 2 and said.count("\n") == 1 and "No space left on device" in said
        if not path.exists():
            assert re.fullmatch(
                rf"{path}: cannot be written: No space left on device {ROOM}; a checkpoint needs about 0\.\d MB; "
                rf"the last good checkpoint is {before}; make room, then run the same command again\n",
                said,
            )
    assert fail_at > 30


def test_failing_any_single_disk_operation_of_an_evaluation_leaves_no_results_or_whole_ones(
    tmp_path, capsys
):
    experiment = tiny_run(
        tmp_path,
        sft={"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "eval_rows": 10},
        evaluate={"checkpoint": "sft", "num_beams": 10, "bootstrap_samples": 5},
    )
    sft.train(experiment, stage_path(experiment, "sft"))
    path, predictions = evaluation_path(experiment), set()
    for fail_at in itertools.count(1):
        disk, code = with_failing_disk(fail_at, path, lambda: evaluate.evaluate(experiment, path))
        said = capsys.readouterr().err
        if disk.calls >= fail_at:
            assert (
                code == 2
                and said.count("\n") == 1
                and ": cannot be written: No space left on device" in said
            )
        if path.exists():
            verify(path)
        else:
            evaluate.evaluate(experiment, path)  # the same command continues
        predictions.add((path / "predictions.jsonl").read_bytes())
        if disk.calls < fail_at:
            break
        shutil.rmtree(path)
    assert fail_at > 5 and len(predictions) == 1


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> forks.Reference:
    return forks.Reference(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "stage, name, share",
    [
        ("data", "data", 0.5),
        ("sids", "embeddings", 0.3),
        ("sids", "embeddings", 0.8),
        ("sids", "sids", 0.5),
        ("sft", "sft", 0.5),
        ("rl", "rl", 0.5),
        ("evaluate", "evaluate", 0.5),
    ],
)
def test_a_full_disk_stops_every_stage_with_one_line_and_the_same_command_continues(
    reference, tmp_path, stage, name, share
):
    """No file may grow beyond a share of the largest one that the stage has to write."""
    largest = max(
        file.stat().st_size
        for file in (reference.folder / "runs/shop" / name).rglob("*")
        if file.is_file()
    )
    config = reference.before(stage, tmp_path)
    limit = int(share * largest)
    code, said = forks.run(
        stage, config, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert code == 2 and "Traceback" not in said, said
    assert re.search(r"^\S+: cannot be written: .*; .*make room.* again.*$", said.splitlines()[-1])
    forks.check_whole(tmp_path / "runs/shop")
    code, said = forks.run(stage, config)
    assert code == 0, said
    reference.check(stage, tmp_path)


def test_a_disk_that_fills_up_during_training_says_what_a_checkpoint_needs_and_which_one_is_intact(
    reference, tmp_path
):
    def full_after_the_first_save():
        original, saves = sft_trainer.save_checkpoint, []

        def save(self, *args):
            if saves:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            saves.append(original(self, *args))

        sft_trainer.save_checkpoint = save

    import minionerec_trainer

    sft_trainer = minionerec_trainer.RankingTrainer
    config = reference.before("sft", tmp_path)
    code, said = forks.run("sft", config, before=full_after_the_first_save)
    partial = tmp_path / "runs/shop/sft.partial"
    assert code == 2 and "Traceback" not in said, said
    assert re.search(
        rf"^{partial}/checkpoint-4: cannot be written: .*{ROOM}; a checkpoint needs about 0\.\d MB; the last good checkpoint "
        rf"is {partial}/checkpoint-2; make room, then run the same command again$",
        said.splitlines()[-1],
    )
    assert check_checkpoints(partial) == partial / "checkpoint-2"
    assert forks.run("sft", config)[0] == 0
    reference.check("sft", tmp_path)
