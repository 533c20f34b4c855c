"""Rollouts: what the policy recommends for a prompt, and what that earns.

Shapes: B prompts, G completions per prompt, L levels of a SID.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minionerec.catalogue.rows import NO_TARGET, Row
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.settings import RLSettings
from minionerec.model.beam_search import Beams, constrained_beam_search
from minionerec.model.decoders import make_decoder
from minionerec.training.objective import mixed_advantages

# (items (B, G), targets (B,), alive (B, G), B histories) -> each weighted part (B, G); they add up
Reward = Callable[[Tensor, Tensor, Tensor, Sequence[Sequence[int]]], dict[str, Tensor]]


class Rollouts(NamedTuple):
    """One micro-batch of groups: what was generated and how good it was.

    ``alive`` is False for places without an item: the catalogue is then smaller than the group.
    """

    prompts: list[list[int]]
    nodes: Tensor  # (B, G) leaf nodes of the trie
    alive: Tensor  # (B, G)
    old_logps: Tensor  # (B, G, L)
    advantages: Tensor  # (B, G)
    wanted: Tensor | None  # (B, G) what is preferred where lists are compared; else None
    targets: list[int]  # item index of each prompt's target, or NO_TARGET
    given: list[int]  # levels of each prompt's completions that a hint has decided
    metrics: dict[str, float]

    @classmethod
    def none(cls, device: torch.device) -> Rollouts:
        """Of a process without rows in a step."""
        empty = torch.empty(0, 0, device=device)
        return cls([], empty.long(), empty.bool(), empty[..., None], empty, None, [], [], {})

    def of(self, groups: Sequence[int]) -> Rollouts:
        """Some of the groups, by their numbers."""
        kept = list(groups)
        return Rollouts(
            prompts=[self.prompts[b] for b in kept],
            nodes=self.nodes[kept],
            alive=self.alive[kept],
            old_logps=self.old_logps[kept],
            advantages=self.advantages[kept],
            wanted=None if self.wanted is None else self.wanted[kept],
            targets=[self.targets[b] for b in kept],
            given=[self.given[b] for b in kept],
            metrics=self.metrics,
        )


class RolloutBuffer:
    """Keeps the rollouts of a batch for several optimiser steps (TRL's ``num_iterations``).

    The data loader repeats the micro-batches of a batch ``passes`` times in the same order. New
    rollouts are made on the first pass; every later pass gets those, in the same order. A run is
    only ever saved between two batches, so that the buffer of a resumed run starts empty, as it
    would have been.

    Args:
        passes: optimiser steps per batch of rollouts.
        micro_batches: of this process in each step.
    """

    def __init__(self, passes: int, micro_batches: int):
        self.passes = passes
        self.micro_batches = micro_batches
        self._kept: list[Rollouts] = []
        self._served = 0

    def next(self, make: Callable[[], Rollouts]) -> Rollouts:
        """The rollouts of the next micro-batch; ``make`` is called on the first pass only."""
        # Counts micro-batches, not steps: a step has as many as the batch is cut into
        place = self._served % (self.passes * self.micro_batches)
        self._served += 1
        if place == 0:
            self._kept = []
        if place < self.micro_batches:
            self._kept.append(make())
        return self._kept[place % self.micro_batches]


class Roller:
    """Makes rollouts with constrained beam search and rewards them.

    Args:
        trie: the catalogue, on the model's device.
        settings: the ``rl`` section.
        normalize: what scores are normalised over, ``vocab`` or ``trie``.
        reward: of items.
    """

    def __init__(self, trie: SidTrie, settings: RLSettings, normalize: str, reward: Reward):
        self.trie = trie
        self.settings = settings
        self.normalize = normalize
        self.reward = reward
        first_item = [trie.items_of_leaf(leaf)[0] for leaf in range(trie.num_leaves)]
        self.device = trie.leaf_node.device
        self.item_of_leaf = torch.tensor(first_item, device=self.device)

    @torch.no_grad()
    def roll_out(
        self,
        model: nn.Module,
        rows: Sequence[Row],
        seeds: Sequence[int],
        given: Sequence[int] | None = None,
    ) -> Rollouts:
        """Generate G completions per row and reward them.

        Args:
            model: the policy; it generates in eval mode (no dropout) and is given back in the mode
                that it had.
            rows: at least one.
            seeds: one per row, of the noise of ``gumbel`` and ``sample``.
            given: per row, how many codes of its target are a hint; the rest is generated.
        """
        given = list(given or [0] * len(rows))
        # Dropout would roll out from another policy than the one that the loss scores
        was_training = model.training
        model.eval()
        # Leaf -1 stands where the catalogue had no further item
        beams = self._search(model, rows, seeds, given)
        model.train(was_training)

        settings = self.settings
        targets = torch.tensor([row.target_item for row in rows], device=self.device)  # (B,)
        # The target is compared with the misses, so it must be there to be compared
        if settings.compares_lists:
            beams = self._with_targets(beams, targets)
        alive = beams.leaves >= 0  # (B, G)
        items = self._items(beams.leaves, alive, targets)
        # Each part is weighted already; what a completion earns is their sum
        parts = self.reward(items, targets, alive, [row.history for row in rows])
        rewards = torch.stack(list(parts.values())).sum(0)  # (B, G)
        # Dr. GRPO leaves out the deviation, which makes easy and hard prompts weigh more
        advantages = mixed_advantages(
            rewards,
            alive,
            self.trie.path(beams.nodes, self.trie.num_levels),
            alpha=settings.sibling_alpha,
            scale=settings.scale_rewards and settings.objective == "grpo",
        )
        wanted = None
        if settings.compares_lists:
            wanted = shares_of(rewards)

        # Scores are log-probabilities of distinct items, so their mean bounds the entropy from
        # above
        live = max(1, int(alive.sum()))
        hit = ((items == targets[:, None]) & alive).any(1)  # never without a target
        metrics = {
            "reward": rewards[alive].mean().item(),
            "groups_with_hit": hit.float().mean().item(),
            "groups_with_signal": (advantages != 0).any(1).float().mean().item(),
            "hint_codes": sum(given) / len(given),
            "rollout_coverage": items[alive].unique().numel() / self.trie.num_items,
            "entropy_bound": -torch.where(alive, beams.scores, 0).sum().item() / live,
        }
        for name, part in parts.items():
            metrics[f"reward/{name}"] = part[alive].mean().item()
        return Rollouts(
            prompts=[row.prompt for row in rows],
            nodes=beams.nodes,
            alive=alive,
            old_logps=beams.token_logps,
            advantages=advantages,
            wanted=wanted,
            targets=targets.tolist(),
            given=given,
            metrics=metrics,
        )

    def _search(
        self,
        model: nn.Module,
        rows: Sequence[Row],
        seeds: Sequence[int],
        given: Sequence[int],
    ) -> Beams:
        """G distinct SIDs per row (``beam``, ``gumbel``) or G draws (``sample``)."""
        settings = self.settings
        generators = None
        if settings.rollout != "beam":
            # one per row: its noise does not depend on which rows share its batch
            generators = [torch.Generator(device=self.device).manual_seed(seed) for seed in seeds]
        return constrained_beam_search(
            make_decoder(model),
            [row.prompt for row in rows],
            self.trie,
            settings.num_generations,
            normalize=self.normalize,
            given=given_nodes(self.trie, rows, given) if any(given) else None,
            rollout=settings.rollout,
            temperature=settings.temperature,
            generator=generators,
        )

    def _items(self, leaves: Tensor, alive: Tensor, targets: Tensor) -> Tensor:
        """The item that each leaf names, ``(B, G)``, -1 where there is none.

        A SID that several items share names the first of them, but in the target's own group it
        names the target: the policy cannot tell them apart.
        """
        items = torch.where(alive, self.item_of_leaf[leaves.clamp(min=0)], -1)
        # Leaves are compared, not items: items of one SID have one leaf
        is_target = leaves == self._target_leaves(targets)[:, None]
        return torch.where(is_target, targets[:, None], items)

    def _target_leaves(self, targets: Tensor) -> Tensor:
        """The leaf of each target, ``(B,)``, one that no beam has where there is no target."""
        leaf_of_item = torch.from_numpy(self.trie.leaf_of_item).long()
        leaves = leaf_of_item[targets.clamp(min=0).cpu()].to(self.device)
        # Not -1: that stands where the catalogue had no further item
        return torch.where(targets == NO_TARGET, self.trie.num_leaves, leaves)

    def _with_targets(self, beams: Beams, targets: Tensor) -> Beams:
        """The beams, the last one replaced by the target where that is not among them."""
        target_leaves = self._target_leaves(targets)
        missing = (beams.leaves != target_leaves[:, None]).all(1) & (targets != NO_TARGET)  # (B,)
        leaves = beams.leaves.clone()
        nodes = beams.nodes.clone()
        new = target_leaves[missing].long()
        leaves[missing, -1] = new
        nodes[missing, -1] = self.trie.leaf_node[new].long()
        # What it scored is unknown, and nobody asks: lists are compared by the loss's own forward
        scores = beams.scores.clone()
        scores[missing, -1] = 0.0
        return beams._replace(leaves=leaves, nodes=nodes, scores=scores)


def given_nodes(trie: SidTrie, rows: Sequence[Row], given: Sequence[int]) -> Tensor:
    """The trie nodes of each row's hint, ``(B, L)``, -1 behind its codes."""
    nodes = torch.full((len(rows), trie.num_levels), -1)
    for row, (example, codes) in enumerate(zip(rows, given, strict=True)):
        path = trie.item_path(example.target_item)
        hint = path[:codes]
        nodes[row, : len(hint)] = torch.tensor(hint)
    return nodes.to(trie.leaf_node.device)


def shares_of(rewards: Tensor) -> Tensor:
    """What each completion is wanted among those of its group: shares that add up to 1, ``(B, G)``.

    Penalties count nothing. A group in which nothing earns anything has shares of 0.

    Args:
        rewards: ``(B, G)``.
    """
    gains = rewards.clamp(min=0)
    return gains / gains.sum(1, keepdim=True).clamp(min=1e-12)
