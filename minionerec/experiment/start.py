"""Runs the script of a stage in this process, so that Ctrl-C while it imports is one line as well.

    python -P minionerec/experiment/start.py SCRIPT ARGUMENTS...

A script's imports take seconds and stand at its top, before it can say anything about an end.
``launch.py``, which starts this, holds SIGINT back: one that comes while Python itself starts waits
until there is somebody to catch it.
"""

from __future__ import annotations

import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from minionerec.errors import one_line_errors  # noqa: E402 (ROOT has to be known first)


def main(words: list[str]) -> None:
    """Run ``words[0]`` as Python would: its folder is searched first, and it sees its own words."""
    sys.path.insert(0, str(Path(words[0]).parent))
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    with one_line_errors():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        main(sys.argv[1:])
