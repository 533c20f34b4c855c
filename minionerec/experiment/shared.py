"""Arrays that all processes of a machine need alike: one process makes them, all map one file.

What each would make for itself (token ids of a catalogue's titles, the order of an epoch) is in
memory once a machine this way, and made once. The file lies in the machine's folder for temporary
files and loses its name as soon as all have mapped it: nothing is left behind, and a disk that the
machines share is not used.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from minionerec.errors import UserError
from minionerec.experiment.run import is_one_of_several


def made_once(make: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Arrays that the first process of each machine makes, mapped read-only in all of them.

    All processes of a launch ask at the same time. A process that is alone keeps what it made.

    Raises:
        UserError: there is no room for them.
    """
    if not is_one_of_several():
        return list(make())
    from accelerate.utils import gather_object  # they load torch

    from minionerec.experiment.processes import processes

    state = processes()
    folder = ""
    if state.is_local_main_process:
        folder = _written(make())
    # Whoever gets here waits until the arrays of every machine are written
    folders = gather_object([folder])
    own = Path(folders[state.process_index - state.local_process_index])
    arrays = []
    for number in range(len(list(own.iterdir()))):
        arrays.append(np.load(own / f"{number}.npy", mmap_mode="r"))
    state.wait_for_everyone()
    if folder:
        shutil.rmtree(folder)
    return arrays


def _written(arrays: Sequence[np.ndarray]) -> str:
    """A new folder with a file for each."""
    folder = tempfile.mkdtemp(prefix="minionerec-")
    try:
        for number, array in enumerate(arrays):
            np.save(Path(folder) / f"{number}.npy", array)
    except OSError as error:
        shutil.rmtree(folder)
        needed = sum(array.nbytes for array in arrays) / 2**20
        raise UserError(
            f"{folder}: {error.strerror}: {needed:.0f} MiB that the processes of this machine "
            "share do not fit; set TMPDIR to a folder with room"
        ) from error
    return folder
