"""The order of rows: the same global batches, with the same noise, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch.utils.data import BatchSampler, Sampler

from minionerec.catalogue.compact import runs
from minionerec.catalogue.split import stable_order
from minionerec.experiment.shared import made_once


class GroupedSampler(Sampler[int]):
    """A random order of all rows for every epoch, in which rows of one group stay together.

    Args:
        groups: of each row: texts, or numbers from 0. A row whose group is "" or below 0 is a group
            of its own.
        seed: the same one gives the same orders.
    """

    def __init__(self, groups: Sequence[str] | np.ndarray, seed: int):
        codes = groups if isinstance(groups, np.ndarray) else _numbered(groups)
        alone = codes < 0
        self._length = len(codes)
        self._seed = seed
        self._epoch = 0
        self._order: np.ndarray | None = None  # of this epoch, once it was asked for
        self._rows: np.ndarray | None = None  # by group; None: every row is a group
        self._sizes = np.arange(0)  # of the groups
        if not alone.all():
            own = codes.max() + 1 + np.arange(len(codes))
            codes = np.where(alone, own, codes)
            numbers = pd.factorize(codes)[0]  # groups in the order of their first rows
            self._rows = stable_order(numbers).astype(np.int32)
            self._sizes = np.bincount(numbers)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch; a resumed run gets the one it would have had."""
        if epoch != self._epoch:
            self._order = None
        self._epoch = epoch

    def order(self) -> np.ndarray:
        """``(rows,)`` int32 the numbers of the rows in the order of this epoch.

        All processes of a launch ask for the same epochs: one of each machine draws.
        """
        if self._order is None:
            (self._order,) = made_once(lambda: [self._draw()])
        return self._order

    def _draw(self) -> np.ndarray:
        # Depends on nothing but seed and epoch: not on what was drawn before an interruption
        rng = np.random.default_rng((self._seed, self._epoch))
        if self._rows is None:
            return rng.permutation(np.arange(self._length, dtype=np.int32))
        groups = rng.permutation(len(self._sizes))
        starts = np.cumsum(self._sizes) - self._sizes
        places = runs(starts[groups], self._sizes[groups])
        return self._rows[places]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())


def _numbered(groups: Sequence[str]) -> np.ndarray:
    """Groups as numbers, "" as -1."""
    names = np.array(groups, dtype=object)
    return np.where(names == "", -1, pd.factorize(names)[0])


class GlobalBatches(BatchSampler):
    """The rows of every optimiser step, cut into micro-batches.

    Accelerate deals them to the processes one by one.

    Micro-batches are of equal size or one row less. The last batch of an epoch has what rows are
    left: none is repeated or dropped, and a micro-batch may be empty.

    Args:
        order: of the rows.
        batch_size: rows per optimiser step, over all processes.
        pieces: micro-batches per optimiser step, over all processes.
        times: how often every step comes in a row, for the passes of ``rl.num_iterations`` over the
            same rollouts.
    """

    def __init__(self, order: GroupedSampler, batch_size: int, pieces: int, times: int = 1):
        self.sampler = order
        self.global_batch_size = batch_size
        self.pieces = pieces
        self.times = times
        self.batch_size = None  # tells accelerate that sizes vary
        self.drop_last = False

    def set_epoch(self, epoch: int) -> None:
        """Forward the epoch to the order of rows."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        steps = -(-len(self.sampler) // self.global_batch_size)  # rounded up
        return steps * self.times * self.pieces

    def __iter__(self) -> Iterator[list[int]]:
        rows = self.sampler.order()
        for start in range(0, len(rows), self.global_batch_size):
            # array_split makes the first pieces one row longer where the batch does not divide
            batch = rows[start : start + self.global_batch_size]
            for _ in range(self.times):
                for piece in np.array_split(batch, self.pieces):
                    yield piece.tolist()


class MicroBatchSeeds:
    """Seeds dropout from the run's seed, the step and the micro-batch's place in it.

    The draws do not depend on which process has the micro-batch.

    Args:
        seed: of the run.
        process: number of this process.
        processes: how many share a step; its micro-batches are dealt to them one by one.
    """

    def __init__(self, seed: int, process: int, processes: int):
        self.seed = seed
        self.process = process
        self.processes = processes
        self.step = -1
        self.place = 0

    def start(self, step: int) -> None:
        """Seed the next micro-batch, which belongs to this step."""
        # Place in the step, over all processes: piece 0 is this process's first, then every n-th
        if step == self.step:
            self.place += self.processes
        else:
            self.step = step
            self.place = self.process
        torch.manual_seed(seed_of(self.seed, self.step, self.place))


def seed_of(*numbers: int) -> int:
    """One well-mixed seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
