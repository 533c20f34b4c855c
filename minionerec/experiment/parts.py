"""Finished parts of long work, kept beside the final directory: a killed run continues.

The folder holds ``run.json``, everything that its parts depend on, and
``part-<number>.<digest>.jsonl``. A part gets its name when it is whole on the disk, and the digest
in its name, of its run, its number and its content, is compared whenever it is read. Several
processes may write parts of their own at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from minionerec.errors import UserError
from minionerec.experiment.files import fsync
from minionerec.experiment.stages import settings_difference

RUN = "run.json"


def open_parts(folder: Path, facts: dict[str, Any]) -> list[str]:
    """Make ``folder`` ready for the parts of a run; what is there of another run is deleted.

    Args:
        facts: flat; two runs whose parts may be mixed have the same.

    Returns:
        Why parts were deleted, ``["num_beams: 10 -> 50"]``; empty when none were.
    """
    try:
        before = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before == facts:
        return []
    found = any(folder.glob("part-*"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write(folder / RUN, json.dumps(facts, indent=1).encode())
    if not found:
        return []
    return (
        settings_difference(before, facts)
        if isinstance(before, dict)
        else [f"{RUN} is missing or damaged"]
    )


def write_part(folder: Path, number: int, lines: Iterable[str]) -> None:
    """Keep one part.

    Raises:
        UserError: the disk is full or not writable; nothing half-written has a part's name.
    """
    content = "".join(f"{line}\n" for line in lines).encode()
    digest = _digest(folder, number, content)
    _write(folder / f"part-{number:05d}.{digest}.jsonl", content)


def read_parts(folder: Path, count: int) -> Iterator[list[str] | None]:
    """The lines of part after part; None for one that is not there.

    A file that is not what was written as this part of this run is deleted and not there.
    """
    # One listing: looking for every part anew takes time that grows with their number squared
    files: dict[str, list[Path]] = {}
    for file in folder.glob("part-*.jsonl"):
        files.setdefault(file.name.split(".")[0], []).append(file)
    for number in range(count):
        yield _read_part(folder, number, files.get(f"part-{number:05d}", []))


def missing_parts(folder: Path, count: int) -> list[int]:
    """Numbers of the parts that are still to be made."""
    return [number for number, lines in enumerate(read_parts(folder, count)) if lines is None]


def _read_part(folder: Path, number: int, files: Sequence[Path]) -> list[str] | None:
    """The lines of the first of a part's files that is what was written."""
    for file in files:
        content = file.read_bytes()
        if file.name.split(".")[1] == _digest(folder, number, content):
            return [
                line.decode() for line in content.splitlines()
            ]  # as text they would be cut at U+2028 in an id, too
        file.unlink()
    return None


def _digest(folder: Path, number: int, content: bytes) -> str:
    digest = hashlib.sha256((folder / RUN).read_bytes())
    digest.update(f" {number} ".encode())
    digest.update(content)
    return digest.hexdigest()[:16]


def _write(file: Path, content: bytes) -> None:
    """Whole under its name, or not there."""
    temporary = file.with_name(f".{file.name}")
    try:
        temporary.write_bytes(content)
        fsync(temporary)
        os.replace(temporary, file)
        fsync(file.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{file}: cannot be written: {error.strerror}; make room or pass another "
            f"--output_dir, then run again "
            "(the parts that are finished are kept)"
        ) from error
