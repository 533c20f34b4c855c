"""How every stage runs: nothing twice, nothing beside another process, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from minionerec.errors import UserError
from minionerec.experiment.files import remove
from minionerec.experiment.lineage import is_finished
from minionerec.experiment.lock import locked
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import (
    STAGES,
    next_command,
    partial_path,
    parts_path,
    path_of,
)

Work = Callable[[Experiment, Path], None]


def run_stage(stage: str, work: Work, experiment: Experiment) -> None:
    """Make a stage unless it is finished, and say what comes next.

    Several processes may call this together; the first of them holds the lock and speaks.

    Args:
        stage: a name of ``STAGES``.
        work: makes and commits the directory that it is given; all processes have left the files
            of an interrupted run behind when it returns.
        experiment: its settings.

    Raises:
        UserError: another process makes the same; the directory is there but made otherwise; or
            what ``work`` refuses.
    """
    path = path_of(experiment, stage)
    following = f"; next: {next_command(stage)} with the same --config"
    if STAGES[stage].part_of:
        following = ""  # its command goes on by itself
    if is_finished(experiment, stage):
        forget_interrupted(experiment, stage)
        say(f"{path} is finished{following}")
        return
    if not STAGES[stage].parallel and is_one_of_several():
        make_alone(stage, work, experiment)
    else:
        make(stage, work, experiment)
    say(f"written to {path}{following}")


def make(stage: str, work: Work, experiment: Experiment) -> None:
    """Make a stage with all processes; the first holds the lock."""
    path = path_of(experiment, stage)
    with locked(path) if is_main_process() else contextlib.nullcontext():
        work(experiment, path)
        if is_main_process():
            _forget(experiment, stage)


def make_alone(stage: str, work: Work, experiment: Experiment) -> None:
    """Make a stage whose work is not shared with the first process; the others wait for it.

    They join before the work begins, so that an error of the first one reaches them.
    """
    from minionerec.experiment.processes import processes  # it loads torch

    state = processes()
    state.wait_for_everyone()
    if is_main_process():
        make(stage, work, experiment)
    state.wait_for_everyone()


def forget_interrupted(experiment: Experiment, stage: str) -> None:
    """Remove what a run has left that was killed between the commit of its stage and its end."""
    if is_main_process() and any(path.exists() for path in _of_interrupted(experiment, stage)):
        with contextlib.suppress(UserError), locked(path_of(experiment, stage)):
            _forget(experiment, stage)


def is_main_process() -> bool:
    """Whether this is the first or only process of a launch; known before torch is imported."""
    return os.environ.get("RANK", "0") == "0"


def is_one_of_several() -> bool:
    """Whether other processes belong to this launch; known before torch is imported."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def say(text: str) -> None:
    """Print once, however many processes run."""
    if is_main_process():
        print(text, flush=True)


def _of_interrupted(experiment: Experiment, stage: str) -> tuple[Path, Path]:
    return partial_path(experiment, stage), parts_path(path_of(experiment, stage))


def _forget(experiment: Experiment, stage: str) -> None:
    checkpoints, parts = _of_interrupted(experiment, stage)
    remove(checkpoints)
    shutil.rmtree(parts, ignore_errors=True)
