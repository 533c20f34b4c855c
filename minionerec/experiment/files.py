"""Files and folders: to the disk and back, digests, JSON and logs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minionerec.errors import UserError

if TYPE_CHECKING:
    import numpy as np

TIMING = "timing.jsonl"  # beside the committed directories, whose bytes no clock may change
LARGE = 256 * 2**20  # bytes: of a larger source file only the two ends are read
END = 2**20  # bytes of an end


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


# ------------------------------------------------------------------------------------------ digests


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Digest of a folder's files and their names; "" if there is none."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = json.dumps([[str(path.relative_to(folder)), sha256_file(path)] for path in files])
    return hashlib.sha256(listing.encode()).hexdigest() if files else ""


def fingerprint(path: Path) -> dict[str, Any]:
    """What tells a source file from another version of it: its size and the sha256 of its bytes.

    A file of more than 256 MiB is told by its size, its time of change (ns) and the sha256 of its
    first and last MiB; a folder by the sha256 of its files' names and fingerprints.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = [[str(file.relative_to(path)), fingerprint(file)] for file in files]
        return {"files": len(files), "sha256": sha256_json(listing)}
    status = path.stat()
    if status.st_size <= LARGE:
        return {"size": status.st_size, "sha256": sha256_file(path)}
    with open(path, "rb") as handle:
        ends = handle.read(END)
        handle.seek(-END, os.SEEK_END)
        ends += handle.read(END)
    digest = hashlib.sha256(ends).hexdigest()
    return {"size": status.st_size, "changed_ns": status.st_mtime_ns, "ends_sha256": digest}


def fingerprints(paths: Iterable[Path]) -> dict[str, Any]:
    """The fingerprint of every source file, by its path as it was given."""
    return {str(path): fingerprint(path) for path in paths}


def sha256_json(value: Any) -> str:
    """Digest of a value that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------ formats


def load_array(path: Path) -> np.ndarray:
    """An array of numbers from an ``.npy`` file; nothing in it is unpickled.

    Raises:
        UserError: it holds something else.
    """
    import numpy as np

    try:
        with open(path, "rb") as handle:
            return np.lib.format.read_array(handle, allow_pickle=False)
    except (ValueError, MemoryError) as error:  # a header may claim more than memory holds
        raise _not_numbers(path, error) from error


def map_array(path: Path) -> np.ndarray:
    """As ``load_array``, read from the disk where it is looked at; nobody may write into it.

    Raises:
        UserError: the file holds something else.
    """
    import numpy as np

    try:
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except (ValueError, OverflowError) as error:  # a header may claim more than the file holds
        raise _not_numbers(path, error) from error


def _not_numbers(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: is not an array of numbers ({error}); delete {path.parent} and make it again"
    )


class RepeatedKeyError(ValueError):
    """An object of a JSON text has a key twice."""


def read_json(text: str | bytes) -> Any:
    """JSON in which no object has a key twice; Python's reader would keep the last one silently.

    Raises:
        RepeatedKeyError: naming the key that is there twice.
        ValueError: it is no JSON.
    """
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RepeatedKeyError(f"the key '{twice}' is there twice in one object")
    return found


def write_json(path: Path, value: Any) -> None:
    """Readable JSON with stable key order as given."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def append_log(path: Path, row: dict[str, Any]) -> None:
    """One line of ``log.jsonl``."""
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")


def timings(run: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of ``timing.jsonl`` about a stage; what is no such line is skipped.

    A kill or a full disk may have cut one off, and nothing may fail because of a clock's notes.
    """
    file = run / TIMING
    rows = []
    for line in file.read_bytes().splitlines() if file.is_file() else []:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and row.get("stage") == stage:
                rows.append(row)
    return rows
