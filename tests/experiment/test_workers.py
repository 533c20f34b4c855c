"""Processes of a launch that share what they import (minionerec/experiment/workers.py).

bash test.sh tests/experiment/test_workers.py

Signals, messages and exit codes of whole stages: tests/commands/test_distributed.py.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Says who imported it, in a file's name: a launcher's output and its processes' would mix
IMPORTED = "import os\nfrom pathlib import Path\nPID = os.getpid()\nPath(f'by-{PID}').touch()\n"
# The second is killed when the first has said all: a launch ends its other processes then
PROBE = """\
import os, signal, sys, time, imported
rank = os.environ["RANK"]
line = [os.getpid(), os.getppid(), imported.PID, os.getsid(0), __name__, sys.argv[1:], sys.path[0]]
with open(f"said-{rank}.part", "w") as file:
    file.write(repr(line))
os.rename(f"said-{rank}.part", f"said-{rank}")
if rank == "1":
    while not os.path.exists("said-0"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


def launched(folder: Path, imported: str) -> tuple[subprocess.CompletedProcess, list[list]]:
    """A launch of two processes of ``PROBE``, and what each of them says."""
    (folder / "imported.py").write_text(imported)
    (folder / "probe.py").write_text(PROBE)
    settings = ROOT / "configs" / "accelerate" / "cpu_processes.yaml"
    options = ["--config_file", str(settings), "--num_processes", "2"]
    command = [sys.executable, "-P", "-m", "minionerec.experiment.accelerated", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("RANK", None)
    done = subprocess.run(
        [*command, str(folder / "probe.py"), "a", "b c"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    said = []
    for rank in range(2):
        said.append(ast.literal_eval((folder / f"said-{rank}").read_text()))
    return done, said


def test_two_processes_run_as_scripts_with_what_their_launcher_has_imported(tmp_path):
    """Once in all; each is a session of its own, and a signal that ends one is told."""
    done, said = launched(tmp_path, IMPORTED)
    assert done.returncode == 128 + 9, done.stderr
    assert done.stderr == "process 1 ended with signal 9; what it printed is above\n"
    launcher = said[0][2]
    assert [path.name for path in tmp_path.glob("by-*")] == [f"by-{launcher}"]
    for own, parent, importer, session, name, words, first in said:
        assert (parent, importer, session) == (launcher, launcher, own)
        assert (name, words, first) == ("__main__", ["a", "b c"], str(tmp_path))
    assert said[0][0] != said[1][0]


def test_they_start_anew_where_cuda_was_used_before_the_fork(tmp_path):
    used = "import torch\ntorch.cuda._is_in_bad_fork = lambda: True\n"
    done, said = launched(tmp_path, used + IMPORTED)
    assert done.returncode == 128 + 9, done.stderr
    for own, _, importer, session, name, words, first in said:
        assert own == importer == session
        assert (name, words, first) == ("__main__", ["a", "b c"], str(tmp_path))
    assert len(list(tmp_path.glob("by-*"))) == 3


def test_processes_that_nobody_starts_end_with_their_launcher(tmp_path):
    """They hold its output open until they have ended."""
    (tmp_path / "probe.py").write_text("open('never', 'w')\n")
    code = (
        "import os\nfrom minionerec.experiment import workers\n"
        "assert workers.fork('probe.py', 2) is None\nos._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "never").exists()
