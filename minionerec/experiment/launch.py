"""``accelerate launch`` that ends as a single process does: the failing stage's message once, its exit code, no traceback.

    python -m minionerec.experiment.launch [options of accelerate launch] SCRIPT ARGUMENTS...

The processes leave their messages where torchrun looks for them (``config.one_line_errors``); this prints the one that
tells the cause. A signal is passed on by torchrun, which waits half a minute for the stage to save its state.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from minionerec.errors import LAUNCHER, LOST_PROCESS, USER_ERROR


def main(words: list[str]) -> int:
    """Launch; returns the exit code."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(
        logging.ERROR
    )  # of this process: torchrun's account of what the stage itself reports
    os.environ[LAUNCHER] = "1"
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        return report(
            {rank: (failure.exitcode, failure.message) for rank, failure in error.failures.items()}
        )
    except SignalException as error:
        return 128 + error.sigval
    return 0


def report(failures: dict[int, tuple[int, dict | str]]) -> int:
    """Print the cause among the processes' endings (an exit code and a message each); returns the exit code to end with.

    A process that left a message may have been stopped while it ended: the message counts, not its exit code.
    """
    told = [message for _, message in failures.values() if isinstance(message, dict)]
    causes = [message["message"] for message in told if not message["extraInfo"]["lost"]]
    if causes:
        print(causes[0], file=sys.stderr, flush=True)
        return USER_ERROR
    silent = {
        rank: code for rank, (code, message) in failures.items() if not isinstance(message, dict)
    }
    for rank, code in sorted(
        silent.items(), key=lambda item: item[1] == -signal.SIGTERM
    ):  # SIGTERM: torchrun stopped it
        ending = f"exit code {code}" if code >= 0 else f"signal {-code}"
        print(
            f"process {rank} ended with {ending}; what it printed is above",
            file=sys.stderr,
            flush=True,
        )
        return code if code >= 0 else 128 - code
    print(told[0]["message"], file=sys.stderr, flush=True)
    return LOST_PROCESS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
