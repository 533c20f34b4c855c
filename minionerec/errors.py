"""Mistakes that the user can mend, how they are shown, and the exit codes of every command.

| code | what happened |
|---|---|
| 0 | done, or done before |
| 2 | a mistake that the user can mend: a line each on stderr, no traceback |
| 3 | another process of the same launch has ended; that one says why |
| 128 + n | stopped by signal n |
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

USER_ERROR = 2
LOST_PROCESS = 3
INTERRUPTED = "interrupted; what is finished stays, and the same command goes on or begins again"
SET_UP = (
    "run `bash quickstart.sh` once, or `pip install -r requirements.txt` in an active environment"
)
OURS = ("minionerec", "rqvae")  # what is missing of these is a fault of ours, and shown as one
# Set where minionerec/experiment/accelerated.py has started this process and will print its message
LAUNCHER = "MINIONEREC_LAUNCHER"
# What gloo says when another process has ended
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


class UserError(Exception):
    """A mistake that the user can mend.

    Its text is one line (or one line per mistake): what was found, what was expected, what to do.
    """


def stopped_by(number: int) -> int:
    """The exit code of a command that a signal has stopped, as shells have it."""
    return 128 + number


def relative_to(path: Path) -> str:
    """`` in /home/me`` for a path that is looked for from the working directory, else ""."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"


def show(message: str) -> None:
    """Print what went wrong."""
    print(message, file=sys.stderr, flush=True)


def while_importing() -> None:
    """Make Ctrl-C, and a package that is not installed, one line while a command still imports.

    A command's first statement: its imports take seconds. ``one_line_errors`` takes over. An
    interrupt ends the process at once, since libraries turn ``KeyboardInterrupt`` into errors of
    their own while they load.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not so under nohup
        signal.signal(signal.SIGINT, _end_at_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # launch.py holds it back
    sys.excepthook = _show_missing_package


def _end_at_once(number: int, frame: FrameType | None) -> None:
    _leave(INTERRUPTED)
    os._exit(stopped_by(number))


def _show_missing_package(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    name = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    if not name or name.split(".")[0] in OURS:
        sys.__excepthook__(kind, error, trace)
        return
    _leave(f"{sys.executable} lacks the package {name}; {SET_UP}")
    sys.exit(USER_ERROR)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a ``UserError`` into its text on stderr and exit code 2.

    Of several processes any may be the one to fail. Each leaves its text to the launcher, which
    prints the cause once; under another launcher the first process prints. A process that only lost
    the failing one ends quietly with an exit code of its own.
    """
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.excepthook = sys.__excepthook__
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        _leave(str(error))
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        _leave(INTERRUPTED)
        sys.exit(stopped_by(signal.SIGINT))
    except SystemExit:
        with _quiet_pipe():
            sys.stdout.flush()
        raise
    except BrokenPipeError:  # as of `... --help | head`
        _forget_stdout()
        sys.exit(stopped_by(signal.SIGPIPE))
    except RuntimeError as error:
        if "RANK" not in os.environ or not any(text in str(error) for text in GONE):
            raise
        cause = str(error).splitlines()[0]
        message = f"process {os.environ['RANK']} lost the connection to another process: {cause}"
        _leave(message, lost=True)
        os._exit(LOST_PROCESS)  # the usual way out would wait for the other process


@contextlib.contextmanager
def _quiet_pipe() -> Iterator[None]:
    """Nobody reads the output any more: no reason to complain."""
    try:
        yield
    except BrokenPipeError:
        _forget_stdout()


def _forget_stdout() -> None:
    """Let Python's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(message: str, lost: bool = False) -> None:
    """Print a message, or write it where torchrun looks for it if our launcher will print it."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if LAUNCHER in os.environ and file:
        facts = {"timestamp": str(int(time.time())), "lost": lost}
        record = {"message": {"message": message, "extraInfo": facts}}
        with open(file, "w", encoding="utf-8") as handle:
            json.dump(record, handle)
    elif os.environ.get("RANK", "0") == "0":
        show(message)
