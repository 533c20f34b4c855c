"""Mistakes that the user can mend, and how they are shown: one line each on stderr, exit code 2."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator

USER_ERROR, LOST_PROCESS = 2, 3  # exit codes
LAUNCHER = (
    "MINIONEREC_LAUNCHER"  # set where minionerec/experiment/launch.py has started this process
)
GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
)  # gloo, when another process has ended


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line (or one line per mistake): found, expected, what to do."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a ``UserError`` into its text on stderr and exit code 2.

    Of several processes any may be the one to fail: each leaves its text to the launcher (``minionerec/experiment/launch.py``), which
    prints the cause once; under another launcher the first process prints. A process that only lost the failing one ends
    quietly with an exit code of its own.
    """
    try:
        yield
    except UserError as error:
        _leave(str(error))
        sys.exit(USER_ERROR)
    except RuntimeError as error:
        if "RANK" not in os.environ or not any(text in str(error) for text in GONE):
            raise
        _leave(
            lost=True,
            text=f"process {os.environ['RANK']} lost the connection to another process: {str(error).splitlines()[0]}",
        )
        os._exit(LOST_PROCESS)  # the usual way out would wait for the other process


def _leave(text: str, lost: bool = False) -> None:
    """Print an error's text, or write it where torchrun looks for it if our launcher will print it."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if LAUNCHER in os.environ and file:
        with open(file, "w", encoding="utf-8") as handle:
            json.dump(
                {
                    "message": {
                        "message": text,
                        "extraInfo": {"timestamp": str(int(time.time())), "lost": lost},
                    }
                },
                handle,
            )
    elif os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)
