"""Which directories belong together: a stage reads what was made with its settings.

Everything here is a question: it reads manifests and files, and changes nothing on the disk.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from minionerec.errors import UserError, relative_to
from minionerec.experiment.files import fingerprint
from minionerec.experiment.manifest import MANIFEST, Parent, read_manifest, verify
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import (
    COMMANDS,
    OF_EACH_STAGE,
    STAGES,
    TRAINED,
    WITHOUT_EFFECT,
    flat_settings,
    outputs,
    result_name,
    settings_difference,
    settings_of,
    stage_path,
)

# What --redo calls the stages that another stage's command makes on its way
REDONE = {"baseline_networks": "baselines", "baseline_tiger": "baselines", "fusion": "evaluate"}
EXEMPT = OF_EACH_STAGE | WITHOUT_EFFECT  # may differ from what a parent was made with


def open_stage(experiment: Experiment, stage: str, digests: bool = True) -> Parent:
    """The directory of an earlier stage, verified, and which one it is now.

    Args:
        experiment: whose settings the stage, and all it was made from, must agree with.
        stage: a name of ``STAGES``.
        digests: as for ``verify``.

    Raises:
        UserError: it is missing (the command that makes it is named), damaged, another stage under
            this name, made from other parents than those on the disk, or with other settings.
    """
    path = stage_path(experiment, stage)
    if not path.is_dir():
        raise UserError(f"{path} not found; run `{COMMANDS[stage]}` with the same --config first")
    manifest = verify(path, digests)
    require_is(path, manifest, stage)
    check_parents(path, manifest)
    check_settings(experiment, path, manifest)
    return Parent(path, manifest["manifest_sha256"])


def require_stage(experiment: Experiment, stage: str, digests: bool = True) -> Path:
    """The directory of an earlier stage, for readers that write nothing; as ``open_stage``."""
    return open_stage(experiment, stage, digests).path


def open_folder(experiment: Experiment, path: Path, digests: bool = True) -> Parent:
    """A committed directory given by its path, e.g. another experiment's checkpoint.

    Raises:
        UserError: as ``open_stage``.
    """
    manifest = verify(path, digests)
    check_parents(path, manifest)
    check_settings(experiment, path, manifest)
    return Parent(path, manifest["manifest_sha256"])


class Checkpoint(NamedTuple):
    """The folder of a model, as it was when it was opened."""

    path: Path
    digest: str  # its manifest's, or of a foreign folder that of its files
    parents: list[Parent]  # itself; a foreign folder has no manifest and is nobody's parent
    sources: dict[str, Any]  # of a foreign folder: its path and fingerprint, for the manifest


def open_checkpoint(experiment: Experiment, name: str) -> Checkpoint:
    """The checkpoint that ``evaluate.checkpoint`` names: a stage, or any folder.

    Raises:
        UserError: there is none, or as ``open_stage``.
    """
    folder = stage_path(experiment, name) if name in TRAINED else Path(name)
    if name not in TRAINED and not (folder / "config.json").is_file():
        raise UserError(
            f"evaluate.checkpoint: got '{name}', expected sft, rl or a folder with a config.json; "
            f"no such folder{relative_to(folder)}"
        )
    if name not in TRAINED and not (folder / MANIFEST).is_file():
        found = fingerprint(folder)
        return Checkpoint(folder, found["sha256"], [], {name: found})
    parent = open_stage(experiment, name) if name in TRAINED else open_folder(experiment, folder)
    return Checkpoint(folder, parent.digest, [parent], {})


def require_unchanged(sources: dict[str, Any]) -> None:
    """Refuse source files that changed while they were read; commits look at parents themselves.

    Args:
        sources: path -> fingerprint before it was read.

    Raises:
        UserError: naming the path.
    """
    for name, before in sources.items():
        if fingerprint(Path(name)) != before:
            raise UserError(f"{name}: changed while it was read; run the same command again")


def is_finished(experiment: Experiment, stage: str) -> bool:
    """Whether everything that a stage's command makes is there (``is_done``)."""
    return all(
        is_done(experiment, output.stage, output.path, **output.facts)
        for output in outputs(experiment, stage)
    )


def is_done(experiment: Experiment, stage: str, path: Path | None = None, **facts: Any) -> bool:
    """Whether a directory is there, whole, and made with these settings from what is there now.

    Raises:
        UserError: it was made with other settings (each is listed) or from other parents or files,
            is another stage under this name, or is damaged.
    """
    path = path or stage_path(experiment, stage)
    if not path.exists():
        return False
    manifest = verify(path)
    require_is(path, manifest, stage, **facts)
    for parent in _parents_on_disk(path, manifest):
        check_settings(experiment, parent, read_manifest(parent))
    changed = settings_difference(manifest["settings"], settings_of(experiment, stage))
    if changed:
        way = f"run again {ways_out(experiment, stage)}"
        if path not in _removed_by_redo(experiment, stage):
            way = f"delete {path} and run the same command again"
        raise UserError(
            f"{path}: was made with other settings ({'; '.join(changed)}); restore them, or {way}"
        )
    check_parents(path, manifest)
    check_sources(path, manifest)
    for parent in _parents_on_disk(path, manifest):
        made = read_manifest(parent)
        if STAGES[made["stage"]].part_of == stage:  # made on the way, by the same command
            check_sources(parent, made)
    if stage == "evaluate":
        _check_checkpoint(experiment, path, manifest)
    return True


def require_is(path: Path, manifest: dict[str, Any], stage: str, **facts: Any) -> None:
    """Refuse a directory that stands under the name of another, as after a copy or a swap.

    Args:
        path: the directory.
        manifest: its manifest, which is believed; its name is not.
        stage: what its name says that it is.
        facts: further entries of the manifest that its name stands for, e.g. ``method``.

    Raises:
        UserError: the manifest says something else.
    """
    manifest = with_method(path, manifest)
    for key, expected in {"stage": stage, **facts}.items():
        found = manifest.get(key)
        if found != expected:
            raise UserError(
                f"{path}: holds something else than its name says ({MANIFEST}: {key} is "
                f"'{found}', expected '{expected}'); rename it back, or delete it and make it again"
            )


def with_method(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the method of a baseline, which those of the first versions do not name."""
    file = path / "metrics.json"
    if "method" in manifest or manifest["stage"] in ("evaluate", "fusion") or not file.is_file():
        return manifest
    metrics = json.loads(file.read_text(encoding="utf-8"))
    return {**manifest, "method": metrics["method"]} if "method" in metrics else manifest


def require_own_name(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a copy or a swap among directories whose names say what they are.

    Raises:
        UserError: as ``require_is``.
    """
    settings = manifest["settings"]
    name = with_method(path, manifest).get("method", manifest["stage"])
    names = {name}
    if manifest["stage"] in ("evaluate", "fusion"):
        checkpoint = settings["evaluate.checkpoint"]
        ending = settings["evaluate.split"]
        if manifest["stage"] == "fusion":
            ending = f"fusion-{ending}"
        name = f"{result_name(checkpoint)}-{ending}"
        # Earlier a path's results were called after its folder alone, or what it led to
        names = {name}
        for folder in (Path(checkpoint), Path(checkpoint).resolve()):
            names.add(f"{folder.name}-{ending}")
    if path.name not in names:
        raise UserError(
            f"{path}: holds something else than its name says ({MANIFEST}: it was made as "
            f"'{name}'); rename it back, or delete it and make it again"
        )


def check_parents(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a directory whose parents are not those it was made from; missing ones are skipped.

    Raises:
        UserError: naming the parent and both digests.
    """
    for relative, digest in manifest["parents"].items():
        parent = Path(os.path.normpath(path / relative))
        if not parent.exists():
            continue
        found = read_manifest(parent)["manifest_sha256"]
        if found != digest:
            raise UserError(
                f"{path}: was made from another {parent} (manifest {digest[:12]}, "
                f"now {found[:12]}); delete {path} and run `{_maker(manifest)}` again"
            )


def check_settings(experiment: Experiment, path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a directory that was made with other settings than the experiment has now.

    Its parents, their parents and so on are looked at first: theirs are the ones to make again.

    Raises:
        UserError: naming the keys, the directory that was made with them, and what to do.
    """
    for parent in _parents_on_disk(path, manifest):
        check_settings(experiment, parent, read_manifest(parent))
    now = json.loads(json.dumps(flat_settings(experiment)))
    before = {
        key: value
        for key, value in manifest["settings"].items()
        if key in now and key not in EXEMPT
    }
    changed = settings_difference(before, {key: now[key] for key in before})
    if changed:
        raise UserError(
            f"{path}: was made with other settings ({'; '.join(changed)}); "
            f"{_what_to_do(experiment, path, manifest)}"
        )


def _what_to_do(experiment: Experiment, path: Path, manifest: dict[str, Any]) -> str:
    run = stage_path(experiment, "data").parent
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(run)):
        return (
            "it is of another experiment: give this command the settings it was made with, or use "
            "it with the --config and --name of that one"
        )
    if "made_by" in manifest:
        return f"restore them, or run `{manifest['made_by']}` with them and another --to NAME"
    return (
        f"restore them, or run `{_maker(manifest)}` first {ways_out(experiment, manifest['stage'])}"
    )


def ways_out(experiment: Experiment, stage: str) -> str:
    """What to run a command with whose settings are not those of a finished stage."""
    run = stage_path(experiment, stage).parent
    return (
        f"with --redo {REDONE.get(stage, stage)} (makes it and what follows again), or with "
        f"--name NAME --from {run} (another experiment that shares what is the same)"
    )


def check_sources(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a directory whose source files have changed; those that are gone are skipped.

    Raises:
        UserError: naming the file.
    """
    for name, before in manifest.get("sources", {}).items():
        if Path(name).exists() and fingerprint(Path(name)) != before:
            raise UserError(
                f"{path}: {name} has changed since it was read; run `{_maker(manifest)}` again "
                f"with --redo {REDONE.get(manifest['stage'], manifest['stage'])}, or give this "
                "experiment another name with --name NAME"
            )


def _check_checkpoint(experiment: Experiment, path: Path, manifest: dict[str, Any]) -> None:
    """Refuse an evaluation of another folder than the one that ``evaluate.checkpoint`` now means.

    A relative path means another folder in another working directory.
    """
    folder = Path(experiment.evaluate.checkpoint)
    if experiment.evaluate.checkpoint in TRAINED or not folder.is_dir():
        return
    if (folder / MANIFEST).is_file():
        now = read_manifest(folder)["manifest_sha256"]
    else:
        now = fingerprint(folder)["sha256"]
    before = manifest.get("checkpoint_sha256", now)
    if now != before:
        raise UserError(
            f"{path}: ranks with another checkpoint ({before[:12]}) than {folder.absolute()} "
            f"({now[:12]}); delete {path}, or give this experiment another name with --name NAME"
        )


def _parents_on_disk(path: Path, manifest: dict[str, Any]) -> list[Path]:
    parents = [Path(os.path.normpath(path / relative)) for relative in manifest["parents"]]
    return [parent for parent in parents if parent.exists()]


def _removed_by_redo(experiment: Experiment, stage: str) -> list[Path]:
    """Not so an audit, nor SIDs that were made to be compared."""
    if stage == "audit":
        return []
    return [output.path for output in outputs(experiment, REDONE.get(stage, stage))]


def _maker(manifest: dict[str, Any]) -> str:
    return manifest.get("made_by", COMMANDS[manifest["stage"]])
