"""The RL objectives as pure functions of tensors: advantages, KL, policy losses, S-DPO.

The trainer feeds them and adds nothing. Shapes: B prompts, G completions per prompt (the group), L
tokens per completion, F children of a trie node, J (node, token) pairs. ``mask (B, G, L)`` is True
at the tokens that the policy chose itself: a SID may have fewer than L tokens, a catalogue smaller
than the group gives fewer than G completions, and codes of a hint belong to the prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Loss(NamedTuple):
    """A loss and what it consists of, for the log."""

    loss: Tensor  # ()
    parts: dict[str, float]


def grpo_loss(
    logps: Tensor,
    old_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    epsilon: float,
    kl: Tensor | None = None,
    beta: float = 0.0,
    groups: Tensor | float | None = None,
    constant_length: bool = False,
) -> Loss:
    """The clipped policy loss of GRPO with a KL penalty (arXiv:2402.03300, equation 3).

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
        groups: how many groups the loss is a mean over; B unless this is only a share of a batch.
        constant_length: divide by L instead of a completion's own length, as Dr. GRPO does.
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
    mean = dr_grpo_mean if constant_length else grpo_mean
    return Loss(mean(per_token, mask, groups), parts)


def grpo_mean(per_token: Tensor, mask: Tensor, groups: Tensor | float) -> Tensor:
    """Mean over the tokens of a completion, then over the completions of a group, then over groups.

    Every group has equally many completions (all G, or the whole catalogue), so this is TRL's
    ``loss_type="grpo"``. As a sum over a count of groups that is known beforehand it does not
    depend on how a batch is cut into micro-batches.

    Args:
        per_token: ``(B, G, L)``.
        mask: ``(B, G, L)``.
        groups: how many groups the loss is a mean over.
    """
    lengths = mask.sum(-1).clamp(min=1)  # (B, G)
    per_completion = (per_token * mask).sum(-1) / lengths  # (B, G)
    completions = mask.any(-1).sum(-1).clamp(min=1)  # (B,)
    return (per_completion.sum(-1) / completions).sum() / groups


def dr_grpo_mean(
    per_token: Tensor,
    mask: Tensor,
    groups: Tensor | float,
) -> Tensor:
    """As ``grpo_mean``, but every completion's sum is divided by L (arXiv:2503.20783).

    A completion's own length would make the tokens of a short one weigh more. With SIDs of one
    length, and without hints, this changes nothing. TRL's ``loss_type="dr_grpo"``.
    """
    per_completion = (per_token * mask).sum(-1) / mask.shape[-1]  # (B, G)
    completions = mask.any(-1).sum(-1).clamp(min=1)  # (B,)
    return (per_completion.sum(-1) / completions).sum() / groups


def likelihood_anchor(target_logps: Tensor, groups: Tensor | float) -> Tensor:
    """Negative log-likelihood of the targets, which keeps the policy where SFT led it.

    Args:
        target_logps: ``(B, L)`` log-probabilities of the target's tokens, with gradient, 0 where a
            SID has fewer than L or where they are not to count.
        groups: how many groups the loss is a mean over.
    """
    return -target_logps.mean(-1).sum() / groups


def sdpo_loss(
    logps: Tensor,
    ref_logps: Tensor,
    wanted: Tensor,
    alive: Tensor,
    *,
    beta: float,
    groups: Tensor | float,
) -> Tensor:
    """Softmax-DPO: the wanted completion against all others at once (arXiv:2406.09215).

    ``-log softmax_g(beta * (logp_g - ref_logp_g))`` at the wanted one: the paper's ``-log sigmoid
    (-log sum_d exp(beta * (margin of d over the wanted one)))`` written out. With one other
    completion it is DPO. Where several are wanted a little it is the cross-entropy with their
    weights.

    Args:
        logps: ``(B, G)`` log-probability of each whole completion, with gradient.
        ref_logps: ``(B, G)`` the same under the reference.
        wanted: ``(B, G)`` weights that add up to 1 in every row; the paper has a single 1.
        alive: ``(B, G)`` bool, False where a group has no completion.
        beta: how much a shift of log-probability away from the reference counts.
        groups: how many groups the loss is a mean over.
    """
    # The implicit reward of DPO: how far the policy has moved away from its reference, (B, G)
    shift = beta * (logps - ref_logps)
    # The wanted one competes with all others at once
    among_all = torch.log_softmax(shift.masked_fill(~alive, -torch.inf), dim=-1)
    # 0 instead of 0 * -inf where there is no completion
    cross_entropy = -torch.where(alive, wanted * among_all, 0.0).sum(-1)  # (B,)
    return cross_entropy.sum() / groups


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
    rewards: Tensor,
    alive: Tensor,
    scale: bool = True,
    eps: float = 1e-4,
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
    centred = torch.where(has_one_reward(rewards, alive), 0.0, centred)
    if not scale:
        return centred
    variance = centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt() + eps)


def has_one_reward(rewards: Tensor, alive: Tensor) -> Tensor:
    """Whether all completions of a group earned the same, ``(B, 1)``."""
    low = torch.where(alive, rewards, torch.inf).amin(1, keepdim=True)
    high = torch.where(alive, rewards, -torch.inf).amax(1, keepdim=True)
    return low == high


def sibling_advantages(
    rewards: Tensor,
    alive: Tensor,
    paths: Tensor,
    eps: float = 1e-4,
) -> Tensor:
    """How much better each completion's prefixes did than their siblings in the trie (V-STAR).

    A node that completions of the group pass is worth their mean reward. Where a node has two such
    children or more, each child's worth becomes a z-score over these siblings, std over their count
    - 1. A completion gets the mean over those of its levels that have siblings, 0 without any. So
    credit goes to the level at which good and bad completions part.

    Args:
        rewards: ``(B, G)``.
        alive: ``(B, G)`` bool, False where a group has no completion.
        paths: ``(B, G, L)`` trie nodes from the first level down, 0 behind short SIDs.
        eps: keeps the division finite.

    Returns:
        ``(B, G)``, 0 where not alive.
    """
    total = torch.zeros_like(rewards)
    levels = torch.zeros_like(rewards)
    above = torch.zeros_like(paths[..., 0])  # (B, G) the root
    for level in range(paths.shape[-1]):
        # Which completions pass the same node of this level, and which of them the same parent
        here = paths[..., level]  # (B, G)
        there = alive & (here > 0)
        pairs = there[:, :, None] & there[:, None, :]  # (B, G, G)
        same_node = (here[:, :, None] == here[:, None, :]) & pairs
        same_parent = (above[:, :, None] == above[:, None, :]) & pairs

        # A node's worth is the mean reward of the completions that pass it
        passing = same_node.sum(-1).clamp(min=1)  # (B, G)
        worth = (same_node * rewards[:, None, :]).sum(-1) / passing  # (B, G)

        # Sums over siblings: each node counts once, however many completions pass it
        once = same_parent / passing[:, None, :]  # (B, G, G)
        siblings = once.sum(-1)  # (B, G) how many there are, itself included
        mean = (once * worth[:, None, :]).sum(-1) / siblings.clamp(min=1)
        gaps = (worth[:, None, :] - mean[:, :, None]).square()  # (B, G, G)
        variance = (once * gaps).sum(-1) / (siblings - 1).clamp(min=1)

        has_siblings = (siblings > 1.5) & there  # 1 or at least 2, but for rounding
        score = (worth - mean) / (variance.sqrt() + eps)
        total += torch.where(has_siblings, score, 0.0)
        levels += has_siblings
        above = here
    # Equal rewards carry no signal: exactly 0, not rounding noise
    return torch.where(has_one_reward(rewards, alive), 0.0, total / levels.clamp(min=1))


def mixed_advantages(
    rewards: Tensor,
    alive: Tensor,
    paths: Tensor,
    *,
    alpha: float,
    scale: bool = True,
) -> Tensor:
    """``(1 - alpha)`` group-relative and ``alpha`` sibling-relative advantages, ``(B, G)``."""
    advantages = group_advantages(rewards, alive, scale)
    if alpha:
        siblings = sibling_advantages(rewards, alive, paths)
        advantages = (1 - alpha) * advantages + alpha * siblings
    return advantages


def groups_with_signal(advantages: Tensor) -> list[int]:
    """Numbers of the groups whose completions did not all earn the same.

    The others have no policy gradient. ``advantages`` is ``(B, G)``.
    """
    has_signal = (advantages != 0).any(1)  # (B,)
    return torch.nonzero(has_signal)[:, 0].tolist()
