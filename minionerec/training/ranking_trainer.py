"""The Trainer that SFT and RL share: validation by ranking, checkpoints that are whole or absent.

It stops at the first value that is not finite. However many processes share a step, it trains on
the same rows with the same weights: ``GlobalBatches`` cuts every batch into the same micro-batches,
losses are sums over a global count, and noise comes from the seed, the step and the row.

Methods that begin with an underscore override private ones of ``transformers.Trainer``; a test
compares their signatures with those of the library that is installed
(``tests/training/test_trainer_interface.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainingArguments
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback

from minionerec.model import backbone
from minionerec.model.beam_search import NotFinite
from minionerec.training.batches import GlobalBatches, GroupedSampler, MicroBatchSeeds
from minionerec.training.callbacks import EpochOrder, Narrator, StopSignal
from minionerec.training.checkpoints import CheckpointContents, CheckpointKeeper
from minionerec.training.finite import explained, refuse_spoilt
from minionerec.training.price import next_to_lower
from minionerec.training.sharded import WholeCopy, keep_results_in_float32

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
        decoder: of ``sharded.decoder_of``; needed where FSDP shards the model.
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
        group_of_row: np.ndarray | None = None,
        decoder: nn.Module | None = None,
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
        self.whole_copy = None
        if self.is_fsdp_enabled:
            self.whole_copy = WholeCopy(decoder)
            if args.bf16:
                keep_results_in_float32(self.accelerator)
        self.seeds = MicroBatchSeeds(args.seed, args.process_index, args.world_size)
        if group_of_row is None:
            group_of_row = np.broadcast_to(np.int64(-1), (len(rows),))
        self.batches = self._global_batches(group_of_row)
        self.stop_signal = StopSignal()
        self.stop_signal.every = self.passes_per_batch

        self.add_callback(self.stop_signal)
        self.add_callback(EpochOrder(self.batches))
        self.remove_callback(PrinterCallback)
        self.add_callback(Narrator)

    # ------------------------------------------------------------------------------- rows and steps

    def _global_batches(self, group_of_row: np.ndarray) -> GlobalBatches:
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
            # All processes must agree to stop, or the others would wait for one that has gone
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
        if self.whole_copy is None:
            return self.model
        return self.whole_copy.at(self.state.global_step, self.model)

    def plain_model(self, model: nn.Module) -> nn.Module | None:
        """A model as it is to be saved, with float32 weights; None in processes that save nothing.

        All processes must ask at the same time.

        Args:
            model: the one that is trained, or its reference.
        """
        if self.whole_copy is None:
            return model
        return self.whole_copy.plain(model, self.args.should_save)

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
        # All files are written beside and get their name at once, when every one is checked
        with self.checkpoints.writing(step) as staged:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            best = self.state.best_global_step
            best_path = self.checkpoints.path(best)
            self.state.best_model_checkpoint = str(best_path) if best else None
            self.save_extras(staged)
            if self.args.should_save:
                self.state.save_to_json(str(staged / "trainer_state.json"))
                self.checkpoints.complete(staged, self.state.log_history)
                self.checkpoints.commit(staged, step)
        if self.args.should_save:
            self.checkpoints.forget_older(keep={self.checkpoints.path(step), best_path})
        self.accelerator.wait_for_everyone()

    def save_extras(self, staged: Path) -> None:
        """Add what a subclass needs for an exact resume; called in every process."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Under FSDP save the plain model.

        The Trainer's way fails on shards of unequal size where weights are tied.
        """
        if self.whole_copy is None:
            super().save_model(output_dir, _internal_call)
            return
        plain = self.plain_model(self.model)
        if plain is not None:
            plain.save_pretrained(output_dir)
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
