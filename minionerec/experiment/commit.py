"""Directories that are whole or absent, whatever interrupts their writing.

A stage writes into a hidden sibling. Its files are synced, ``MANIFEST.json`` comes last, the
directory is synced, one rename gives it its name, and the folder above is synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minionerec.errors import UserError
from minionerec.experiment.files import fsync, size_of
from minionerec.experiment.manifest import (
    MANIFEST,
    Parent,
    manifest_for,
    read_manifest,
    write_manifest,
)

DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def committed(
    final: Path, stage: str, settings: dict[str, Any], parents: list[Parent], **facts: Any
) -> Iterator[Path]:
    """A directory to write into, which gets its final name when the block ends without an error.

    Args:
        final: the name to give; must not exist.
        stage: a name of ``stages.STAGES``.
        settings: flat settings for the manifest.
        parents: the directories that this one is made from, as they were when they were opened.
        facts: further manifest entries, e.g. ``sids_sha256``, or ``made_by`` where another command
            than the stage's makes it.

    Raises:
        UserError: the disk is full or not writable, or a parent is no longer the one that was
            opened; ``final`` is then still absent.
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
        UserError: the disk is full or broken: how much was written, how much is free, and
            ``advice``.
    """
    try:
        yield
    except BaseException as error:
        reason, written = disk_trouble(error), size_of(staging)
        shutil.rmtree(staging, ignore_errors=True)
        if reason is None:
            raise
        free = shutil.disk_usage(final.parent).free if final.parent.exists() else 0
        raise UserError(
            f"{final}: cannot be written: {reason} ({written / 1e6:.1f} MB of it were written, "
            f"{free / 1e6:.1f} MB are free now); {advice()}"
        ) from error


def commit(
    staging: Path,
    final: Path,
    stage: str,
    settings: dict[str, Any],
    parents: list[Parent],
    **facts: Any,
) -> None:
    """Sync every file, write the manifest last, sync the directory, rename, sync the parent."""
    manifest = manifest_for(staging, final, stage, settings, parents, facts)
    for name in manifest["files"]:
        fsync(staging / name)
    write_manifest(staging, manifest)
    fsync(staging / MANIFEST)
    for directory in [*(path for path in staging.rglob("*") if path.is_dir()), staging]:
        fsync(directory)
    for parent in parents:
        _check_unchanged(final, parent)
    os.rename(staging, final)
    fsync(final.parent)


def _check_unchanged(final: Path, parent: Parent) -> None:
    if not parent.path.exists():
        raise UserError(
            f"{final}: was not written: {parent.path}, from which it was being made, is gone; "
            "run the same command again"
        )
    found = read_manifest(parent.path)["manifest_sha256"]
    if found != parent.digest:
        raise UserError(
            f"{final}: was not written: {parent.path} was made again meanwhile "
            f"(manifest {parent.digest[:12]}, now {found[:12]}); run the same command again"
        )


def disk_trouble(error: BaseException) -> str | None:
    """What the disk complained about, None if it did not.

    safetensors passes the reason on as text; numpy and torch drop it.
    """
    for code in DISK_ERRORS:
        if (isinstance(error, OSError) and error.errno == code) or os.strerror(code) in str(error):
            return os.strerror(code)
    numpy_stopped = isinstance(error, OSError) and error.errno is None
    if (numpy_stopped and str(error).endswith(" written")) or "inline_container.cc" in str(error):
        return f"no room for a whole file ({error})"
    return None
