"""From samples to ranked items: what validation, evaluation and serving share.

The users who share a forward are always the same: rows in the order of their length,
``USERS_PER_FORWARD`` at a time. So neither the number of processes, which deal these batches out
among themselves, nor what was ranked before an interruption changes a bit of what is written.

Shapes: n samples, B of them in a batch, W beams.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from accelerate.utils import gather_object
from torch import nn

from minionerec.catalogue.masks import Mask
from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.samples import Sample
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.processes import processes
from minionerec.model.beam_search import length_sorted, search_batches

TASK = "sid_to_sid"  # the task that every ranking is made with
# No setting: another number rounds sums elsewhere. On a CPU 16 to 128 are equally fast.
USERS_PER_FORWARD = 32

Unwanted = Sequence[Collection[int]]


class Ranker:
    """A model that is about to rank the catalogue for some samples.

    Attributes:
        prompts: token ids of every sample.
        unwanted: per sample, items that must not be recommended; None: all may be.
        mask: what may be recommended at all; None: everything.
        batches: numbers of the samples that share a forward; the same for the same samples.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Sequence[Sample],
        renderer: Renderer,
        trie: SidTrie,
        num_beams: int,
        *,
        normalize: str = "vocab",
        unwanted: Unwanted | None = None,
        mask: Mask | None = None,
    ):
        self.model = model
        self.samples = samples
        self.trie = trie
        self.num_beams = num_beams
        self.normalize = normalize
        self.unwanted = unwanted
        self.mask = mask
        self.prompts = [renderer.prompt(TASK, sample.history) for sample in samples]
        self.batches = length_sorted(self.prompts, USERS_PER_FORWARD)

    def rank(
        self, batches: Sequence[Sequence[int]], progress: str = ""
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rank batch by batch.

        Yields:
            ``(B, W)`` leaves of the trie, best first, -1 where there is no further one, and their
            log-probabilities.
        """
        return search_batches(
            self.model,
            self.prompts,
            self.trie,
            self.num_beams,
            batches,
            normalize=self.normalize,
            excluded=self.excluded(batches),
            mask=self.mask,
            progress=progress,
        )

    def excluded(self, batches: Sequence[Sequence[int]]) -> dict[int, list[int]] | None:
        """Per sample the leaves that the search must not reach; None: it may reach all."""
        if self.unwanted is None:
            return None
        allowed = None if self.mask is None else self.mask.items
        leaves = {}
        for batch in batches:
            for i in batch:
                leaves[i] = self.trie.leaves_only_of(self.unwanted[i], allowed)
        return leaves

    def items(
        self, number: int, leaves: np.ndarray, scores: np.ndarray
    ) -> tuple[list[int], list[float]]:
        """A sample's ranked leaves as ranked items that may be recommended, with their scores."""
        return self.trie.items_of_leaves(
            leaves.tolist(),
            scores.tolist(),
            () if self.unwanted is None else self.unwanted[number],
            None if self.mask is None else self.mask.items,
        )


def rank(ranker: Ranker, progress: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Rank all samples, with all processes.

    Args:
        ranker: of the samples.
        progress: what this is called where it takes long; "" shows nothing.

    Returns:
        ``(n, W)`` leaves and ``(n, W)`` log-probabilities in the order of the samples.
    """
    state = processes()
    mine = ranker.batches[state.process_index :: state.num_processes]
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for batch, (leaves, scores) in zip(mine, ranker.rank(mine, progress), strict=True):
        found += zip(batch, leaves, scores, strict=True)
    if state.num_processes > 1:
        found = gather_object(found)
    found.sort(key=lambda row: row[0])
    return np.stack([row[1] for row in found]), np.stack([row[2] for row in found])
