"""From samples to ranked items: what validation, evaluation and serving share.

The users who share a forward are always the same: rows in the order of their length, ``USERS_PER_FORWARD`` at a time. So
neither the number of processes, which deal these batches out among themselves, nor what was ranked before an interruption
changes a bit of what is written.
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
USERS_PER_FORWARD = (
    32  # no setting: another number rounds sums elsewhere; on a CPU 16 to 128 are equally fast
)


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
        unwanted: Sequence[Collection[int]] | None = None,
    ):
        self.model, self.samples, self.trie, self.num_beams = model, samples, trie, num_beams
        self.normalize, self.unwanted = normalize, unwanted
        self.prompts = [renderer.prompt(TASK, sample.history) for sample in samples]
        self.batches = length_sorted(self.prompts, USERS_PER_FORWARD)

    def rank(
        self, batches: Sequence[Sequence[int]], progress: str | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """``(B, W)`` leaves of the trie, best first, -1 where there is no further one, and log-probabilities, batch by batch."""
        excluded = None
        if self.unwanted is not None:
            excluded = {
                i: excluded_leaves(self.trie, self.unwanted[i]) for batch in batches for i in batch
            }
        return search_batches(
            self.model,
            self.prompts,
            self.trie,
            self.num_beams,
            batches,
            normalize=self.normalize,
            excluded=excluded,
            progress=progress,
        )


def rank(ranker: Ranker) -> tuple[np.ndarray, np.ndarray]:
    """Rank all samples, with all processes: ``(n, W)`` leaves and ``(n, W)`` log-probabilities in the order of the samples."""
    state = PartialState()
    mine = ranker.batches[state.process_index :: state.num_processes]
    found = [
        row
        for batch, lists in zip(mine, ranker.rank(mine), strict=True)
        for row in zip(batch, *lists, strict=True)
    ]
    found = gather_object(found) if state.num_processes > 1 else found
    found.sort(key=lambda row: row[0])
    return np.stack([row[1] for row in found]), np.stack([row[2] for row in found])


def excluded_leaves(trie: SidTrie, items: Collection[int]) -> list[int]:
    """Leaves all of whose items are excluded: a SID that an excluded item shares with another stays reachable."""
    unwanted = set(items)
    return sorted(
        {
            int(trie.leaf_of_item[i])
            for i in unwanted
            if set(trie.items_of_leaf(int(trie.leaf_of_item[i]))) <= unwanted
        }
    )


def predictions(
    samples: Sequence[Sample],
    leaves: np.ndarray,
    scores: np.ndarray,
    trie: SidTrie,
    item_ids: Sequence[str],
    unwanted: Sequence[Collection[int]] | None = None,
) -> list[dict[str, Any]]:
    """Records of ``predictions.jsonl``: a SID that several items share is written as all of them, with the same score."""
    records = []
    for number, (sample, row, row_scores) in enumerate(zip(samples, leaves, scores, strict=True)):
        left_out = () if unwanted is None else unwanted[number]
        ranked = [
            (item, float(score))
            for leaf, score in zip(row, row_scores, strict=True)
            if leaf >= 0
            for item in trie.items_of_leaf(int(leaf))
            if item not in left_out
        ]
        records.append(
            {
                "user_id": sample.user_id,
                "target_item_id": item_ids[sample.target],
                "item_ids": [item_ids[item] for item, _ in ranked],
                "scores": [round(score, 5) for _, score in ranked],
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
    """A function model -> HR@K, NDCG@K (K up to ``num_beams``) and top-10 coverage of samples.

    Per sample ``unwanted`` items are never ranked, as in evaluation.
    """
    groups = sid_of(sids)

    def validate(model: nn.Module) -> dict[str, float]:
        leaves, scores = rank(
            Ranker(
                model, samples, renderer, trie, num_beams, normalize=normalize, unwanted=unwanted
            )
        )
        item_level, _ = row_metrics(
            predictions(samples, leaves, scores, trie, sids.item_ids, unwanted), groups
        )
        shown = {
            f"{name}@{k}": float(item_level[f"{name}@{k}"].mean())
            for k in KS
            if k <= num_beams
            for name in ("HR", "NDCG")
        }
        return shown | {"coverage@10": len(np.unique(leaves[:, :10])) / trie.num_leaves}

    return validate
