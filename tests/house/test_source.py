"""The source as tools see it: lint, format, types, directions of imports, examples in docstrings.

bash test.sh tests/house
"""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import durations, style

ROOT = Path(__file__).resolve().parents[2]


def tool(*words: object) -> tuple[int, str]:
    """Exit code and output of a Python tool, run in the repository."""
    run = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def test_ruff_finds_nothing():
    code, told = tool("ruff", "check", "--quiet")
    assert (code, told) == (0, "")


def test_every_file_is_formatted():
    code, told = tool("ruff", "format", "--check", "--quiet")
    assert (code, told) == (0, "")


def test_types_are_annotated_and_agree():
    code, told = tool("mypy", "--no-error-summary")
    assert (code, told) == (0, "")


@pytest.mark.parametrize("contract", ["rooms", "commands", "circles"])
def test_imports_keep_their_contract(contract):
    """Of pyproject.toml: downwards only, no command from the package, no circles."""
    program = (
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(limit_to_contracts=sys.argv[1:]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, contract],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]


def modules_with_examples() -> list[str]:
    """Every module with a ``>>>`` in it, by its dotted name."""
    names = []
    for path in style.product_files():
        is_importable = path.relative_to(ROOT).parts[0] not in ("data", "baselines", "benchmarks")
        if is_importable and ">>> " in path.read_text():
            names.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_in_docstrings_give_what_they_promise(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0, "the output above shows expected and got"


def test_the_fast_tier_touches_every_room():
    long_ones = durations.measured()
    for room in (ROOT / "tests").iterdir():
        if not room.is_dir() or room.name in (*durations.WHOLE_COMMANDS, "__pycache__"):
            continue
        names = []
        for file in room.glob("test_*.py"):
            for function in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE):
                names.append(f"tests/{room.name}/{file.name}::{function}")
        fast = [name for name in names if durations.is_fast(name, long_ones)]
        assert len(fast) >= 3, room
