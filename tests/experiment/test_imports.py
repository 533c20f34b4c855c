"""What a command says that is stopped, or lacks a package, before it has imported what it needs.

bash test.sh tests/experiment/test_imports.py

``python -S`` has no installed packages: neither those of requirements.txt nor this project.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAID = "interrupted; what is finished stays, and the same command goes on or begins again\n"
PACKAGES = (
    "accelerate markupsafe numpy torch transformers pandas pyarrow pydantic yaml uvicorn "
    "matplotlib".split()
)
# Files of ours that print something and end: for developers, or before there are packages
OTHERS = {"describe.py", "config.py", "preflight.py", "lacking.py"}


def commands() -> dict[str, list[str]]:
    """Every file that can be started -> the words after ``python -S``."""
    found = {}
    for folder in ("", "data", "rqvae", "baselines"):
        for file in sorted((ROOT / folder).glob("*.py")):
            if '__name__ == "__main__"' in file.read_text():
                name = str(file.relative_to(ROOT))
                found[name] = [str(file)]
    for file in sorted((ROOT / "minionerec").rglob("*.py")):
        if file.name not in OTHERS and '\nif __name__ == "__main__"' in file.read_text():
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found[name] = ["-m", name]
    return found


def started(words: list[str], where: Path, **variables: str) -> subprocess.CompletedProcess:
    """A command without installed packages; modules are found in the working directory."""
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        [sys.executable, "-S", *words], cwd=where, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def interrupting(tmp_path_factory) -> Path:
    """A folder of packages that send this process a Ctrl-C while they are imported."""
    folder = tmp_path_factory.mktemp("packages")
    for name in PACKAGES:
        (folder / f"{name}.py").write_text(
            "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
        )
    return folder


def test_there_are_as_many_commands_as_we_think():
    assert len(commands()) >= 18


@pytest.mark.parametrize("name", commands())
def test_without_its_packages_a_command_names_the_set_up(name):
    done = started(commands()[name], ROOT)
    line = re.escape(f"{sys.executable} lacks ") + r"(the package \w+|packages of \S+); "
    line += re.escape("run `bash quickstart.sh` once, or `pip install -r requirements.txt` in an ")
    assert re.fullmatch(f"{line}active environment\n", done.stderr), done.stderr
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("name", commands())
def test_ctrl_c_while_a_command_imports_is_one_line(name, interrupting):
    done = started(commands()[name], ROOT, PYTHONPATH=str(interrupting))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", SAID)


@pytest.mark.parametrize("name", ["sft.py", "data/audit.py"])
def test_of_several_processes_only_the_first_says_that_it_was_stopped(name, interrupting):
    done = started(commands()[name], ROOT, PYTHONPATH=str(interrupting), RANK="1")
    assert (done.returncode, done.stderr) == (130, "")


def test_a_command_that_is_to_ignore_ctrl_c_does(interrupting):
    """As in the background of a script, where the shell says so."""
    words = ["-c", "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"]
    words[1] += "from minionerec.errors import while_importing\nwhile_importing()\nimport numpy\n"
    done = started(words, ROOT, PYTHONPATH=f"{ROOT}:{interrupting}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "text, last",
    [
        ("import minionerec.nowhere", "ModuleNotFoundError: No module named 'minionerec.nowhere'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_fault_of_ours_is_still_shown_where_it_is(text, last):
    code = f"from minionerec.errors import while_importing\nwhile_importing()\n{text}\n"
    done = started(["-c", code], ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith(f"{last}\n")


def test_once_imported_ctrl_c_reaches_the_command_itself(tmp_path):
    """Which has to leave what it holds: a lock, a file that is half written."""
    code = (
        "import os, signal\nfrom minionerec.errors import one_line_errors, while_importing\n"
        "while_importing()\nwith one_line_errors():\n    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n    finally:\n        print('left')\n"
    )
    done = started(["-c", code], ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "left\n", SAID)
