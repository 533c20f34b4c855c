"""The loss of rolled-out groups: one forward of the policy, one of the reference, one objective.

Shapes: B prompts, G completions per prompt, L tokens per completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.settings import RLSettings
from minionerec.training.group_logps import GroupBatch, GroupOutput
from minionerec.training.objective import (
    Loss,
    exact_kl,
    grpo_loss,
    k3_kl,
    likelihood_anchor,
    sdpo_loss,
)
from minionerec.training.rollouts import Rollouts

# (batch, whether the legal children are asked for too) -> what the reference gives
Reference = Callable[[GroupBatch, bool], GroupOutput]


class GroupLoss:
    """Scores rollouts with the policy and feeds the objective of ``rl.objective``.

    Args:
        trie: the catalogue, on the model's device.
        settings: the ``rl`` section.
        normalize: what log-probabilities are normalised over, ``vocab`` or ``trie``.
        share: False for models that take no token trees.
    """

    def __init__(self, trie: SidTrie, settings: RLSettings, normalize: str, share: bool):
        self.trie = trie
        self.settings = settings
        self.normalize = normalize
        self.share = share

    def __call__(
        self,
        model: nn.Module,
        reference: Reference,
        rollouts: Rollouts,
        kept: Sequence[int],
        groups: Tensor | int | None = None,
    ) -> Loss:
        """Loss of some groups, with its parts for the log.

        Args:
            model: the policy.
            reference: asked only where the objective needs it.
            rollouts: of a micro-batch.
            kept: numbers of the groups to score; the others contribute 0.
            groups: how many groups the loss is a mean over; those of the rollouts unless said.
        """
        settings = self.settings
        chosen = rollouts.of(kept)
        groups = groups or len(rollouts.prompts)
        # The labels of SFT have a forward of their own (``row_likelihood``)
        anchor_weight = settings.sft_weight if settings.anchor == "target" else 0.0
        with_targets = anchor_weight != 0 or settings.hint_weight != 0
        batch = GroupBatch.make(
            chosen.prompts,
            chosen.nodes,
            chosen.alive,
            self.trie,
            self.share,
            chosen.targets if with_targets else None,
            chosen.given if any(chosen.given) else None,
        )
        # The children of every prefix are read only where the KL is a sum over them
        exact = settings.has_kl and settings.kl == "exact"
        policy = batch.forward(model, self.normalize, with_children=exact)
        if chosen.wanted is not None:
            loss, parts = self._of_lists(policy, reference, batch, chosen.wanted, chosen, groups)
        else:
            loss, parts = self._grpo(policy, reference, batch, chosen, groups)

        # Terms that act on the target itself, whether it was rolled out or not
        if policy.target_logps is not None:
            parts["target_logp"] = policy.target_logps.mean(-1).mean().item()
            anchor = likelihood_anchor(policy.target_logps, groups)
            loss = loss + anchor_weight * anchor
            # Of a hint's codes the policy gets no reward, but it may learn them from the target
            levels = torch.arange(self.trie.num_levels, device=loss.device)
            given = torch.tensor(chosen.given, device=loss.device)
            is_hint = levels < given[:, None]  # (B, L)
            hints = likelihood_anchor(policy.target_logps * is_hint, groups)
            loss = loss + settings.hint_weight * hints
        return Loss(loss, parts)

    def _grpo(
        self,
        policy: GroupOutput,
        reference: Reference,
        batch: GroupBatch,
        rollouts: Rollouts,
        groups: Tensor | int,
    ) -> Loss:
        """Clipped policy loss with the KL to the reference."""
        settings = self.settings
        old_logps = rollouts.old_logps if settings.num_iterations > 1 else None
        kl = None
        if settings.has_kl:
            exact = settings.kl == "exact"
            before = reference(batch, exact)
            if exact and policy.children is not None and before.children is not None:
                kl = batch.spread(exact_kl(policy.children, before.children))
            else:
                kl = k3_kl(policy.logps, before.logps)  # (B, G, L)
        return grpo_loss(
            policy.logps,
            old_logps,
            rollouts.advantages,
            batch.mask,
            epsilon=settings.epsilon,
            kl=kl,
            beta=settings.beta,
            groups=groups,
            constant_length=settings.objective == "dr_grpo",
        )

    def _of_lists(
        self,
        policy: GroupOutput,
        reference: Reference,
        batch: GroupBatch,
        wanted: Tensor,
        rollouts: Rollouts,
        groups: Tensor | int,
    ) -> Loss:
        """Softmax over the completions of a group: S-DPO, or ListNet without the reference."""
        # A completion's log-probability is that of the tokens which the policy chose itself
        logps = (policy.logps * batch.mask).sum(-1)  # (B, G)
        ref_logps = torch.zeros_like(logps)
        if self.settings.objective == "sdpo":
            before = reference(batch, False).logps
            ref_logps = (before * batch.mask).sum(-1)
        loss = sdpo_loss(
            logps,
            ref_logps,
            wanted,
            rollouts.alive,
            beta=self.settings.sdpo_beta,
            groups=groups,
        )
        # How far the wanted completions have risen over the reference
        shift = (logps - ref_logps).detach()
        risen = (wanted * shift).sum(-1)  # (B,)
        return Loss(loss, {"wanted_shift": risen.mean().item()})
