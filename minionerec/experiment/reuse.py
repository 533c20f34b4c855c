"""Starting from what is there: ``--from RUN`` shares finished stages, ``--redo STAGE`` removes.

Both are flags of the stage commands and are done before the stage itself looks at anything. What is
shared are links to the same files, under the same manifest: a stage names its parents relative to
itself, so that a chain that is shared whole is as good as the original.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from minionerec.errors import UserError
from minionerec.experiment.files import fsync, link_or_copy, remove
from minionerec.experiment.lineage import is_done
from minionerec.experiment.lock import locked
from minionerec.experiment.manifest import MANIFEST, read_manifest
from minionerec.experiment.problems import did_you_mean
from minionerec.experiment.run import is_main_process, say
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import (
    STAGES,
    Output,
    evaluation_path,
    fusion_path,
    outputs,
    partial_path,
    parts_path,
    settings_difference,
    settings_of,
    stage_path,
)

# Networks that teach SFT, or answer beside it, are made on the way and cost minutes
FOLDS = tuple(name for name in STAGES if name.endswith("_folds"))
SHARED = (
    "data",
    "embeddings",
    "sids",
    "baselines",
    *FOLDS,
    "sft",
    "collaborative",
    "rl",
    "evaluate",
)
FLAGS = ("from", "redo")
YES = "--yes"


def split_words(argv: list[str]) -> tuple[list[str], dict[str, str], bool]:
    """Separate ``--from RUN``, ``--redo STAGE`` and ``--yes`` from the words of a command.

    Returns:
        The other words, the two flags that are there, and whether ``--yes`` is.
    """
    rest = []
    found: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and key in FLAGS:
            text = value if equals else next(words, "")
            if not text or text.startswith("--"):
                raise UserError(f"command line: --{key} has no value; write --{key} VALUE")
            found[key] = text
        elif word != YES:
            rest.append(word)
    return rest, found, YES in argv


def apply(experiment: Experiment, flags: dict[str, str], yes: bool) -> None:
    """Do what the flags say, first ``--redo``, then ``--from``.

    Raises:
        UserError: as ``redo`` and ``share``.
    """
    if not is_main_process():
        return
    if "redo" in flags:
        redo(experiment, flags["redo"], yes)
    elif yes:
        raise UserError(f"command line: {YES} belongs to --redo STAGE; leave it out")
    if "from" in flags:
        share(experiment, Path(flags["from"]))


# ------------------------------------------------------------------------------------------ redo


def redo(experiment: Experiment, stage: str, yes: bool) -> None:
    """Remove a stage and all that was made from it in this experiment.

    Raises:
        UserError: no such stage, or ``yes`` is missing: the directories are listed.
    """
    if stage not in SHARED:
        raise UserError(
            f"command line: --redo: got '{stage}', expected one of {', '.join(SHARED)}"
            f"{did_you_mean(stage, SHARED)}"
        )
    roots = [output.path for output in outputs_of(experiment, stage)]
    doomed = made_from(experiment, roots)
    unfinished = [path for path in _beside(experiment, stage) if path.exists()]
    if not doomed and not unfinished:
        say(f"--redo {stage}: nothing of it is there yet")
        return
    listed = ", ".join(str(path) for path in [*doomed, *unfinished])
    if not yes:
        raise UserError(f"--redo {stage} would remove {listed}; add {YES} to remove them and go on")
    for path in reversed(doomed):
        with locked(path):
            remove(path)
    for path in unfinished:
        shutil.rmtree(path, ignore_errors=True)
    say(f"--redo {stage}: removed {listed}")


def outputs_of(experiment: Experiment, stage: str) -> list[Output]:
    """What a stage may have made, a fusion beside a ranking included."""
    if stage != "evaluate":
        return outputs(experiment, stage)
    paths = {"evaluate": evaluation_path(experiment), "fusion": fusion_path(experiment)}
    return [Output(name, path, STAGES[name].needs, {}) for name, path in paths.items()]


def made_from(experiment: Experiment, roots: list[Path]) -> list[Path]:
    """Those of the directories ``roots`` that exist and everything of the experiment behind them.

    Parents come before what was made from them.
    """
    found = [path for path in roots if path.exists()]
    known = {path.resolve() for path in roots}
    run = stage_path(experiment, "data").parent
    others = sorted(file.parent for file in run.glob("*/**/MANIFEST.json"))
    grew = True
    while grew:
        grew = False
        for path in others:
            if path.resolve() in known or path.name.startswith("."):
                continue
            parents = read_manifest(path)["parents"]
            if any((path / parent).resolve() in known for parent in parents):
                known.add(path.resolve())
                found.append(path)
                grew = True
    return found


def _beside(experiment: Experiment, stage: str) -> list[Path]:
    """What an interrupted run of a stage has left."""
    paths = [partial_path(experiment, stage)]
    return paths + [parts_path(output.path) for output in outputs_of(experiment, stage)]


# ----------------------------------------------------------------------------------------- share


def share(experiment: Experiment, source: Path) -> None:
    """Link the finished stages of another run into this one, as far as their settings agree.

    Raises:
        UserError: there is no such run, or it is this one.
    """
    run = stage_path(experiment, "data").parent
    if not source.is_dir() or not any(source.glob(f"*/{MANIFEST}")):
        raise UserError(
            f"command line: --from: {source}: no experiment's folder with finished stages; name "
            "one such as runs/quickstart"
        )
    if run.exists() and run.resolve() == source.resolve():
        raise UserError(
            f"command line: --from: {source} is this experiment itself; give the new one another "
            "name with --name NAME"
        )
    shared = []
    kept = []
    for stage in SHARED:
        for output in outputs_of(experiment, stage):
            theirs = source / output.path.relative_to(run)
            if output.path.exists() or not theirs.exists():
                continue
            reason = _why_not(experiment, output, theirs)
            name = str(output.path.relative_to(run))
            if reason:
                kept.append(f"{name} ({reason})")
            else:
                _link(theirs, output.path)
                shared.append(name)
    text = f"{run}: shares {', '.join(shared) or 'nothing more'} of {source}"
    if kept:
        text += f"; not shared: {', '.join(kept)}"
    say(text)


def _why_not(experiment: Experiment, output: Output, theirs: Path) -> str:
    """Why a directory of another run cannot stand in this one; "" if it can."""
    try:
        manifest = read_manifest(theirs)
        changed = settings_difference(manifest["settings"], settings_of(experiment, output.stage))
        if changed:
            return "; ".join(changed)
        for relative, digest in manifest["parents"].items():
            parent = Path(os.path.normpath(output.path / relative))
            if not parent.exists() or read_manifest(parent)["manifest_sha256"] != digest:
                return f"its {parent.name} is not shared"
        is_done(experiment, output.stage, theirs, **output.facts)
    except UserError as error:
        return str(error)
    return ""


def _link(source: Path, final: Path) -> None:
    """The same files under another name, whole or not at all."""
    with locked(final):
        staging = final.with_name(f".{final.name}.staging")
        shutil.rmtree(staging, ignore_errors=True)
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            target = staging / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(file, target)
        fsync(staging)
        os.rename(staging, final)
        fsync(final.parent)
