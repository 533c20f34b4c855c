"""The trainers that ``sft.py`` and ``rl.py`` share, on ``transformers.Trainer``.

``RankingTrainer`` adds what both need: validation by constrained beam search, checkpoints that are
whole or absent, and a stop at the first value that is not finite. ``SFTTrainer`` trains on packed
prefix trees with logits only where there is a label. ``GRPOTrainer`` rolls out with the same beam
search that evaluates, and scores a group's completions in one forward over the prompt and their
prefix tree; its loss and gradients are those of ``trl.GRPOTrainer`` on the same rollouts. Devices,
DDP, FSDP, DeepSpeed, schedules, clipping and resuming stay the Trainer's job.

What they are made of lies in ``minionerec/training/``: ``batches`` (the order of rows),
``collate``, ``likelihood`` and ``objective`` (the losses), ``rollouts``, ``checkpoints``,
``sharded`` (FSDP), ``finite``, ``callbacks``.

However many processes share a step, it trains on the same rows with the same weights:
``GlobalBatches`` cuts every batch into the same micro-batches, losses are sums over a global count,
and noise comes from the seed, the step and the row.

Methods that begin with an underscore override private ones of ``transformers.Trainer``; a test
compares their signatures with those of the library that is installed
(``tests/training/test_trainer_interface.py``).
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
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainingArguments
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback

from minionerec.catalogue.rows import Row
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.settings import RLSettings
from minionerec.model import backbone
from minionerec.model.beam_search import NotFinite
from minionerec.model.token_trees import pack_trees
from minionerec.model.tree_attention import base_causal_lm
from minionerec.training.batches import GlobalBatches, GroupedSampler, MicroBatchSeeds, seed_of
from minionerec.training.callbacks import (
    EpochOrder,
    Narrator,
    StopSignal,
    SyncReference,
)
from minionerec.training.checkpoints import CheckpointContents, CheckpointKeeper
from minionerec.training.collate import collate_rl, collate_sft
from minionerec.training.finite import explained, refuse_spoilt
from minionerec.training.group_logps import GroupBatch, GroupOutput
from minionerec.training.group_loss import GroupLoss
from minionerec.training.likelihood import sft_logp, zero_loss
from minionerec.training.objective import Loss, groups_with_signal
from minionerec.training.price import next_to_lower
from minionerec.training.rollouts import Reward, Roller, RolloutBuffer, Rollouts
from minionerec.training.sharded import WholeCopy

Validate = Callable[..., dict[str, float]]


class RankingTrainer(Trainer):
    """A Trainer that selects on the ranking of validation rows and commits its checkpoints.

    Args:
        model: to train.
        args: of the Trainer.
        rows: training rows.
        tokenizer: saved with every checkpoint.
        contents: what else a checkpoint holds.
        validate: gives the metrics of a model on the validation rows; every process takes its
            share.
        group_of_row: rows of one group stay together in a batch; None shuffles single rows.
        kwargs: of the Trainer.
    """

    passes_per_batch = 1  # optimiser steps in a row over the same rows
    control: TrainerControl
    train_dataset: Sequence[Any]

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        rows: Sequence[Any],
        tokenizer: PreTrainedTokenizerBase,
        contents: CheckpointContents,
        validate: Validate,
        group_of_row: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            model,
            args,
            train_dataset=rows,
            eval_dataset=rows[:1],
            processing_class=tokenizer,
            **kwargs,
        )
        # tells the Trainer to count the labels of the whole batch first
        self.model_accepts_loss_kwargs = True
        self.contents = contents
        self.validate = validate
        self.checkpoints = CheckpointKeeper(Path(args.output_dir), contents)
        self.whole_copy = WholeCopy(model, args.device) if self.is_fsdp_enabled else None
        self.seeds = MicroBatchSeeds(args.seed, args.process_index, args.world_size)
        self.batches = self._global_batches(group_of_row or [""] * len(rows))
        self.stop_signal = StopSignal()
        self.stop_signal.every = self.passes_per_batch

        self.add_callback(self.stop_signal)
        self.add_callback(EpochOrder(self.batches))
        self.remove_callback(PrinterCallback)
        self.add_callback(Narrator)

    # ------------------------------------------------------------------------------- rows and steps

    def _global_batches(self, group_of_row: Sequence[str]) -> GlobalBatches:
        pieces = self.args.gradient_accumulation_steps * self.args.world_size
        return GlobalBatches(
            GroupedSampler(group_of_row, self.args.seed),
            batch_size=self.args.per_device_train_batch_size * pieces,
            pieces=pieces,
            times=self.passes_per_batch,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of ``GlobalBatches``, dealt to the processes one by one."""
        loader = DataLoader(
            self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator
        )
        return self.accelerator.prepare(loader)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward.

        Raises:
            UserError: the loss of any process is not finite; raised in all of them, and names the
                first bad parameter and the last good checkpoint. Or memory ran out.
        """
        step = self.state.global_step
        self.seeds.start(step)
        stage = self.contents.stage
        advice = next_to_lower(
            stage,
            self.args.per_device_train_batch_size,
            self.args.gradient_checkpointing,
            self.contents.settings["model.tune"],
        )
        with explained(step + 1, self.whole_model, self.checkpoints.last_good):
            with backbone.fits_memory(advice):
                loss = super().training_step(*args, **kwargs)
            everywhere = self.accelerator.reduce(loss).item()
            if not math.isfinite(everywhere):
                raise NotFinite(", ".join([f"the loss is {everywhere}", *self.bad_terms()]))
        return loss

    def bad_terms(self) -> list[str]:
        """Parts of the last loss that are not finite; a subclass knows them."""
        return []

    def forward_tokens(self, batch: Sequence[int]) -> int:
        """How many tokens the forward over these rows reads, about."""
        raise NotImplementedError

    def further_forwards(self) -> int:
        """Forwards over the same tokens that have no backward."""
        return int(self.args.gradient_checkpointing)

    def copies(self) -> int:
        """Further models that are kept beside the one that is trained."""
        return 0

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: the Trainer's formula does not hold for shared prefixes."""
        return 0

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing if the run had ended when it was interrupted.

        The Trainer would train on for a step or more.
        """
        over = self.state.global_step >= self.state.max_steps
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                used_up = callback.early_stopping_patience_counter
                over = over or used_up >= callback.early_stopping_patience
        if over:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    # ----------------------------------------------------------------------------------- validation

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Rank the validation rows; every process takes its share inside ``validate``."""
        metrics = {}
        with (
            backbone.fits_memory(f"{self.contents.stage}.eval_beams"),
            explained(self.state.global_step, self.whole_model, self.checkpoints.last_good),
        ):
            for key, value in self.validate(self.whole_model()).items():
                metrics[f"eval_{key}"] = value
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def whole_model(self) -> nn.Module:
        """The model with all its weights, for whatever is no training forward.

        All processes must ask at the same time.
        """
        return self.whole_copy.gather(self.model) if self.whole_copy else self.model

    # ---------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Write, check, complete and commit a checkpoint; then forget older ones."""
        step = self.state.global_step
        if self.checkpoints.path(step).exists():
            return
        refuse_spoilt(self.whole_model(), step, self.checkpoints.last_good)
        if self.args.should_save:
            self.checkpoints.clear_staging()
        self.accelerator.wait_for_everyone()
        with self.checkpoints.writing(step) as staged:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            best = self.state.best_global_step
            best_path = self.checkpoints.path(best)
            self.state.best_model_checkpoint = str(best_path) if best else None
            if self.args.should_save:
                self.state.save_to_json(str(staged / "trainer_state.json"))
                self.save_extras(staged)
                self.checkpoints.complete(staged, self.state.log_history)
                self.checkpoints.commit(staged, step)
        if self.args.should_save:
            self.checkpoints.forget_older(keep={self.checkpoints.path(step), best_path})
        self.accelerator.wait_for_everyone()

    def save_extras(self, staged: Path) -> None:
        """Add what a subclass needs for an exact resume."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Under FSDP save the whole copy.

        The Trainer's way fails on shards of unequal size where weights are tied.
        """
        if self.whole_copy is None:
            super().save_model(output_dir, _internal_call)
            return
        whole = self.whole_model()  # in every process, also those that do not save
        if self.args.should_save:
            whole.save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.save_checkpoint(model, trial)

    def _get_output_dir(self, trial: Any) -> str:
        """The staging folder while a checkpoint is being written."""
        return str(self.checkpoints.staging or super()._get_output_dir(trial))

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        """Find the best checkpoint again where a run's folder was moved.

        The Trainer would end with the last one.
        """
        found = super()._init_training_state(*args)
        best = self.state.best_global_step
        if best:
            self.state.best_model_checkpoint = str(self.checkpoints.best(best))
        return found

    def _load_best_model(self) -> None:
        """Load the best checkpoint, verified."""
        best = self.checkpoints.best(self.state.best_global_step)
        if self.whole_copy:
            self.whole_copy.load(best, self.model)
        else:
            super()._load_best_model()

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Load the weights that a resumed run starts from."""
        if self.whole_copy:
            self.whole_copy.load(Path(resume_from_checkpoint), self.model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


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
        paths = [trie.item_path(item) for item in range(trie.num_items)] if trie else []
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
        self.buffer = RolloutBuffer(settings.num_iterations, self.args.gradient_accumulation_steps)
        self.ref_model = None
        if ref_model is not None:
            self.ref_model = ref_model.to(self.args.device).eval()
        self.moving_reference = self.ref_model is not None and settings.sync_ref_steps > 0
        if self.moving_reference:
            self.add_callback(
                SyncReference(
                    self.whole_model,
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
        """A micro-batch's share of the GRPO loss, a mean over the groups of a batch."""
        rollouts = self.buffer.next(lambda: self.roll_out(**inputs["prompts"]))
        kept = self.groups_to_score(rollouts)
        metrics: dict[str, float] = {}
        if kept:
            loss, metrics = self.loss_of(model, rollouts, kept, num_items_in_batch)
        else:
            no_tree = pack_trees([[0]], share=self.share).to(self.args.device)
            loss = zero_loss(model, no_tree)
        self._logged.append((len(rollouts.prompts), rollouts.metrics))
        self._logged.append((len(kept), metrics))
        return loss * self.accelerator.num_processes  # gradients are averaged over processes

    def forward_tokens(self, batch: Sequence[int]) -> int:
        """Of the prompts and a group's items each, as if every group had a signal."""
        # Any items have about as many tokens as those that a rollout finds
        some = [row.completion for _, row in self.train_dataset[: self.settings.num_generations]]
        sequences = []
        for number in batch:
            _, row = self.train_dataset[number]
            # Neither a SID's last token nor the end of the sequence is ever read
            sequences += [row.prompt + completion[:-2] for completion in some]
        return pack_trees(sequences, share=self.share).input_ids.numel()

    def further_forwards(self) -> int:
        """The rollout, and the reference."""
        return super().further_forwards() + 1 + self.settings.has_reference

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
        everywhere = settings.sft_weight or settings.hint_weight or rollouts.wanted is not None
        if everywhere or (settings.beta and settings.kl_on_flat_groups):
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

    @torch.inference_mode()
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
        for _, metrics in self._logged[-2:]:
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
            base_causal_lm(self.ref_model).save_pretrained(staged / "ref_model")

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.moving_reference:
            reference = base_causal_lm(self.ref_model)
            saved = type(reference).from_pretrained(Path(resume_from_checkpoint) / "ref_model")
            reference.load_state_dict(saved.state_dict())


def weighted_means(rows: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Mean of every metric over (weight, metrics) rows, by name."""
    totals: dict[str, float] = {}
    weights: dict[str, int] = {}
    for weight, metrics in rows:
        for key, value in metrics.items():
            totals[key] = totals.get(key, 0.0) + weight * value
            weights[key] = weights.get(key, 0) + weight
    return {key: totals[key] / weights[key] for key in sorted(totals)}
