"""What both trainers hang on ``transformers.Trainer``: the order of rows, callbacks, and the state of checkpoints."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import nn
from torch.utils.data import BatchSampler, Sampler
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import EarlyStoppingCallback, ProgressCallback

from minionerec import artifacts
from minionerec.trees import base_causal_lm

BEST_METRIC = "eval_NDCG@10"
TIMING_KEYS = ("runtime", "per_second", "total_flos", "train_loss")    # the last one is the mean since the last resume


class GroupedSampler(Sampler[int]):
    """A random order of all rows for every epoch in which rows of one group stay together; the same for the same seed."""

    def __init__(self, groups: Sequence[str], seed: int):
        members: dict[str, list[int]] = {}
        for i, group in enumerate(groups):
            members.setdefault(group or f"row {i}", []).append(i)
        self._members, self._seed, self._epoch, self._length = list(members.values()), seed, 0, len(groups)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate; a resumed run gets the order it would have had."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self):
        rng = np.random.default_rng((self._seed, self._epoch))
        for i in rng.permutation(len(self._members)):
            yield from self._members[i]


class GlobalBatches(BatchSampler):
    """The rows of every optimiser step, cut into its micro-batches: ``pieces`` for all processes, of equal size or one less.

    The last batch of an epoch has what rows are left: none is repeated or dropped, and a piece may be empty. With
    ``times`` every step comes that often in a row: the passes of ``num_iterations`` over the same rollouts. Accelerate
    deals the pieces out to the processes one by one.
    """

    def __init__(self, order: GroupedSampler, batch_size: int, pieces: int, times: int = 1):
        self.sampler, self.global_batch_size, self.pieces, self.times = order, batch_size, pieces, times
        self.batch_size, self.drop_last = None, False       # tells accelerate that sizes vary

    def set_epoch(self, epoch: int) -> None:
        """Passed on."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.global_batch_size) * self.times * self.pieces

    def __iter__(self):
        rows = list(self.sampler)
        for start in range(0, len(rows), self.global_batch_size):
            batch = rows[start: start + self.global_batch_size]
            for _ in range(self.times):
                yield from (piece.tolist() for piece in np.array_split(np.array(batch), self.pieces))


def seed_of(*numbers: int) -> int:
    """One well-mixed seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class EpochOrder(TrainerCallback):
    """Gives every epoch its order, also the one in which a run is resumed: accelerate and the Trainer do not reach so deep."""

    def __init__(self, batches: GlobalBatches):
        self.batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first row is read."""
        self.batches.set_epoch(int(state.epoch))


class StopSignal(TrainerCallback):
    """SIGTERM or SIGINT, of any process: all finish the step, save, stop. A second one ends a lone process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.every = 1

    def listen(self) -> None:
        """Install the handlers; only the main thread may."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: Any) -> None:
        self.received = number      # a launcher passes on what the terminal has sent to all already; it kills after half a minute
        signal.signal(number, signal.SIG_DFL if PartialState().num_processes == 1 else signal.SIG_IGN)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the Trainer to save and stop; rollouts that are still to be reused are not saved, so their steps come first."""
        if state.global_step % self.every:
            return
        self.received = int(gather(torch.tensor(self.received or 0, device=args.device)).max()) or None
        if self.received:
            control.should_save = control.should_training_stop = True      # a validation that is due comes first: it would be missing later


class QuietProgress(ProgressCallback):
    """The Trainer's bar with a few numbers beside it instead of a dictionary per log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Show loss and, in RL, reward."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            shown = [key for key in ("loss", "reward", "groups_with_hit") if key in logs]
            self.training_bar.set_postfix({key: f"{logs[key]:.4g}" for key in shown})


class Narrator(TrainerCallback):
    """One line per validation, and a last validation where the run ends."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Print the ranking of the validation rows."""
        if state.is_world_process_zero:
            loss = next((f"loss {row['loss']:.4f}  " for row in reversed(state.log_history) if "loss" in row), "")
            keys = [key for key in ("eval_HR@1", "eval_HR@10", "eval_HR@50", BEST_METRIC) if key in metrics]
            numbers = "  ".join(f"{key.removeprefix('eval_')} {metrics[key]:.4f}" for key in keys)
            with tqdm.external_write_mode():
                print(f"step {state.global_step}/{state.max_steps}  {loss}validation {numbers}", flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Validate and save the last step too; ``eval_steps`` need not divide the run."""
        if state.global_step == state.max_steps:
            control.should_evaluate = control.should_save = True


class SyncReference(TrainerCallback):
    """Pull the reference towards the policy: ``ref = alpha * policy + (1 - alpha) * ref`` (paper: .6 every 512 steps)."""

    def __init__(self, trainer: Any):
        self.trainer = trainer      # a GRPOTrainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After every ``sync_ref_steps`` optimiser steps."""
        s = self.trainer.settings
        if state.global_step % s.sync_ref_steps == 0:
            with torch.no_grad():
                policy = base_causal_lm(self.trainer.whole_model()).parameters()
                for p, r in zip(policy, base_causal_lm(self.trainer.ref_model).parameters(), strict=True):
                    r.mul_(1 - s.sync_ref_alpha).add_(p.to(r.dtype), alpha=s.sync_ref_alpha)


def early_stopping(patience: int) -> list[TrainerCallback]:
    """The Trainer's own early stopping, or nothing for patience 0."""
    return [EarlyStoppingCallback(patience)] if patience else []


def last_checkpoint(output: Path) -> Path | None:
    """The newest committed checkpoint of a working directory, verified.

    Raises:
        UserError: it is damaged.
    """
    found = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    if found:
        artifacts.verify(found[-1])
    return found[-1] if found else None


def first_not_finite(model: nn.Module) -> str:
    """``parameter X has N values that are not finite``, or that all are."""
    for name, parameter in model.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            return f"parameter '{name}' has {bad} values that are not finite"
    return "all parameters are finite"


def clean_history(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log without what depends on when a run was interrupted, keys sorted: any way to the end writes the same bytes."""
    return [{key: row[key] for key in sorted(row) if not any(word in key for word in TIMING_KEYS)} for row in history]
