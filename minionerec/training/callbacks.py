"""What both trainers hang on ``transformers.Trainer``."""

from __future__ import annotations

import signal
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import EarlyStoppingCallback, ProgressCallback

from minionerec.model.token_trees import base_causal_lm
from minionerec.training.batches import GlobalBatches
from minionerec.training.checkpoints import BEST_METRIC


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
        self.received = number  # a launcher passes on what the terminal has sent to all already; it kills after half a minute
        signal.signal(
            number, signal.SIG_DFL if PartialState().num_processes == 1 else signal.SIG_IGN
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the Trainer to save and stop; rollouts that are still to be reused are not saved, so their steps come first."""
        if state.global_step % self.every:
            return
        self.received = (
            int(gather(torch.tensor(self.received or 0, device=args.device)).max()) or None
        )
        if self.received:
            control.should_save = control.should_training_stop = (
                True  # a validation that is due comes first: it would be missing later
            )


class QuietProgress(ProgressCallback):
    """The Trainer's bar with a few numbers beside it instead of a dictionary per log."""

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show loss and, in RL, reward."""
        if (
            state.is_world_process_zero
            and self.training_bar is not None
            and logs
            and "loss" in logs
        ):
            shown = [key for key in ("loss", "reward", "groups_with_hit") if key in logs]
            self.training_bar.set_postfix({key: f"{logs[key]:.4g}" for key in shown})


class Narrator(TrainerCallback):
    """One line per validation, and a last validation where the run ends."""

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Print the ranking of the validation rows."""
        if state.is_world_process_zero:
            loss = next(
                (
                    f"loss {row['loss']:.4f}  "
                    for row in reversed(state.log_history)
                    if "loss" in row
                ),
                "",
            )
            keys = [
                key
                for key in ("eval_HR@1", "eval_HR@10", "eval_HR@50", BEST_METRIC)
                if key in metrics
            ]
            numbers = "  ".join(f"{key.removeprefix('eval_')} {metrics[key]:.4f}" for key in keys)
            with tqdm.external_write_mode():
                print(
                    f"step {state.global_step}/{state.max_steps}  {loss}validation {numbers}",
                    flush=True,
                )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Validate and save the last step too; ``eval_steps`` need not divide the run."""
        if state.global_step == state.max_steps:
            control.should_evaluate = control.should_save = True


class SyncReference(TrainerCallback):
    """Pull the reference towards the policy: ``ref = alpha * policy + (1 - alpha) * ref`` (paper: .6 every 512 steps)."""

    def __init__(self, trainer: Any):
        self.trainer = trainer  # a GRPOTrainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After every ``sync_ref_steps`` optimiser steps."""
        s = self.trainer.settings
        if state.global_step % s.sync_ref_steps == 0:
            with torch.no_grad():
                policy = base_causal_lm(self.trainer.whole_model()).parameters()
                for p, r in zip(
                    policy, base_causal_lm(self.trainer.ref_model).parameters(), strict=True
                ):
                    r.mul_(1 - s.sync_ref_alpha).add_(p.to(r.dtype), alpha=s.sync_ref_alpha)


def early_stopping(patience: int) -> list[TrainerCallback]:
    """The Trainer's own early stopping, or nothing for patience 0."""
    return [EarlyStoppingCallback(patience)] if patience else []
