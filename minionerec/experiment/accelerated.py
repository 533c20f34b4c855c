"""``accelerate launch`` that ends as a single process does: one message, the stage's exit code.

    python -m minionerec.experiment.accelerated [options of accelerate launch] SCRIPT ARGUMENTS...

The launcher (``minionerec/experiment/launch.py``) starts several processes through this; they share
what they import (``minionerec/experiment/workers.py``). They leave their messages where torchrun
looks for them (``errors.one_line_errors``), and the one that tells the cause is printed here,
without a traceback. Torchrun passes a signal on and waits half a minute for the stage to save its
state.
"""

from __future__ import annotations

if __name__ == "__main__":
    from minionerec.errors import while_importing

    while_importing()

import argparse
import logging
import os
import signal
import sys

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from minionerec.errors import (
    INTERRUPTED,
    LAUNCHER,
    LOST_PROCESS,
    USER_ERROR,
    one_line_errors,
    show,
    stopped_by,
    while_importing,
)
from minionerec.experiment import workers
from minionerec.experiment.launch import read_accelerate_config

OF_TORCHRUN = ("MULTI_GPU", "FSDP")  # kinds of launches that accelerate leaves to torchrun


def main(words: list[str]) -> int:
    """Launch; returns the exit code."""
    arguments = launch_command_parser().parse_args(words)
    while_importing()
    told = workers.fork(arguments.training_script, processes_here(arguments))
    with one_line_errors():
        if told is None:
            return launch(arguments)
        workers.run(told)
    return 0


def processes_here(arguments: argparse.Namespace) -> int:
    """How many processes of the launch torchrun will start on this machine; 0 if another does."""
    file = arguments.config_file
    settings = read_accelerate_config(file) if file else {}
    if not arguments.multi_gpu and settings.get("distributed_type") not in OF_TORCHRUN:
        return 0
    processes = arguments.num_processes or settings.get("num_processes") or 0
    machines = arguments.num_machines or settings.get("num_machines") or 1
    return processes // machines


def launch(arguments: argparse.Namespace) -> int:
    """Let accelerate launch; returns the exit code."""
    # In this process alone: torchrun's account of what the stage itself reports
    logging.disable(logging.ERROR)
    os.environ[LAUNCHER] = "1"
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        failures = error.failures.items()
        return report({rank: (each.exitcode, each.message) for rank, each in failures})
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            show(INTERRUPTED)
        return stopped_by(error.sigval)
    return 0


def report(failures: dict[int, tuple[int, dict | str]]) -> int:
    """Print the cause among the processes' endings.

    A process that left a message may have been stopped while it ended: the message counts, not its
    exit code.

    Args:
        failures: rank -> exit code and message; a message is a dictionary when a stage left it.

    Returns:
        The exit code to end with.
    """
    told = []
    silent = []
    for rank, (code, message) in failures.items():
        if isinstance(message, dict):
            told.append(message)
        else:
            silent.append((rank, code))
    causes = [message["message"] for message in told if not message["extraInfo"]["lost"]]
    if causes:
        show(causes[0])
        return USER_ERROR
    if silent:
        # Torchrun stops the others with SIGTERM, so that they are the last to look at
        rank, code = min(silent, key=lambda ending: ending[1] == -signal.SIGTERM)
        ending = f"exit code {code}" if code >= 0 else f"signal {-code}"
        show(f"process {rank} ended with {ending}; what it printed is above")
        return code if code >= 0 else stopped_by(-code)
    show(told[0]["message"])
    return LOST_PROCESS


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
