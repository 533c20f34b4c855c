"""Callbacks that both trainers add to ``transformers.Trainer``."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather
from torch import nn
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import EarlyStoppingCallback

from minionerec.experiment.processes import processes
from minionerec.experiment.progress import Progress
from minionerec.experiment.run import say
from minionerec.model.tree_attention import base_causal_lm
from minionerec.training.batches import GlobalBatches
from minionerec.training.checkpoints import BEST_METRIC
from minionerec.training.guard import GUARDED

# What says whether a stage learns: GRPO's loss is 0 by construction, its rewards are not
SHOWN_OF_SFT = (("loss", "loss"),)
SHOWN_OF_RL = (("reward", "reward"), ("groups_with_signal", "groups with signal"))
GUARDED_METRIC = f"eval_{GUARDED}"
SHOWN_AT_VALIDATION = ("eval_HR@1", "eval_HR@10", "eval_HR@50", BEST_METRIC)


class EpochOrder(TrainerCallback):
    """Gives every epoch its order, also the one in which a run is resumed.

    Accelerate and the Trainer call ``set_epoch`` on samplers, but not on the batch sampler of a
    resumed epoch.
    """

    def __init__(self, batches: GlobalBatches):
        self.batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch before its first row is read."""
        self.batches.set_epoch(int(state.epoch))


class StopSignal(TrainerCallback):
    """Turns SIGTERM or SIGINT of any process into a checkpoint and a stop of all.

    A second signal ends a process that is alone at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.every = 1  # steps; a run may stop after multiples of it only

    def listen(self) -> None:
        """Install the handlers; only the main thread may."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: Any) -> None:
        self.received = number
        # A launcher passes on what the terminal has sent to all processes already, and kills after
        # half a minute: of several processes each gets the signal twice and must survive the second
        # one.
        alone = processes().num_processes == 1
        signal.signal(number, signal.SIG_DFL if alone else signal.SIG_IGN)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the Trainer to save and stop, in all processes in the same step."""
        if state.global_step % self.every:
            return  # rollouts that are still to be reused are not saved, so their steps come first
        # The highest number wins: whether one process got a signal or all, all stop in this step
        own = torch.tensor(self.received or 0, device=args.device)
        self.received = int(gather(own).max()) or None
        if self.received:
            # a validation that is due still takes place: a resumed run would not make it
            control.should_save = True
            control.should_training_stop = True


class StepProgress(TrainerCallback):
    """Shows how far the run is, with a few numbers of the last log beside it.

    Args:
        stage: what the run is called.
    """

    def __init__(self, stage: str):
        self.stage = stage
        self.figures: dict[str, str] = {}
        self.progress = Progress("", None, "steps")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count where the run begins or continues."""
        self.progress = Progress(self.stage, state.max_steps, "steps", done=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step."""
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        figures = self.figures | {"rows/s": f"{rows * self.progress.rate():.3g}"}
        self.progress.update(1, **figures)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember the loss; of RL the reward and how many groups teach something."""
        if logs and "loss" in logs:
            self.figures = {title: f"{logs[key]:.4g}" for key, title in shown_of(logs)}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        self.progress.close()


class Narrator(TrainerCallback):
    """Prints one line per validation, and asks for a last validation where the run ends."""

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Print the ranking of the validation rows."""
        if not state.is_world_process_zero:
            return
        # The loss was logged some steps ago, or never in a very short run
        logged = [row for row in state.log_history if "loss" in row]
        learns = progress_of(logged[-1]) if logged else ""
        numbers = "  ".join(
            f"{key.removeprefix('eval_')} {metrics[key]:.4f}"
            for key in SHOWN_AT_VALIDATION
            if key in metrics
        )
        with tqdm.external_write_mode():
            say(
                f"step {state.global_step}/{state.max_steps}  {learns}validation {numbers}"
                f"{guard_of(metrics)}"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Validate and save the last step too; ``eval_steps`` need not divide the run."""
        if state.global_step == state.max_steps:
            control.should_evaluate = True
            control.should_save = True


def progress_of(row: Mapping[str, float]) -> str:
    """The numbers of a logged step by which one sees that it learns, each with two blanks behind.

    >>> progress_of({"loss": 2.5})
    'loss 2.5000  '
    >>> progress_of({"loss": 0.0, "reward": 0.1, "groups_with_signal": 1})
    'reward 0.1000  groups with signal 1.0000  '
    """
    return "".join(f"{title} {row[key]:.4f}  " for key, title in shown_of(row))


def shown_of(row: Mapping[str, float]) -> tuple[tuple[str, str], ...]:
    """Which keys of a logged step to show, each with what it is called."""
    return SHOWN_OF_RL if "reward" in row else SHOWN_OF_SFT


def guard_of(metrics: Mapping[str, float]) -> str:
    """Whether RL's guard lets this validation pass; "" where none watches."""
    if GUARDED_METRIC not in metrics:
        return ""
    refused = metrics[GUARDED_METRIC] < metrics[BEST_METRIC]
    return "  guard refuses" if refused else "  guard passes"


class SyncReference(TrainerCallback):
    """Pulls the reference towards the policy: ``ref = alpha * policy + (1 - alpha) * ref``.

    Args:
        policy: the model that is trained.
        reference: the model to move; sharded where the policy is, and in the same way.
        every: optimiser steps between two moves; 512 in the paper.
        alpha: share of the policy; .6 in the paper.
    """

    def __init__(self, policy: nn.Module, reference: nn.Module, every: int, alpha: float):
        self.policy = policy
        self.reference = reference
        self.every = every
        self.alpha = alpha

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the reference after every so many steps."""
        if state.global_step % self.every:
            return
        # In place: the optimiser never sees the reference, and its dtype may be lower
        policy = base_causal_lm(self.policy).parameters()
        reference = base_causal_lm(self.reference).parameters()
        for new, old in zip(policy, reference, strict=True):
            old.mul_(1 - self.alpha).add_(new.to(old.dtype), alpha=self.alpha)


def early_stopping(patience: int) -> list[TrainerCallback]:
    """The Trainer's own early stopping, or nothing for patience 0."""
    return [EarlyStoppingCallback(patience)] if patience else []
