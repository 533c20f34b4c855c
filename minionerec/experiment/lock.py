"""One process at a time makes a directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from minionerec.errors import UserError
from minionerec.experiment.commit import disk_trouble


@contextlib.contextmanager
def locked(final: Path) -> Iterator[None]:
    """Hold the directory's lock while it is made; the kernel releases it however the process ends.

    Raises:
        UserError: another process holds it (its pid and host are named), the folder cannot be
            written, or the disk is full.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle = open(final.with_name(f".{final.name}.lock"), "a+", encoding="ascii")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(
            f"{final.parent}: cannot be written: {os.strerror(error.errno or 0)}; "
            "pass another --output_dir"
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
            reason = disk_trouble(error)
            if reason is None:
                raise
            raise UserError(
                f"{final}: cannot be written: {reason}; make room, then run the same command again"
            ) from error
