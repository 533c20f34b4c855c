"""The order of rows: the same global batches for any number of processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import BatchSampler, Sampler


class GroupedSampler(Sampler[int]):
    """A random order of all rows for every epoch in which rows of one group stay together; the same for the same seed."""

    def __init__(self, groups: Sequence[str], seed: int):
        members: dict[str, list[int]] = {}
        for i, group in enumerate(groups):
            members.setdefault(group or f"row {i}", []).append(i)
        self._members, self._seed, self._epoch, self._length = (
            list(members.values()),
            seed,
            0,
            len(groups),
        )

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate; a resumed run gets the order it would have had."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self):
        rng = np.random.default_rng((self._seed, self._epoch))
        for i in rng.permutation(len(self._members)):
            yield from self._members[i]


class GlobalBatches(BatchSampler):
    """The rows of every optimiser step, cut into its micro-batches: ``pieces`` for all processes, of equal size or one less.

    The last batch of an epoch has what rows are left: none is repeated or dropped, and a piece may be empty. With
    ``times`` every step comes that often in a row: the passes of ``num_iterations`` over the same rollouts. Accelerate
    deals the pieces out to the processes one by one.
    """

    def __init__(self, order: GroupedSampler, batch_size: int, pieces: int, times: int = 1):
        self.sampler, self.global_batch_size, self.pieces, self.times = (
            order,
            batch_size,
            pieces,
            times,
        )
        self.batch_size, self.drop_last = None, False  # tells accelerate that sizes vary

    def set_epoch(self, epoch: int) -> None:
        """Passed on."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.global_batch_size) * self.times * self.pieces

    def __iter__(self):
        rows = list(self.sampler)
        for start in range(0, len(rows), self.global_batch_size):
            batch = rows[start : start + self.global_batch_size]
            for _ in range(self.times):
                yield from (
                    piece.tolist() for piece in np.array_split(np.array(batch), self.pieces)
                )


def seed_of(*numbers: int) -> int:
    """One well-mixed seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
