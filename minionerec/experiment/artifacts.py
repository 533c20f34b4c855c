"""What stages hand to each other through disk: directories that are whole or absent, and say what they are.

A stage writes into a hidden sibling; the files are synced, ``MANIFEST.json`` (settings, versions, digests, parents)
comes last, and one rename gives the directory its name. A reader checks every digest and that the parents it was made
from are the ones on disk, so that a model is never paired with another catalogue's SIDs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minionerec.errors import UserError
from minionerec.experiment.baselines import BASELINES
from minionerec.experiment.settings import BaselineSettings, Experiment, Settings

if TYPE_CHECKING:
    import numpy as np

MANIFEST = "MANIFEST.json"
TIMING = "timing.jsonl"  # beside the committed directories, whose bytes no clock may change
COMMANDS = {
    "data": "bash data/prepare.sh",
    "embeddings": "bash rqvae/rqvae.sh",
    "sids": "bash rqvae/rqvae.sh",
    "sft": "bash sft.sh",
    "rl": "bash rl.sh",
    "evaluate": "bash evaluate.sh",
    "fusion": "bash evaluate.sh",
    "baselines": "bash baselines/run.sh",
    "baseline_networks": "bash baselines/run.sh",
    "baseline_tiger": "bash baselines/run.sh",
    "collaborative": "bash rl.sh",
    "audit": "python data/audit.py",
}
BASELINE_SETTINGS = ("seed", "evaluate.bootstrap_samples", "evaluate.exclude_history")
_BASELINES = [f"baselines.{key}" for key in BaselineSettings.model_fields if key != "methods"]
TIGER_SETTINGS = (
    "baselines.weight_decay",
    "baselines.patience",
    *(key for key in _BASELINES if ".tiger_" in key),
)
NETWORK_SETTINGS = tuple(key for key in _BASELINES if ".tiger_" not in key)
# The sections of the YAML that decide what a stage writes; a finished stage is only "the same" if these agree.
SECTIONS = {
    "data": ("seed", "data"),
    "embeddings": ("sids.encoder", "sids.max_text_tokens"),
    "sids": ("seed", "sids"),
    "sft": ("seed", "model", "sft"),
    "rl": ("seed", "model", "rl"),
    "evaluate": (
        "seed",
        "evaluate",
        "model.dtype",
        "model.template",
        "model.normalize",
        "model.max_tokens",
        "data.max_history",
    ),
    "fusion": ("seed", "evaluate", "data.max_history"),
    "baselines": BASELINE_SETTINGS,
    "baseline_networks": (*BASELINE_SETTINGS, *NETWORK_SETTINGS),
    "baseline_tiger": (*BASELINE_SETTINGS, *TIGER_SETTINGS),
    "collaborative": ("seed", *NETWORK_SETTINGS),
    "audit": ("data.max_history", "model.max_tokens", "sft.tasks", "rl.tasks"),
}
# Settings inside those sections that change how fast or how verbosely a stage works, never what it writes.
WITHOUT_EFFECT = {"sids.encoder_tokens", "sft.report_to", "rl.report_to", "evaluate.batch_size"}
ONLY_FUSION = {"evaluate.fusion"}  # the model's own ranking is the same whatever it is united with
DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS)
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "sentence-transformers",
    "numpy",
    "pandas",
)


def stage_path(experiment: Experiment, stage: str) -> Path:
    """``runs/<name>/<stage>``."""
    return Path(experiment.output_dir) / experiment.name / stage


def partial_path(experiment: Experiment, stage: str) -> Path:
    """Where an unfinished stage keeps its checkpoints."""
    return stage_path(experiment, f"{stage}.partial")


def evaluation_path(experiment: Experiment) -> Path:
    """``runs/<name>/evaluate/<checkpoint>-<split>``; of a checkpoint given as a path the last component counts."""
    checkpoint = Path(experiment.evaluate.checkpoint).resolve().name
    return stage_path(experiment, "evaluate") / f"{checkpoint}-{experiment.evaluate.split}"


def fusion_path(experiment: Experiment) -> Path:
    """``runs/<name>/evaluate/<checkpoint>-fusion-<split>``, beside the model's own ranking."""
    own = evaluation_path(experiment)
    split = experiment.evaluate.split
    return own.with_name(f"{own.name.removesuffix(split)}fusion-{split}")


def baseline_path(experiment: Experiment, method: str) -> Path:
    """``runs/<name>/baselines/<method>``."""
    return stage_path(experiment, "baselines") / method


def baseline_stage(method: str) -> str:
    """The key of ``SECTIONS`` that says on which settings a baseline depends."""
    return BASELINES[method].stage


def relevant_settings(experiment: Experiment, stage: str) -> dict[str, Any]:
    """The settings that decide what ``stage`` writes, flat: ``{"sft.epochs": 10, ...}``."""
    flat: dict[str, Any] = {}
    for section in SECTIONS[stage]:
        owner, _, key = section.partition(".")
        value = getattr(experiment, owner)
        if key:
            flat[section] = getattr(value, key)
        elif isinstance(value, Settings):
            flat.update({f"{owner}.{name}": item for name, item in value.model_dump().items()})
        else:
            flat[owner] = value
    without = WITHOUT_EFFECT if stage == "fusion" else WITHOUT_EFFECT | ONLY_FUSION
    return {key: value for key, value in flat.items() if key not in without}


def is_done(experiment: Experiment, stage: str, path: Path | None = None) -> bool:
    """Whether the stage's directory is there, whole, and made with these settings from the parents now on disk.

    If so, the checkpoints or parts are forgotten that a run left which was killed between its commit and its end.

    Raises:
        UserError: it was made with other settings (each is listed), from other parents, or is damaged.
    """
    path = path or stage_path(experiment, stage)
    if not path.exists():
        return False
    manifest = verify(path)
    changed = settings_difference(manifest["settings"], relevant_settings(experiment, stage))
    if changed:
        raise UserError(
            f"{path}: was made with other settings ({'; '.join(changed)}); "
            f"delete it, or give this experiment another name with --name NAME"
        )
    check_parents(path, manifest)
    remove(partial_path(experiment, stage))
    shutil.rmtree(path.with_name(f".{path.name}.parts"), ignore_errors=True)
    return True


def settings_difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``["seed: 42 -> 43", ...]`` for the keys on which two flat settings disagree."""
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def require_stage(experiment: Experiment, stage: str, digests: bool = True) -> Path:
    """The directory of an earlier stage, verified.

    Args:
        digests: as for ``verify``.

    Raises:
        UserError: it is missing (the command that makes it is named), damaged, or made from other parents.
    """
    path = stage_path(experiment, stage)
    if not path.is_dir():
        raise UserError(f"{path} not found; run `{COMMANDS[stage]}` with the same --config first")
    check_parents(path, verify(path, digests))
    return path


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a committed directory, byte for byte as it was written.

    Raises:
        UserError: there is none, or it was changed.
    """
    file = path / MANIFEST
    try:
        text = file.read_bytes().decode("ascii")
        manifest = json.loads(text)
        intact = (
            _digest_of_json({k: v for k, v in manifest.items() if k != "manifest_sha256"})
            == manifest["manifest_sha256"]
        )
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path}: has no {MANIFEST}; it was not written by this pipeline or was only partly copied"
        ) from None
    except (ValueError, KeyError, AttributeError):
        raise UserError(
            f"{file}: is damaged (not the JSON that was written); delete {path} and make it again"
        ) from None
    if not intact or _manifest_text(manifest) != text:
        raise UserError(
            f"{file}: is damaged (its digest does not match); delete {path} and make it again"
        )
    return manifest


def verify(path: Path, digests: bool = True) -> dict[str, Any]:
    """Compare every file of a committed directory with its manifest; returns the manifest.

    Args:
        digests: False compares sizes only: instant, for a first look that another reader repeats in full.

    Raises:
        UserError: naming the first file that is missing, shorter or longer than it was, or changed.
    """
    manifest, advice = read_manifest(path), f"delete {path} and make it again"
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: is missing though {MANIFEST} lists it; {advice}")
        size = file.stat().st_size
        if size != expected["size"]:
            raise UserError(
                f"{file}: is damaged ({size} bytes, {MANIFEST} lists {expected['size']}); {advice}"
            )
        if digests and sha256_file(file) != expected["sha256"]:
            raise UserError(
                f"{file}: is damaged (its sha256 is not the one in {MANIFEST}); {advice}"
            )
    return manifest


def check_parents(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a directory whose parents are no longer the ones it was made from; parents that are gone cannot be compared."""
    for relative, digest in manifest["parents"].items():
        parent = Path(os.path.normpath(path / relative))
        if not parent.exists():
            continue
        found = read_manifest(parent)["manifest_sha256"]
        if found != digest:
            raise UserError(
                f"{path}: was made from another {parent} (manifest {digest[:12]}, now {found[:12]}); "
                f"delete {path} and run `{manifest.get('made_by', COMMANDS[manifest['stage']])}` again"
            )


@contextlib.contextmanager
def committed(
    final: Path, stage: str, settings: dict[str, Any], parents: list[Path], **facts: Any
) -> Iterator[Path]:
    """A directory to write into, which gets its final name when the block ends without an error.

    Args:
        final: the name to give; must not exist.
        stage: key of ``COMMANDS``.
        settings: flat settings for the manifest.
        parents: committed directories this one is made from.
        facts: further manifest entries, e.g. ``sids_sha256``, or ``made_by`` where another command than the stage's makes it.

    Raises:
        UserError: the disk is full or not writable; ``final`` is then still absent.
    """
    if final.exists():
        raise UserError(f"{final}: exists already; delete it to make it again")
    staging = final.with_name(f".{final.name}.staging")
    with cleared_on_error(
        final,
        staging,
        lambda: (
            "make room or pass another --output_dir, then run again (nothing half-written "
            "was left behind)"
        ),
    ):
        shutil.rmtree(staging, ignore_errors=True)  # what an earlier run left when it was killed
        staging.mkdir(parents=True)
        yield staging
        commit(staging, final, stage, settings, parents, **facts)


@contextlib.contextmanager
def cleared_on_error(final: Path, staging: Path, advice: Callable[[], str]) -> Iterator[None]:
    """Inside, ``staging`` is written and becomes ``final``; after an error it is gone.

    Raises:
        UserError: the disk is full or broken: how much was written, how much is free, and ``advice``.
    """
    try:
        yield
    except BaseException as error:
        reason, written = _disk_trouble(error), size_of(staging)
        shutil.rmtree(staging, ignore_errors=True)
        if reason is None:
            raise
        free = shutil.disk_usage(final.parent).free if final.parent.exists() else 0
        raise UserError(
            f"{final}: cannot be written: {reason} ({written / 1e6:.1f} MB of it were written, {free / 1e6:.1f} MB are free "
            f"now); {advice()}"
        ) from error


def commit(
    staging: Path,
    final: Path,
    stage: str,
    settings: dict[str, Any],
    parents: list[Path],
    **facts: Any,
) -> None:
    """Sync every file, write the manifest last, sync the directory, rename, sync the parent."""
    files = {
        str(p.relative_to(staging)): {"size": p.stat().st_size, "sha256": sha256_file(p)}
        for p in sorted(staging.rglob("*"))
        if p.is_file() and p != staging / MANIFEST
    }
    manifest = {
        "stage": stage,
        "settings": settings,
        "versions": _versions(),
        "git_commit": _git_commit(),
        "files": files,
        "parents": {
            os.path.relpath(p, final): read_manifest(p)["manifest_sha256"] for p in parents
        },
        **facts,
    }
    manifest = json.loads(json.dumps(manifest))
    manifest["manifest_sha256"] = _digest_of_json(manifest)
    (staging / MANIFEST).write_text(_manifest_text(manifest), encoding="ascii")
    for name in [*files, MANIFEST]:
        fsync(staging / name)
    for directory in [p for p in staging.rglob("*") if p.is_dir()] + [staging]:
        fsync(directory)
    os.rename(staging, final)
    fsync(final.parent)


@contextlib.contextmanager
def locked(final: Path) -> Iterator[None]:
    """Hold the directory's lock while it is made; the kernel releases it when the process ends, however it ends.

    Raises:
        UserError: another process holds it (its pid and host are named), the folder cannot be written, or the disk is full.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle = open(final.with_name(f".{final.name}.lock"), "a+", encoding="ascii")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(
            f"{final.parent}: cannot be written: {os.strerror(error.errno)}; pass another --output_dir"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read() or "just started"
            raise UserError(
                f"{final}: is being written by another process ({holder}); wait for it or stop it"
            ) from None
        handle.truncate(0)
        handle.write(f"pid {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        try:
            yield
        except OSError as error:  # of a file that lets an interrupted stage continue
            reason = _disk_trouble(error)
            if reason is None:
                raise
            raise UserError(
                f"{final}: cannot be written: {reason}; make room, then run the same command again"
            ) from error


def fsync(path: Path) -> None:
    """Flush one file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a directory; it loses its name first, so that a half-deleted one never has it."""
    gone = path.with_name(f".{path.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    if path.exists():
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def size_of(path: Path) -> int:
    """Bytes of all files of a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Digest of a folder's files and their names; "" if there is none."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = json.dumps([[str(path.relative_to(folder)), sha256_file(path)] for path in files])
    return hashlib.sha256(listing.encode()).hexdigest() if files else ""


def load_array(path: Path) -> np.ndarray:
    """An array of numbers from an ``.npy`` file; nothing in it is unpickled.

    Raises:
        UserError: it holds something else.
    """
    import numpy as np

    try:
        with open(path, "rb") as handle:
            return np.lib.format.read_array(handle, allow_pickle=False)
    except ValueError as error:
        raise UserError(
            f"{path}: is not an array of numbers ({error}); delete {path.parent} and make it again"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Readable JSON with stable key order as given."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def append_log(path: Path, row: dict[str, Any]) -> None:
    """One line of ``log.jsonl``."""
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")


def timings(run: Path, stage: str) -> list[dict[str, Any]]:
    """What ``timing.jsonl`` notes of a stage; a line that a kill or a full disk has cut off notes nothing."""
    rows: list[dict[str, Any]] = []
    file = run / TIMING
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if row["stage"] == stage]


def _manifest_text(manifest: dict[str, Any]) -> str:
    """The only bytes that a manifest may consist of, so that no change to them goes unseen."""
    return json.dumps(manifest, indent=1) + "\n"


def _digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _disk_trouble(error: BaseException) -> str | None:
    """The disk's complaint behind an error, if any: safetensors passes it on as text, numpy and torch drop it."""
    for code in DISK_ERRORS:
        if (isinstance(error, OSError) and error.errno == code) or os.strerror(code) in str(error):
            return os.strerror(code)
    if (
        isinstance(error, OSError) and error.errno is None and str(error).endswith(" written")
    ) or "inline_container.cc" in str(error):
        return f"no room for a whole file ({error})"
    return None


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def _git_commit() -> str:
    """The commit of this code, with ``-dirty`` when files were changed since; ``unknown`` outside a git checkout."""
    if shutil.which("git") is None:
        return "unknown"
    command = [
        "git",
        "--no-optional-locks",
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() if found.returncode == 0 else "unknown"
