"""Rewards and advantages: pure functions of item indexes. Shapes: B prompts, G completions per
prompt.

Every reward takes ``items (B, G)`` best first (-1 where the catalogue had no further item),
``targets (B,)`` and ``alive (B, G)``, and returns ``(B, G)`` with 0 in places that are not alive.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rule(items: Tensor, targets: Tensor, alive: Tensor) -> Tensor:
    """1 for the target, else 0 (paper, section on rule-based reward)."""
    return ((items == targets[:, None]) & alive).float()


def ranking(items: Tensor, targets: Tensor, alive: Tensor) -> Tensor:
    """Confident misses cost more: in a group that holds the target a miss at rank rho gets ``-d_rho
    / S``, the hit 0.

    ``d_rho = 1 / log2(rho + 2)`` with rho from 0 and ``S`` the sum of d over the group's live
    places; a group without the target gets 0 everywhere (paper, ranking reward).
    """
    rank = torch.arange(items.shape[1], device=items.device)
    discount = torch.where(alive, 1.0 / torch.log2(rank + 2.0), 0.0)
    hit = (items == targets[:, None]) & alive
    penalty = -discount / discount.sum(1, keepdim=True).clamp(min=1e-9)
    return torch.where(hit.any(1, keepdim=True) & ~hit & alive, penalty, 0.0)


def semantic(items: Tensor, targets: Tensor, alive: Tensor, embeddings: Tensor) -> Tensor:
    """Cosine of the item's and the target's text embeddings; ``embeddings (N, D)``
    L2-normalised.
    """
    cosine = (embeddings[items.clamp(min=0)] * embeddings[targets][:, None]).sum(-1)
    return torch.where(alive, cosine, 0.0)


def collaborative(items: Tensor, alive: Tensor, scores: Tensor) -> Tensor:
    """A sequential recommender's opinion of each item, scaled to [0, 1] within the catalogue.

    Args:
        items: ``(B, G)``.
        alive: ``(B, G)``.
        scores: ``(B, N)`` log-probabilities of the whole catalogue for the prompts' histories.
    """
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    scaled = (scores - low) / (high - low).clamp(min=1e-9)
    return torch.where(alive, scaled.gather(1, items.clamp(min=0)), 0.0)


def prefix(items: Tensor, targets: Tensor, alive: Tensor, codes: Tensor) -> Tensor:
    """Share of the target's SID levels that are right from the top; ``codes (N, L)``, -1 behind
    shorter SIDs.
    """
    own, wanted = codes[items.clamp(min=0)], codes[targets][:, None]  # (B, G, L), (B, 1, L)
    matched = ((own == wanted) & (wanted >= 0)).int().cumprod(-1).sum(-1)
    return torch.where(alive, matched / (wanted >= 0).sum(-1), 0.0)
