"""Which folders of a working directory are checkpoints, and which of them stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minionerec.errors import UserError
from minionerec.experiment.commit import committed
from minionerec.training.checkpoints import CheckpointContents, CheckpointKeeper, last_checkpoint


def make(output: Path, *names: str) -> None:
    for name in names:
        with committed(output / name, "sft", {}, []) as staging:
            (staging / "weights").write_text(name)


def keeper(output: Path) -> CheckpointKeeper:
    no_policy: Any = None  # nothing is written here
    return CheckpointKeeper(output, CheckpointContents("sft", {}, [], no_policy))


def test_the_last_checkpoint_is_that_of_the_highest_step_and_copies_are_none(tmp_path):
    assert last_checkpoint(tmp_path) is None
    make(tmp_path, "checkpoint-9", "checkpoint-10")
    for name in ("checkpoint-12 (1)", "checkpoint-old", "checkpoint-"):
        (tmp_path / name).mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_older_checkpoints_are_forgotten_and_nothing_else_is(tmp_path):
    make(tmp_path, "checkpoint-2", "checkpoint-4", "checkpoint-6")
    (tmp_path / "checkpoint-2 (1)").mkdir()
    own = keeper(tmp_path)
    own.forget_older(keep={own.path(6), own.path(4)})
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert left == {"checkpoint-4", "checkpoint-6", "checkpoint-2 (1)"}


def test_a_damaged_best_checkpoint_is_refused(tmp_path):
    make(tmp_path, "checkpoint-2")
    assert keeper(tmp_path).best(2) == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-2/weights").write_text("other bytes")
    with pytest.raises(UserError, match="is damaged"):
        keeper(tmp_path).best(2)
