"""Opens the text files that people bring.

Gzip, byte order marks, NUL bytes, archives that explode.
"""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minionerec.errors import UserError

# Text is packed to a tenth, logs to a fiftieth. A file that grows more than this is no table but an
# attack or an error.
MOST_GROWTH = 200
ALWAYS_ALLOWED = 64 * 2**20  # bytes, however small the packed file is
BUFFER = 2**20


class _Unpacked(io.RawIOBase):
    """The bytes in a gzip file; refuses one that expands beyond reason."""

    def __init__(self, path: Path):
        self._path = path
        self._packed_size = path.stat().st_size
        self._unpacked = gzip.GzipFile(path, "rb")
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._unpacked.readinto(buffer)
        self._read += count
        if self._read > max(ALWAYS_ALLOWED, MOST_GROWTH * self._packed_size):
            raise UserError(
                f"{self._path}: its {self._packed_size:,} bytes unpack to more than "
                f"{self._read:,}, {MOST_GROWTH} times as many or more; this is no table: "
                "look at it with `zcat FILE | head -c 1000`, and unpack it yourself if it is right"
            )
        return count

    def close(self) -> None:
        self._unpacked.close()
        super().close()


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked if its name ends in ``.gz``."""
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(_Unpacked(path), BUFFER)
    return open(path, "rb")


def open_text(path: Path, encoding: str = "utf-8-sig") -> io.TextIOWrapper:
    """The text of a file, without a byte order mark; line ends as they are."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")


def lines(handle: io.TextIOWrapper, path: Path) -> Iterator[str]:
    """Lines of a text file, refusing the NUL bytes that a crash or a wrong encoding leaves behind.

    Raises:
        UserError: naming the line.
    """
    for number, line in enumerate(handle, 1):
        if "\0" in line:
            raise UserError(
                f"{path}:{number}: holds a NUL byte, so it is damaged or not UTF-8 text; "
                "export it again"
            )
        yield line


def ends_with_a_line_end(path: Path) -> bool:
    """Whether a text file's last line is whole, as far as one can tell; a packed one's is."""
    if path.suffix.lower() == ".gz":
        return True  # one that is cut off cannot be unpacked
    with open(path, "rb") as handle:
        handle.seek(-1, os.SEEK_END)
        return handle.read() in (b"\n", b"\r")


def is_utf8(path: Path) -> bool:
    """Whether all of a file is UTF-8 text."""
    with open_text(path) as handle:
        try:
            for _ in handle:
                pass
        except UnicodeDecodeError:
            return False
    return True
