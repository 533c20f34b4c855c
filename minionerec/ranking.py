"""From samples to ranked items: what validation, evaluation and serving share.

Every process ranks its own share of the batches that one process would make; the shares come together in the order of the
samples, so the number of processes changes not a bit of what is written, and neither do batch size and padding but for
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from minionerec.beam_search import search_all
from minionerec.dataset import Sample
from minionerec.metrics import KS, row_metrics
from minionerec.prompts import Renderer
from minionerec.sids import SidTable, SidTrie

TASK = "sid_to_sid"      # the task that every ranking is made with


def rank(
    model: nn.Module,
    samples: Sequence[Sample],
    renderer: Renderer,
    trie: SidTrie,
    num_beams: int,
    *,
    batch_size: int,
    normalize: str = "vocab",
    exclude_history: bool = False,
    progress: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank the catalogue for every sample.

    Returns:
        ``(n, W)`` leaves of the trie, best first, -1 where there is no further one; ``(n, W)`` log-probabilities.
    """
    state = PartialState()
    prompts = [renderer.prompt(TASK, sample.history) for sample in samples]
    order = sorted(range(len(samples)), key=lambda i: -len(prompts[i]))
    batches = [order[start: start + batch_size] for start in range(0, len(order), batch_size)]
    mine = [i for batch in batches[state.process_index:: state.num_processes] for i in batch]
    excluded = [excluded_leaves(trie, samples[i].history) for i in mine] if exclude_history else None
    leaves, scores = search_all(model, [prompts[i] for i in mine], trie, num_beams, batch_size=batch_size, normalize=normalize,
                                excluded=excluded, progress=progress if state.is_main_process else None)
    together = list(zip(mine, leaves, scores, strict=True))
    together = gather_object(together) if state.num_processes > 1 else together
    together.sort(key=lambda row: row[0])
    return np.stack([row[1] for row in together]), np.stack([row[2] for row in together])


def excluded_leaves(trie: SidTrie, items: Sequence[int]) -> list[int]:
    """Leaves all of whose items are excluded: a SID that an excluded item shares with another stays reachable."""
    unwanted = set(items)
    return sorted({int(trie.leaf_of_item[i]) for i in unwanted if set(trie.items_of_leaf(int(trie.leaf_of_item[i]))) <= unwanted})


def predictions(samples: Sequence[Sample], leaves: np.ndarray, scores: np.ndarray, trie: SidTrie, item_ids: Sequence[str],
                exclude_history: bool = False) -> list[dict[str, Any]]:
    """Records of ``predictions.jsonl``: a SID that several items share is written as all of them, with the same score."""
    records = []
    for sample, row, row_scores in zip(samples, leaves, scores, strict=True):
        unwanted = set(sample.history) if exclude_history else set()
        ranked = [(item, float(score)) for leaf, score in zip(row, row_scores, strict=True) if leaf >= 0
                  for item in trie.items_of_leaf(int(leaf)) if item not in unwanted]
        records.append({"user_id": sample.user_id, "target_item_id": item_ids[sample.target],
                        "item_ids": [item_ids[item] for item, _ in ranked], "scores": [round(score, 5) for _, score in ranked]})
    return records


def sid_of(sids: SidTable) -> dict[str, tuple[int, ...]]:
    """Item id -> codes, as the metrics take it."""
    return dict(zip(sids.item_ids, sids.codes, strict=True))


def validator(samples: Sequence[Sample], renderer: Renderer, trie: SidTrie, sids: SidTable, *, num_beams: int, batch_size: int,
              normalize: str = "vocab") -> Callable[[nn.Module], dict[str, float]]:
    """A function model -> HR@K, NDCG@K (K up to ``num_beams``) and top-10 coverage of these samples."""
    groups = sid_of(sids)

    def validate(model: nn.Module) -> dict[str, float]:
        leaves, scores = rank(model, samples, renderer, trie, num_beams, batch_size=batch_size, normalize=normalize)
        item_level, _ = row_metrics(predictions(samples, leaves, scores, trie, sids.item_ids), groups)
        shown = {f"{name}@{k}": float(item_level[f"{name}@{k}"].mean()) for k in KS if k <= num_beams for name in ("HR", "NDCG")}
        return shown | {"coverage@10": len(np.unique(leaves[:, :10])) / trie.num_leaves}

    return validate
