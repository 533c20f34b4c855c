"""Which tests take longer than a second; the others are the fast tier (``bash test.sh -m fast``).

    bash test.sh -n 0 --junitxml report.xml
    python tests/durations.py report.xml ...      writes tests/durations.txt anew

A test counts with what it sets up, in the longest of its cases. Tests of whole commands (``tests/commands``,
``tests/reliability``) are left out of the fast tier without measuring.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

TESTS = Path(__file__).resolve().parent
DURATIONS = TESTS / "durations.txt"
WHOLE_COMMANDS = ("commands", "reliability")
LONG = 1.0  # seconds


def measured() -> dict[str, float]:
    """Seconds by ``tests/room/test_file.py::test_name``, of tests that take longer than a second."""
    lines = DURATIONS.read_text().splitlines()
    pairs = [line.split() for line in lines if not line.startswith("#")]
    return {name: float(seconds) for seconds, name in pairs}


def is_fast(nodeid: str, long_ones: dict[str, float]) -> bool:
    """Whether a test belongs to the fast tier, by its path from the root and its name."""
    room = nodeid.split("/")[1]
    return room not in WHOLE_COMMANDS and nodeid.partition("[")[0] not in long_ones


def read_report(path: Path) -> dict[str, float]:
    """The longest case of every test in pytest's XML report."""
    seconds: dict[str, float] = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):  # noqa: S314, our own report
        file = case.get("classname", "").replace(".", "/") + ".py"
        name = f"{file}::{case.get('name', '').partition('[')[0]}"
        seconds[name] = max(float(case.get("time", 0)), seconds.get(name, 0.0))
    return seconds


def write(seconds: dict[str, float]) -> None:
    """Keep what is longer than ``LONG``, by name."""
    lines = ["# Seconds of tests that take longer than one; written by tests/durations.py."]
    for name in sorted(seconds):
        if seconds[name] > LONG and is_fast(name, {}):
            lines.append(f"{seconds[name]:.1f} {name}")
    DURATIONS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    longest: dict[str, float] = {}
    for report in sys.argv[1:]:
        for test, spent in read_report(Path(report)).items():
            longest[test] = max(spent, longest.get(test, 0.0))
    write(longest)
