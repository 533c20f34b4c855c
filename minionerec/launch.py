"""``accelerate launch`` that ends as a single process does: the failing stage's message once, its exit code, no traceback.

    python -m minionerec.launch [options of accelerate launch] SCRIPT ARGUMENTS...

The processes leave their messages where torchrun looks for them (``config.one_line_errors``); this prints the one that
tells the cause. A signal is passed on by torchrun, which waits half a minute for the stage to save its state.
"""

from __future__ import annotations

import logging
import os
import sys

from minionerec.config import LAUNCHER, LOST_PROCESS, USER_ERROR


def main(words: list[str]) -> int:
    """Launch; returns the exit code."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)      # of this process: torchrun's account of what the stage itself reports
    os.environ[LAUNCHER] = "1"
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        return report({rank: (failure.exitcode, failure.message) for rank, failure in error.failures.items()})
    except SignalException as error:
        return 128 + error.sigval
    return 0


def report(failures: dict[int, tuple[int, dict | str]]) -> int:
    """Print the cause among the processes' endings: an exit code and a message each; returns the exit code to end with."""
    for code in (USER_ERROR, LOST_PROCESS):
        said = [message["message"] for found, message in failures.values() if found == code and isinstance(message, dict)]
        others = [found for found, _ in failures.values() if found not in (USER_ERROR, LOST_PROCESS)]
        if said and not (code == LOST_PROCESS and others):
            print(said[0], file=sys.stderr, flush=True)
            return code
    rank, (code, _) = next((rank, ending) for rank, ending in failures.items() if ending[0] != LOST_PROCESS)
    ending = f"exit code {code}" if code >= 0 else f"signal {-code}"
    print(f"process {rank} ended with {ending}; what it printed is above", file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
