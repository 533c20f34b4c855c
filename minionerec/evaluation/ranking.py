"""Rankings as records and as validation metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from minionerec.catalogue.samples import Sample, fixed_subset
from minionerec.catalogue.sids import SidTable
from minionerec.catalogue.trie import SidTrie
from minionerec.evaluation.metrics import KS, row_metrics
from minionerec.model.policy import Policy
from minionerec.model.ranking import Ranker, Unwanted, rank


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
    found = ranked_items(leaves, scores, trie, unwanted)
    for sample, (items, item_scores) in zip(samples, found, strict=True):
        records.append(record(sample, items, item_scores, item_ids))
    return records


def ranked_items(
    leaves: np.ndarray,
    scores: np.ndarray,
    trie: SidTrie,
    unwanted: Unwanted | None = None,
) -> Iterator[tuple[list[int], list[float]]]:
    """Item indexes and scores of row after row; of a SID that several items share all of them."""
    for number in range(len(leaves)):
        yield trie.items_of_leaves(
            leaves[number].tolist(),
            scores[number].tolist(),
            () if unwanted is None else unwanted[number],
        )


def record(
    sample: Sample,
    items: Sequence[int],
    scores: Sequence[float],
    item_ids: Sequence[str],
) -> dict[str, Any]:
    """One line of ``predictions.jsonl``."""
    return {
        "user_id": sample.user_id,
        "target_item_id": item_ids[sample.target],
        "item_ids": [item_ids[item] for item in items],
        "scores": [round(score, 5) for score in scores],
    }


def sid_of(sids: SidTable) -> dict[str, tuple[int, ...]]:
    """Item id -> codes, as the metrics take it."""
    return dict(zip(sids.item_ids, sids.codes, strict=True))


def stage_validator(
    policy: Policy,
    num_rows: int,
    num_beams: int,
    device: torch.device,
) -> tuple[Callable[..., dict[str, float]], int]:
    """``validator`` on the fixed sample of validation rows that a stage looks at, and its size.

    Args:
        policy: how the model is asked.
        num_rows: of the sample; 0: all.
        num_beams: items to rank for each.
        device: where the model will be.
    """
    catalogue = policy.catalogue
    experiment = catalogue.experiment
    valid = fixed_subset(catalogue.samples.splits["valid"], num_rows, experiment.seed)
    unwanted = None
    if experiment.evaluate.exclude_history:
        unwanted = fixed_subset(catalogue.seen("valid"), num_rows, experiment.seed)
    return validator(policy, valid, num_beams, device, unwanted), len(valid)


def validator(
    policy: Policy,
    samples: Sequence[Sample],
    num_beams: int,
    device: torch.device,
    unwanted: Unwanted | None = None,
) -> Callable[..., dict[str, float]]:
    """A function model -> HR@K, NDCG@K (K up to ``num_beams``) and top-10 coverage.

    A second argument lets it rank only so many of the samples.

    Args:
        policy: how the model is asked.
        samples: to rank for.
        num_beams: items to rank for each.
        device: where the model will be.
        unwanted: per sample, items that are never ranked, as in evaluation.
    """
    sids = policy.catalogue.sids
    # Where every item has a SID of its own, none is tied with another
    groups = sid_of(sids) if policy.trie.num_leaves < len(sids.item_ids) else None
    trie = policy.trie.to(device)

    def validate(model: nn.Module, most: int | None = None) -> dict[str, float]:
        """Metrics of the model as it is now, on the first ``most`` rows; None: all."""
        chosen = samples[:most]
        ranker = Ranker(
            model,
            chosen,
            policy.renderer,
            trie,
            num_beams,
            normalize=policy.normalize,
            unwanted=unwanted,
        )
        leaves, scores = rank(ranker, "validation")
        records = predictions(chosen, leaves, scores, trie, sids.item_ids, unwanted)
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
