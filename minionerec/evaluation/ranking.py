"""From samples to ranked items: what validation and evaluation share.

The users who share a forward are always the same: rows in the order of their length,
``USERS_PER_FORWARD`` at a time. So neither the number of processes, which deal these batches out
among themselves, nor what was ranked before an interruption changes a bit of what is written.

Shapes: n samples, B of them in a batch, W beams.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.samples import Sample
from minionerec.catalogue.sids import SidTable
from minionerec.catalogue.trie import SidTrie
from minionerec.evaluation.metrics import KS, row_metrics
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
    ):
        self.model = model
        self.samples = samples
        self.trie = trie
        self.num_beams = num_beams
        self.normalize = normalize
        self.unwanted = unwanted
        self.prompts = [renderer.prompt(TASK, sample.history) for sample in samples]
        self.batches = length_sorted(self.prompts, USERS_PER_FORWARD)

    def rank(
        self, batches: Sequence[Sequence[int]], progress: str | None = None
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
            progress=progress,
        )

    def excluded(self, batches: Sequence[Sequence[int]]) -> dict[int, list[int]] | None:
        """Per sample the leaves that the search must not reach; None: it may reach all."""
        if self.unwanted is None:
            return None
        leaves = {}
        for batch in batches:
            for i in batch:
                leaves[i] = self.trie.leaves_only_of(self.unwanted[i])
        return leaves


def rank(ranker: Ranker) -> tuple[np.ndarray, np.ndarray]:
    """Rank all samples, with all processes.

    Returns:
        ``(n, W)`` leaves and ``(n, W)`` log-probabilities in the order of the samples.
    """
    state = PartialState()
    mine = ranker.batches[state.process_index :: state.num_processes]
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for batch, (leaves, scores) in zip(mine, ranker.rank(mine), strict=True):
        found += zip(batch, leaves, scores, strict=True)
    if state.num_processes > 1:
        found = gather_object(found)
    found.sort(key=lambda row: row[0])
    return np.stack([row[1] for row in found]), np.stack([row[2] for row in found])


def predictions(
    samples: Sequence[Sample],
    leaves: np.ndarray,
    scores: np.ndarray,
    trie: SidTrie,
    item_ids: Sequence[str],
    unwanted: Unwanted | None = None,
) -> list[dict[str, Any]]:
    """Records of ``predictions.jsonl``.

    A SID that several items share is written as all of them, with the same score.
    """
    records = []
    for number, sample in enumerate(samples):
        items, item_scores = trie.items_of_leaves(
            leaves[number].tolist(),
            scores[number].tolist(),
            () if unwanted is None else unwanted[number],
        )
        records.append(
            {
                "user_id": sample.user_id,
                "target_item_id": item_ids[sample.target],
                "item_ids": [item_ids[item] for item in items],
                "scores": [round(score, 5) for score in item_scores],
            }
        )
    return records


def sid_of(sids: SidTable) -> dict[str, tuple[int, ...]]:
    """Item id -> codes, as the metrics take it."""
    return dict(zip(sids.item_ids, sids.codes, strict=True))


def validator(
    samples: Sequence[Sample],
    renderer: Renderer,
    trie: SidTrie,
    sids: SidTable,
    *,
    num_beams: int,
    normalize: str = "vocab",
    unwanted: Sequence[Collection[int]] | None = None,
) -> Callable[[nn.Module], dict[str, float]]:
    """A function model -> HR@K, NDCG@K (K up to ``num_beams``) and top-10 coverage.

    Per sample ``unwanted`` items are never ranked, as in evaluation.
    """
    groups = sid_of(sids)

    def validate(model: nn.Module) -> dict[str, float]:
        ranker = Ranker(
            model, samples, renderer, trie, num_beams, normalize=normalize, unwanted=unwanted
        )
        leaves, scores = rank(ranker)
        records = predictions(samples, leaves, scores, trie, sids.item_ids, unwanted)
        item_level, _ = row_metrics(records, groups)
        shown = {}
        for k in KS:
            if k <= num_beams:
                shown[f"HR@{k}"] = float(item_level[f"HR@{k}"].mean())
                shown[f"NDCG@{k}"] = float(item_level[f"NDCG@{k}"].mean())
        recommended = np.unique(leaves[:, :10])
        there = recommended >= 0  # -1 stands where a short list has no further leaf
        shown["coverage@10"] = int(there.sum()) / trie.num_leaves
        return shown

    return validate
