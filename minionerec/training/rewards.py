"""Rewards: pure functions of item indexes.

Shapes: B prompts, G completions per prompt, N items, L levels. Every reward takes ``items (B, G)``
best first (-1 where the catalogue had no further item), ``targets (B,)`` and ``alive (B, G)``, and
returns ``(B, G)`` with 0 in places that are not alive.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rule(items: Tensor, targets: Tensor, alive: Tensor) -> Tensor:
    """1 for the target, else 0 (paper, section on rule-based reward)."""
    is_target = items == targets[:, None]
    return (is_target & alive).float()


def ranking(items: Tensor, targets: Tensor, alive: Tensor) -> Tensor:
    """Penalty for misses, the higher the more confident they are (paper, ranking reward).

    In a group that holds the target a miss at rank rho gets ``-d_rho / S`` and the target 0, with
    ``d_rho = 1 / log2(rho + 2)``, rho from 0, and ``S`` the sum of d over the group's live places.
    A group without the target gets 0 everywhere.
    """
    rank = torch.arange(items.shape[1], device=items.device)  # (G,)
    discount = 1.0 / torch.log2(rank + 2.0)
    discount = torch.where(alive, discount, 0.0)  # (B, G)
    total = discount.sum(1, keepdim=True).clamp(min=1e-9)
    hit = (items == targets[:, None]) & alive
    is_miss = hit.any(1, keepdim=True) & ~hit & alive
    return torch.where(is_miss, -discount / total, 0.0)


def semantic(items: Tensor, targets: Tensor, alive: Tensor, embeddings: Tensor) -> Tensor:
    """Cosine of the item's and the target's text embeddings.

    ``embeddings (N, D)`` are L2-normalised.
    """
    own = embeddings[items.clamp(min=0)]  # (B, G, D)
    wanted = embeddings[targets][:, None]  # (B, 1, D)
    cosine = (own * wanted).sum(-1)
    return torch.where(alive, cosine, 0.0)


def collaborative(items: Tensor, alive: Tensor, scores: Tensor) -> Tensor:
    """A sequential recommender's opinion of each item, scaled to [0, 1] within the catalogue.

    Args:
        items: ``(B, G)``.
        alive: ``(B, G)``.
        scores: ``(B, N)`` what a ranker holds of the whole catalogue after the prompts' histories:
            probabilities or their logarithms.
    """
    low = scores.amin(1, keepdim=True)  # (B, 1): each prompt has a scale of its own
    high = scores.amax(1, keepdim=True)
    scaled = (scores - low) / (high - low).clamp(min=1e-9)
    own = scaled.gather(1, items.clamp(min=0))  # (B, G)
    return torch.where(alive, own, 0.0)


def prefix(items: Tensor, targets: Tensor, alive: Tensor, codes: Tensor) -> Tensor:
    """Share of the target's SID levels that are right from the top.

    ``codes (N, L)`` are the items' SIDs, -1 behind shorter ones.
    """
    # -1 behind a short SID equals -1 behind another: only levels that the target has count
    own = codes[items.clamp(min=0)]  # (B, G, L)
    wanted = codes[targets][:, None]  # (B, 1, L)
    exists = wanted >= 0
    # a level counts only if all levels above it are right too
    right = ((own == wanted) & exists).int().cumprod(-1)
    share = right.sum(-1) / exists.sum(-1)
    return torch.where(alive, share, 0.0)
