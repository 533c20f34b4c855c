"""The RL objective: advantages and KL, as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def k3_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """``exp(ref - logp) - (ref - logp) - 1`` per token: the non-negative estimate of KL(policy || reference) that TRL uses.

    Source: Schulman's k3; unbounded where the policy has made a token rare.
    """
    gap = ref_logps - logps
    return torch.exp(gap) - gap - 1


def exact_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL(policy || reference) over the legal children, ``(J, F)`` log-probabilities -> ``(J,)``; no sampling error."""
    legal = logps > -torch.inf
    gap = torch.where(legal, logps, 0.0) - torch.where(legal, ref_logps, 0.0)
    return (torch.where(legal, logps, -torch.inf).exp() * gap).sum(-1)


def group_advantages(
    rewards: Tensor, alive: Tensor, scale: bool = True, eps: float = 1e-4
) -> Tensor:
    """Group-relative advantages: how much better each completion did than its own group.

    ``A = (r - mean) / (std + eps)``: outcome-supervised GRPO, section 4.1.2 of arXiv:2402.03300, with std over G - 1 and
    eps 1e-4 as in TRL's GRPOTrainer. ``scale`` off leaves out the division (Dr. GRPO, arXiv:2503.20783). Mean and std
    are over the live places; a group whose rewards are all equal gets exactly 0.

    Args:
        rewards: ``(B, G)``.
        alive: ``(B, G)`` bool.

    Returns:
        ``(B, G)``, zero-mean over the live places of every group, 0 elsewhere.
    """
    count = alive.sum(1, keepdim=True)
    mean = torch.where(alive, rewards, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(alive, rewards - mean, 0.0)
    low = torch.where(alive, rewards, torch.inf).amin(1, keepdim=True)
    high = torch.where(alive, rewards, -torch.inf).amax(1, keepdim=True)
    centred = torch.where(
        low == high, 0.0, centred
    )  # no signal: exactly 0, not rounding noise amplified by 1 / eps
    if not scale:
        return centred
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (std + eps)
