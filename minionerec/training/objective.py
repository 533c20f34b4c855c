"""The RL objective as pure functions of tensors: advantages, KL, clipped policy loss.

Shapes: B prompts, G completions per prompt (the group), L tokens per completion, F children of a
trie node, J (node, token) pairs. ``mask (B, G, L)`` is True at the tokens of completions that
exist: a SID may have fewer than L tokens, and a catalogue smaller than the group gives fewer than G
completions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class GRPOLoss(NamedTuple):
    """A loss and what it consists of, for the log."""

    loss: Tensor  # ()
    parts: dict[str, float]  # clip_ratio, and kl and target_logp where they take part


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    epsilon: float,
    kl: Tensor | None = None,
    beta: float = 0.0,
    target_logps: Tensor | None = None,
    sft_weight: float = 0.0,
    groups: Tensor | float | None = None,
) -> GRPOLoss:
    """The clipped policy loss of GRPO with a KL penalty (arXiv:2402.03300, equation 3).

    Every group has equally many completions (all G, or the whole catalogue), so the mean over
    groups of the mean over their completions is TRL's ``loss_type="grpo"``. As a sum over a count
    of groups that is known beforehand it does not depend on how a batch is cut into micro-batches.

    Args:
        logps: ``(B, G, L)`` log-probabilities of the completions' tokens under the policy, with
            gradient.
        old_logps: ``(B, G, L)`` the same under the policy that made the rollouts; None if that is
            the present one.
        advantages: ``(B, G)``.
        mask: ``(B, G, L)`` bool.
        epsilon: how far the probability ratio may move before its gradient is cut off.
        kl: ``(B, G, L)`` per token, from ``k3_kl`` or ``exact_kl``; None without a penalty.
        beta: weight of ``kl``.
        target_logps: ``(B, L)`` log-probabilities of the target's tokens, with gradient; None
            without that term.
        sft_weight: weight of the target's mean log-likelihood.
        groups: how many groups the loss is a mean over; B unless this is only a share of a batch.
    """
    # A micro-batch that says nothing of the batch it belongs to is a batch of its own
    groups = groups or len(logps)
    tokens = max(1, int(mask.sum()))

    # Probability ratio of every token, (B, G, L). On the first pass over fresh rollouts it is
    # exactly 1, but its gradient is that of the log-probability.
    old = logps.detach() if old_logps is None else old_logps
    ratio = torch.exp(logps - old)

    # The pessimistic one of the plain and the clipped objective: clipping only ever takes a gain
    # away, so that a token that has moved too far in the right direction is left alone, and one in
    # the wrong direction is still corrected.
    advantage = advantages[..., None]  # (B, G, 1)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    per_token = -torch.min(ratio * advantage, clipped * advantage)  # (B, G, L)
    outside = ((ratio - 1).abs() > epsilon) & mask
    parts = {"clip_ratio": outside.sum().item() / tokens}

    if kl is not None:
        per_token = per_token + beta * kl
        parts["kl"] = (kl.detach() * mask).sum().item() / tokens

    # Mean over the tokens of a completion, then over the completions of a group that exist, then
    # over groups.
    lengths = mask.sum(-1).clamp(min=1)  # (B, G)
    per_completion = (per_token * mask).sum(-1) / lengths  # (B, G)
    completions = mask.any(-1).sum(-1)  # (B,)
    loss = (per_completion.sum(-1) / completions).sum() / groups

    if target_logps is not None:
        likelihood = target_logps.mean(-1)  # (B,)
        loss = loss - sft_weight * likelihood.sum() / groups
        parts["target_logp"] = likelihood.mean().item()
    return GRPOLoss(loss, parts)


def k3_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from one sampled token, of the shape of its arguments.

    ``exp(ref - logp) - (ref - logp) - 1``: Schulman's k3, never negative, as in TRL; unbounded
    where the policy has made a token rare.
    """
    gap = ref_logps - logps
    return torch.exp(gap) - gap - 1


def exact_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL(policy || reference) over the legal children of each node, without sampling error.

    Args:
        logps: ``(J, F)`` log-probabilities of the children, -inf where there are fewer.
        ref_logps: ``(J, F)`` the same under the reference.

    Returns:
        ``(J,)``.
    """
    legal = logps > -torch.inf
    # 0 instead of -inf - (-inf) = NaN where there is no child; its probability, 0, takes it out of
    # the sum
    gap = torch.where(legal, logps, 0.0) - torch.where(legal, ref_logps, 0.0)
    probability = torch.where(legal, logps, -torch.inf).exp()
    return (probability * gap).sum(-1)


def group_advantages(
    rewards: Tensor, alive: Tensor, scale: bool = True, eps: float = 1e-4
) -> Tensor:
    """Group-relative advantages: how much better each completion did than its own group.

    ``A = (r - mean) / (std + eps)``: outcome-supervised GRPO, section 4.1.2 of arXiv:2402.03300,
    with std over G - 1 and eps 1e-4 as in TRL's GRPOTrainer. Mean and std are over the completions
    that exist; a group whose rewards are all equal gets exactly 0.

    Args:
        rewards: ``(B, G)``.
        alive: ``(B, G)`` bool, False where a group has no completion.
        scale: divide by the deviation; without it this is Dr. GRPO (arXiv:2503.20783).
        eps: keeps the division finite.

    Returns:
        ``(B, G)``, zero-mean over the completions of every group, 0 elsewhere.
    """
    count = alive.sum(1, keepdim=True)  # (B, 1)
    mean = torch.where(alive, rewards, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(alive, rewards - mean, 0.0)  # (B, G)

    # Equal rewards carry no signal: exactly 0, not rounding noise amplified by 1 / eps
    low = torch.where(alive, rewards, torch.inf).amin(1, keepdim=True)
    high = torch.where(alive, rewards, -torch.inf).amax(1, keepdim=True)
    centred = torch.where(low == high, 0.0, centred)
    if not scale:
        return centred
    variance = centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt() + eps)


def groups_with_signal(advantages: Tensor) -> list[int]:
    """Numbers of the groups whose completions did not all earn the same.

    The others have no policy gradient. ``advantages`` is ``(B, G)``.
    """
    has_signal = (advantages != 0).any(1)  # (B,)
    return torch.nonzero(has_signal)[:, 0].tolist()
