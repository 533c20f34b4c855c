"""The trainers of ``sft.py`` and ``rl.py``, on ``transformers.Trainer``.

``SFTTrainer`` trains on packed prefix trees with logits only where there is a label.
``GRPOTrainer`` rolls out with the same beam search that evaluates, and scores a group's completions
in one forward over the prompt and their prefix tree; its loss and gradients are those of
``trl.GRPOTrainer`` on the same rollouts. Devices, DDP, FSDP, DeepSpeed, schedules, clipping and
resuming stay the Trainer's job; what both share on top of it is
``minionerec/training/ranking_trainer.py``.

What they are made of lies in ``minionerec/training/``: ``batches`` (the order of rows),
``collate``, ``likelihood`` and ``objective`` (the losses), ``rollouts``, ``checkpoints``,
``sharded`` (FSDP), ``finite``, ``callbacks``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn

from minionerec.catalogue.rows import Row
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.settings import RLSettings
from minionerec.model.token_trees import pack_trees
from minionerec.model.tree_attention import base_causal_lm
from minionerec.training.batches import seed_of
from minionerec.training.callbacks import SyncReference
from minionerec.training.collate import collate_rl, collate_sft
from minionerec.training.group_logps import GroupBatch, GroupOutput
from minionerec.training.group_loss import GroupLoss
from minionerec.training.likelihood import RowLikelihood, sft_logp, zero_loss
from minionerec.training.objective import Loss, groups_with_signal
from minionerec.training.ranking_trainer import RankingTrainer
from minionerec.training.rollouts import Reward, Roller, RolloutBuffer, Rollouts
from minionerec.training.sharded import shard_reference


class SFTTrainer(RankingTrainer):
    """Next-token loss on the completions of packed prefix trees.

    With a ``trie`` the tokens of a SID are normalised over the legal children of their prefix
    instead of the vocabulary: the model need not learn which codes exist, and is scored the same
    way when it decodes with ``normalize: trie``. ``teacher_weight`` is how much the teacher of rows
    with soft labels weighs when a share of all steps is done.
    """

    def __init__(
        self,
        *args: Any,
        trie: SidTrie | None = None,
        teacher_weight: Callable[[float], float] = lambda _: 0.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.teacher_weight = teacher_weight
        share = base_causal_lm(self.model).takes_trees
        paths = trie.item_paths() if trie else ()
        self.data_collator = lambda rows: collate_sft(rows, share, trie, paths)

    def forward_tokens(self, batch: Sequence[int]) -> int:
        """Of the packed tree."""
        rows = [self.train_dataset[number] for number in batch]
        return self.data_collator(rows)["tree"].input_ids.numel()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean negative log-likelihood per completion token of the global batch."""
        if not len(inputs["shift_labels"]):
            return zero_loss(model, inputs["tree"])
        weight = self.teacher_weight(self.state.global_step / self.state.max_steps)
        loss = -sft_logp(model, inputs, weight) / num_items_in_batch
        return loss * self.accelerator.num_processes  # gradients are averaged over processes


class GRPOTrainer(RankingTrainer):
    """Group-relative policy optimisation over the catalogue (GRPO, arXiv:2402.03300).

    Args:
        trie: the catalogue, on the model's device.
        settings: the ``rl`` section.
        normalize: the distribution of rollouts, loss and KL, ``vocab`` or ``trie``
            (``model.normalize``).
        reward: (items ``(B, G)``, targets ``(B,)``, alive ``(B, G)``, B histories) -> weighted
            parts ``(B, G)``, which add up.
        ref_model: frozen copy for the KL and S-DPO; None when neither is on, or when the model
            without its adapters is the reference.
        hints: per row, how many codes of its target join the prompt; none by default.
        args, kwargs: of ``RankingTrainer``.
    """

    def __init__(
        self,
        *args: Any,
        trie: SidTrie,
        settings: RLSettings,
        normalize: str,
        reward: Reward,
        ref_model: nn.Module | None,
        hints: Sequence[int] = (),
        **kwargs: Any,
    ):
        self.settings = settings
        self.hints = hints
        self.normalize = normalize
        self.passes_per_batch = settings.num_iterations
        super().__init__(*args, **kwargs)
        self.train_dataset = list(enumerate(self.train_dataset))  # a row's number seeds its noise
        self.data_collator = collate_rl
        self.trie = trie.to(self.args.device)
        self.share = base_causal_lm(self.model).takes_trees
        self.roller = Roller(self.trie, settings, normalize, reward)
        self.group_loss = GroupLoss(self.trie, settings, normalize, self.share)
        self.likelihood = None
        if settings.sft_weight and (settings.anchor == "labels" or not settings.rolls_out):
            self.likelihood = RowLikelihood(self.trie, normalize, self.share, self.args.device)
        self.buffer = RolloutBuffer(settings.num_iterations, self.args.gradient_accumulation_steps)
        self.ref_model = None
        if ref_model is not None and self.is_fsdp_enabled:
            self.ref_model = shard_reference(ref_model, self.accelerator).eval()
        elif ref_model is not None:
            self.ref_model = ref_model.to(self.args.device).eval()
        self.moving_reference = self.ref_model is not None and settings.sync_ref_steps > 0
        if self.moving_reference:
            self.add_callback(
                SyncReference(
                    self.model,
                    self.ref_model,
                    settings.sync_ref_steps,
                    settings.sync_ref_alpha,
                )
            )
        self._logged: list[tuple[int, dict[str, float]]] = []  # (groups, their mean metrics)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """A micro-batch's share of the loss, a mean over the prompts of a batch."""
        prompts = inputs["prompts"]
        terms = []
        # The control of RL has the second term alone, a run without an anchor the first
        if self.settings.rolls_out:
            terms.append(self.rollout_loss(model, prompts, num_items_in_batch))
        if self.likelihood is not None:
            rows = prompts["rows"]
            loss, metrics = self.likelihood(model, rows, num_items_in_batch or len(rows))
            terms.append(self.settings.sft_weight * loss)
            self._logged.append((len(rows), metrics))
        # gradients are averaged over processes
        return torch.stack(terms).sum() * self.accelerator.num_processes

    def rollout_loss(
        self, model: nn.Module, prompts: dict[str, Any], groups: Tensor | int | None
    ) -> Tensor:
        """Roll out from a micro-batch's prompts, or take what was; then the loss of its groups."""
        rollouts = self.buffer.next(lambda: self.roll_out(**prompts))
        kept = self.groups_to_score(rollouts)
        metrics: dict[str, float] = {}
        if kept:
            loss, metrics = self.loss_of(model, rollouts, kept, groups)
        else:
            no_tree = pack_trees([[0]], share=self.share).to(self.args.device)
            loss = zero_loss(model, no_tree)
            if self.ref_model is not None:
                # Where it is sharded, other processes wait for this forward too
                with torch.no_grad():
                    zero_loss(self.ref_model, no_tree)
        self._logged.append((len(rollouts.prompts), rollouts.metrics))
        self._logged.append((len(kept), metrics))
        return loss

    def forward_tokens(self, batch: Sequence[int]) -> int:
        """Of the prompts and a group's items each, as if every group had a signal."""
        # Any items have about as many tokens as those that a rollout finds
        some = [row.completion for _, row in self.train_dataset[: self.settings.num_generations]]
        rows = [self.train_dataset[number][1] for number in batch]
        tokens = 0
        if self.settings.rolls_out:
            sequences = []
            for row in rows:
                # Neither a SID's last token nor the end of the sequence is ever read
                sequences += [row.prompt + completion[:-2] for completion in some]
            tokens += pack_trees(sequences, share=self.share).input_ids.numel()
        if self.likelihood is not None:
            tokens += self.likelihood.batch(rows)["tree"].input_ids.numel()
        return tokens

    def further_forwards(self) -> int:
        """The rollout, and the reference."""
        settings = self.settings
        return super().further_forwards() + settings.rolls_out + settings.has_reference

    def copies(self) -> int:
        """The reference, where it is a model of its own."""
        return int(self.ref_model is not None)

    def roll_out(self, rows: Sequence[Row], numbers: Sequence[int] | None = None) -> Rollouts:
        """Generate G completions per prompt with the current policy and reward them.

        Args:
            rows: none only in a process without rows in a step, which must take part all the same.
            numbers: of the rows in the data set; they seed the noise of ``gumbel`` and ``sample``.
        """
        model = self.whole_model()  # in every process, also those without rows
        if not rows:
            return Rollouts.none(self.args.device)
        numbers = numbers or range(len(rows))
        seeds = []
        for number in numbers:
            seeds.append(seed_of(self.args.seed, self.state.global_step, number))
        given = None
        if self.hints:
            given = [self.hints[number] for number in numbers]
        return self.roller.roll_out(model, rows, seeds, given)

    def groups_to_score(self, rollouts: Rollouts) -> list[int]:
        """Groups whose rewards differ; all of them where another term is to act on every group."""
        settings = self.settings
        anchored = settings.sft_weight and settings.anchor == "target"
        everywhere = anchored or settings.hint_weight or rollouts.wanted is not None
        if everywhere or (settings.has_kl and settings.kl_on_flat_groups):
            return list(range(len(rollouts.prompts)))
        return groups_with_signal(rollouts.advantages)

    def loss_of(
        self,
        model: nn.Module,
        rollouts: Rollouts,
        kept: Sequence[int],
        groups: Tensor | int | None = None,
    ) -> Loss:
        """Loss of some groups, with its parts for the log.

        Args:
            model: the policy.
            rollouts: of a micro-batch.
            kept: numbers of the groups to score; the others contribute 0.
            groups: how many groups the loss is a mean over; those of the rollouts unless said.
        """

        def reference(batch: GroupBatch, with_children: bool) -> GroupOutput:
            return self.reference(model, batch, with_children)

        return self.group_loss(model, reference, rollouts, kept, groups)

    @torch.no_grad()
    def reference(
        self, model: nn.Module, batch: GroupBatch, with_children: bool = False
    ) -> GroupOutput:
        """The log-probabilities of a batch under the reference.

        That is the frozen copy, or the policy with its adapters off.
        """
        if self.ref_model is not None:
            return batch.forward(self.ref_model, self.normalize, with_children)
        policy: PeftModel = self.accelerator.unwrap_model(model)
        was_training = policy.training
        with policy.eval().disable_adapter():
            output = batch.forward(policy, self.normalize, with_children)
        policy.train(was_training)
        return output

    def bad_terms(self) -> list[str]:
        """Metrics of the last micro-batch that are not finite."""
        bad = []
        for _, metrics in self._logged[-3:]:  # rollouts, loss, likelihood
            for name, value in metrics.items():
                if not math.isfinite(value):
                    bad.append(f"{name} is {value}")
        return bad

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of the rollout metrics since the last log, over all processes."""
        if "loss" in logs:
            logs |= weighted_means(gather_object(self._logged))
            self._logged = []
        super().log(logs, *args, **kwargs)

    def save_extras(self, staged: Path) -> None:
        """Add a reference that moves: it can be had from nowhere else."""
        if self.moving_reference:
            plain = self.plain_model(self.ref_model)
            if self.args.should_save:
                base_causal_lm(plain).save_pretrained(staged / "ref_model")

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if not self.moving_reference:
            return
        folder = Path(resume_from_checkpoint) / "ref_model"
        if self.whole_copy is not None:
            self.whole_copy.load(folder, self.ref_model)
            return
        reference = base_causal_lm(self.ref_model)
        reference.load_state_dict(type(reference).from_pretrained(folder).state_dict())


def weighted_means(rows: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Mean of every metric over (weight, metrics) rows, by name."""
    totals: dict[str, float] = {}
    weights: dict[str, int] = {}
    for weight, metrics in rows:
        for key, value in metrics.items():
            totals[key] = totals.get(key, 0.0) + weight * value
            weights[key] = weights.get(key, 0) + weight
    return {key: totals[key] / weights[key] for key in sorted(totals)}
