"""A run's folder alone is enough: its manifests say with which settings it was made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minionerec.errors import UserError
from minionerec.experiment.manifest import MANIFEST, read_manifest
from minionerec.experiment.problems import problems_of
from minionerec.experiment.settings import Experiment

NEWEST = ("rl", "sft")  # checkpoints of a run, the one that was made last first
SPLITS = ("test", "valid")


def open_run(folder: str | Path, checkpoint: str | Path | None = None) -> Experiment:
    """The experiment that a folder belongs to; ``evaluate.checkpoint`` names the model to use.

    Args:
        folder: ``runs/<name>``, or a checkpoint of a run, such as ``runs/<name>/rl``.
        checkpoint: ``sft``, ``rl`` or a folder; None: the newest of the run, or of the run that it
            extends.

    Raises:
        UserError: there is no such run or checkpoint.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file() and checkpoint is None:
        run, checkpoint = _run_of(folder), folder
    else:
        run = folder
    for stage in ("data", "sids"):
        if not (run / stage / MANIFEST).is_file():
            raise UserError(
                f"{run}: is no run with data and sids (there is no {run / stage / MANIFEST}); "
                "expected runs/<name>, or the folder of one of its checkpoints"
            )
    model = _checkpoint_of(run, checkpoint)
    flat: dict[str, Any] = {}
    for made in (model, run / "data", run / "sids"):
        _collect(made, flat)
    flat |= _as_evaluated(run, model.name)
    flat["evaluate.checkpoint"] = model.name if model.parent == run else str(model)
    return _experiment(run, flat)


def _run_of(checkpoint: Path) -> Path:
    """The run whose SIDs a checkpoint was trained for."""
    if (checkpoint / MANIFEST).is_file():
        for parent in _parents(checkpoint):
            if parent.name == "sids":
                return parent.parent
    raise UserError(
        f"{checkpoint}: does not say which run it belongs to; name both, "
        'Recommender.load("runs/<name>", checkpoint=...)'
    )


def _checkpoint_of(run: Path, named: str | Path | None) -> Path:
    """The folder of the model."""
    if named is not None:
        return run / named if str(named) in NEWEST else Path(named)
    # An extended run has no model of its own: it is asked of the one whose SIDs it went on with
    looked_at = [run]
    while True:
        for stage in NEWEST:
            if (looked_at[-1] / stage / "config.json").is_file():
                return looked_at[-1] / stage
        before = [path.parent for path in _parents(looked_at[-1] / "sids") if path.name == "sids"]
        if not before or not before[0].is_dir():
            names = ", ".join(str(path) for path in looked_at)
            raise UserError(
                f"{names}: holds neither rl nor sft; run `bash sft.sh` with the same --config, "
                "or name a checkpoint"
            )
        looked_at.append(before[0])


def _parents(folder: Path) -> list[Path]:
    manifest = read_manifest(folder)
    return [Path(os.path.normpath(folder / relative)) for relative in manifest["parents"]]


def _collect(folder: Path, flat: dict[str, Any]) -> None:
    """Add the settings that a directory, and before it all that it was made from, was made with."""
    if not (folder / MANIFEST).is_file():
        return  # a foreign checkpoint, or a parent that is gone
    for parent in _parents(folder):
        _collect(parent, flat)
    flat |= read_manifest(folder)["settings"]


def _as_evaluated(run: Path, checkpoint: str) -> dict[str, Any]:
    """Settings of ``evaluate`` from the run's own evaluation of a checkpoint, if there is one."""
    flat: dict[str, Any] = {}
    for kind in ("", "fusion-"):
        for split in SPLITS:
            folder = run / "evaluate" / f"{checkpoint}-{kind}{split}"
            if (folder / MANIFEST).is_file():
                flat |= read_manifest(folder)["settings"]
                break
    return {key: value for key, value in flat.items() if key.startswith("evaluate.")}


def _experiment(run: Path, flat: dict[str, Any]) -> Experiment:
    values: dict[str, Any] = {"name": run.name, "output_dir": str(run.parent)}
    for dotted, value in flat.items():
        section, _, key = dotted.rpartition(".")
        if section:
            values.setdefault(section, {})[key] = value
        else:
            values[key] = value
    try:
        return Experiment(**values)
    except ValidationError as error:
        problem = next(iter(problems_of(error)))
        raise UserError(
            f"{run}: was made with settings that this version does not take "
            f"({problem.key}: {problem.text}); make it again, or use the version that made it"
        ) from error
