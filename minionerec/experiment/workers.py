"""The processes of a launch, forked from one that has imported what their script imports.

Torchrun starts each of them anew: each would import for five seconds, and hold 0.4 GB of Python
objects of its own that are the same in all. Here the launcher imports, and forks the processes of
this machine before torchrun begins (and has threads and connections, which no fork may copy). A
page stays shared until one of them writes to it. Each waits until torchrun starts it with the words
and variables of a new process, and runs the script then; sessions, signals and exit codes are
torchrun's as before.

Only on Linux, where system libraries bear a fork. Where something has used CUDA before the fork, so
that it cannot be used after it, a process starts anew as torchrun would have started it.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

POLL = 0.02  # seconds between two looks at whether a process has ended


class Worker:
    """One of them, as the launcher sees it: what torchrun asks of a ``subprocess.Popen``."""

    def __init__(self, pid: int, pipe: int):
        self.pid = pid
        self._pipe = pipe  # where it reads what to run
        self._code: int | None = None

    def start(self, words: Sequence[str], variables: Mapping[str, str]) -> None:
        """Let it run: words and environment as of a new process."""
        with open(self._pipe, "w", encoding="utf-8") as pipe:
            json.dump([words, dict(variables)], pipe)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, timeout: float) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended after ``timeout`` seconds.
        """
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a process of the launch", timeout)
            time.sleep(POLL)
        return code


def fork(script: str, count: int) -> list[str] | None:
    """Import what a script imports, and fork processes that torchrun takes before it makes others.

    Returns twice: in the launcher at once, in each of the processes when torchrun starts it.

    Args:
        script: that they will run.
        count: of processes.

    Returns:
        None in the launcher, the words behind ``python`` in a process.
    """
    if sys.platform != "linux" or not count or not Path(script).is_file():
        return None
    import_what_it_imports(script)
    # What is there will stay: garbage collection, which writes to all it looks at, leaves it alone
    gc.collect()
    gc.freeze()
    sys.stdout.flush()
    sys.stderr.flush()
    workers: list[Worker] = []
    pipes: list[int] = []
    for _ in range(count):
        reading, writing = os.pipe()
        pipes.append(writing)
        pid = os.fork()
        if pid == 0:
            os.setsid()  # as torchrun does: a terminal's signals go to the launcher alone
            for pipe in pipes:  # or the end of the launcher would not be the end of a pipe
                os.close(pipe)
            return _wait_for_words(reading)
        os.close(reading)
        workers.append(Worker(pid, writing))
    _offer(workers)
    return None


def import_what_it_imports(script: str) -> None:
    """Do the import statements of a script, and nothing else that stands in it."""
    tree = ast.parse(Path(script).read_text(encoding="utf-8"), script)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    _find_its_neighbours(script)
    exec(compile(tree, script, "exec"), {"__name__": "imports"})  # noqa: S102 (our own script)


def _find_its_neighbours(script: str) -> None:
    """As ``python SCRIPT`` does: modules beside it are found first."""
    folder = str(Path(script).resolve().parent)
    if sys.path[0] != folder:
        sys.path.insert(0, folder)


def _wait_for_words(reading: int) -> list[str]:
    """What to run; the process ends if the launcher has ended before it said so."""
    with open(reading, encoding="utf-8") as pipe:
        told = pipe.read()
    if not told:
        os._exit(0)
    words, variables = json.loads(told)
    os.environ.clear()
    os.environ.update(variables)
    python, *rest = words
    # With CUDA used before the fork, or started through another program (that binds to cores)
    if python != sys.executable or rest[0] != "-u" or torch.cuda._is_in_bad_fork():
        os.execve(python, words, variables)  # noqa: S606 (no shell is wanted)
    return rest[1:]


def _offer(workers: list[Worker]) -> None:
    """Let torchrun take these processes where it would start new ones."""
    start_new = SubprocessHandler._popen

    def take(
        handler: SubprocessHandler, words: tuple[str, ...], variables: dict[str, str]
    ) -> Worker | subprocess.Popen:
        if not workers:
            return start_new(handler, words, variables)
        worker = workers.pop(0)
        worker.start(words, variables)
        return worker

    SubprocessHandler._popen = take


def run(words: list[str]) -> None:
    """Run a script as ``python -u SCRIPT ARGUMENTS`` would."""
    sys.argv = words
    _find_its_neighbours(words[0])
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    runpy.run_path(words[0], run_name="__main__")
