"""Which packages of requirements.txt this Python does not have, in words for set-up.

    python minionerec/experiment/lacking.py requirements.txt

Run before anything is installed, so that it needs nothing but Python itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9._-]+")


def lacking(requirements: str) -> list[str]:
    """The lines of a requirements file that are not met, without their comments.

    Versions are compared where pip is there to do it; else a name that is installed is enough.
    """
    found = []
    for line in requirements.splitlines():
        wanted = line.partition("#")[0].partition(";")[0].strip()
        if wanted and not wanted.startswith("-") and not _is_met(wanted):
            found.append(wanted)
    return found


def _is_met(wanted: str) -> bool:
    name = NAME.match(wanted)
    if name is None:
        return True
    try:
        version = importlib.metadata.version(name[0])
    except importlib.metadata.PackageNotFoundError:
        return False
    try:
        # Pip's own copy, which comes with it
        packaging = importlib.import_module("pip._vendor.packaging.requirements")
    except ImportError:
        return True
    met: bool = packaging.Requirement(wanted).specifier.contains(version, prereleases=True)
    return met


if __name__ == "__main__":
    file = Path(sys.argv[1])
    sys.stdout.write(", ".join(lacking(file.read_text(encoding="utf-8"))) + "\n")
