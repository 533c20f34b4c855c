"""What ``sft.py`` and ``rl.py`` share: the Trainer's arguments, resuming, cleaning up."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import Trainer, TrainingArguments

from minionerec.errors import UserError
from minionerec.experiment.files import TIMING, append_log
from minionerec.experiment.lineage import check_parents, check_sources
from minionerec.experiment.manifest import read_manifest
from minionerec.experiment.preflight import reporters
from minionerec.experiment.processes import processes, shards_weights
from minionerec.experiment.run import say
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import partial_path, settings_difference, stage_path
from minionerec.model import backbone
from minionerec.training import price
from minionerec.training.callbacks import StepProgress
from minionerec.training.checkpoints import last_checkpoint, step_of

# Renamed in transformers 5.2x; the ranges of requirements.txt hold both
CHECKPOINTING = "gradient_checkpointing"
if "activation_checkpointing" in TrainingArguments.__dataclass_fields__:
    CHECKPOINTING = "activation_checkpointing"


def split_batch(section: str, batch_size: int, micro_batch_size: int) -> tuple[int, int]:
    """Rows per forward and process, and forwards per optimiser step.

    Their product over all processes is ``batch_size``.

    Raises:
        UserError: the processes do not divide the batch.
    """
    count = processes().num_processes
    if batch_size % count:
        raise UserError(
            f"{section}.batch_size: got {batch_size}, expected a multiple of the {count} processes"
        )
    # The largest micro-batch up to the one asked for that cuts a process's share evenly
    own = batch_size // count
    micro = next(size for size in range(min(micro_batch_size, own), 0, -1) if own % size == 0)
    return micro, own // micro


def adapters_off_is_reference(experiment: Experiment) -> bool:
    """Whether RL's reference is the policy without its adapters: the SFT model below them.

    Not so where the reference moves.
    """
    return experiment.model.tune != "full" and not experiment.rl.sync_ref_steps


def training_arguments(
    experiment: Experiment,
    stage: str,
    *,
    eval_steps: int,
    total_steps: int,
    chosen_by: str = "NDCG@10",
    **specific: Any,
) -> TrainingArguments:
    """``TrainingArguments`` from the ``sft`` or ``rl`` section.

    Args:
        experiment: its settings.
        stage: ``sft`` or ``rl``.
        eval_steps: optimiser steps between two validations.
        total_steps: of the whole run.
        chosen_by: the validation metric of which the checkpoint handed on has most.
        specific: what differs between the stages.
    """
    s = getattr(experiment, stage)
    report_to = reporters(s.report_to)
    _, bf16 = backbone.precision(experiment.model.dtype)
    keep_logs(stage_path(experiment, "logs") / stage, report_to)
    return TrainingArguments(
        output_dir=str(partial_path(experiment, stage)),
        # Every validation is followed by a checkpoint, so that the best step can be handed on
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{chosen_by}",
        greater_is_better=True,
        # The patience that is used up survives an interruption
        restore_callback_states_from_checkpoint=True,
        logging_steps=max(1, min(eval_steps, total_steps // 100)),
        # A value that is not finite is to be seen, not replaced by the mean of the others
        logging_nan_inf_filter=False,
        learning_rate=s.learning_rate,
        lr_scheduler_type=s.schedule,
        warmup_steps=s.warmup_steps,
        max_grad_norm=s.max_grad_norm,
        weight_decay=getattr(s, "weight_decay", 0.0),
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=experiment.seed,
        data_seed=experiment.seed,
        report_to=report_to,
        run_name=experiment.name,
        # Rows are objects of ours, not columns of a data set
        remove_unused_columns=False,
        **{CHECKPOINTING: experiment.model.gradient_checkpointing},
        # ``StepProgress`` has a bar of its own, and lines for a log file
        disable_tqdm=True,
        log_level_replica="error",
        # Every step uses every weight, also of a process without rows (``zero_loss``)
        ddp_find_unused_parameters=False,
        # FSDP would else keep the whole gradient on every GPU until a step's last micro-batch
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": shards_weights()}},
        **specific,
    )


def keep_logs(folder: Path, report_to: Sequence[str]) -> None:
    """Let trackers write beside the stages, where a finished stage leaves their files alone.

    What the caller has set in the environment counts.
    """
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    if "wandb" in report_to:
        folder.mkdir(parents=True, exist_ok=True)  # else W&B writes into a temporary folder
        os.environ.setdefault("WANDB_DIR", str(folder))


def train_or_resume(trainer: Trainer, validation_rows: int, dry_run: bool) -> None:
    """Train; continue from the newest checkpoint of an interrupted run with the same settings.

    Says first what it costs, and after a few steps how long it takes. SIGTERM and SIGINT save a
    checkpoint and end the process with 128 + signal.

    Args:
        trainer: of SFT or RL.
        validation_rows: of each validation.
        dry_run: end the process after those few steps; nothing is written.

    Raises:
        UserError: the interrupted run had other settings (each is listed) or other parents.
    """
    last = last_checkpoint(Path(trainer.args.output_dir))
    say(price.of(trainer))
    timed = price.TimedSteps(price.seconds_of_validation(trainer, validation_rows), dry_run)
    trainer.add_callback(timed)
    trainer.add_callback(StepProgress(trainer.contents.stage))
    if dry_run:
        trainer.train()
        end_dry_run(Path(trainer.args.output_dir))
    if last:
        manifest = read_manifest(last)
        changed = settings_difference(manifest["settings"], trainer.contents.settings)
        if changed:
            raise UserError(
                f"{last.parent}: holds an interrupted run with other settings "
                f"({'; '.join(changed)}); restore them, or delete it to start again"
            )
        check_parents(last, manifest)
        # Adapters, and what an optimiser remembers, belong to the weights that they started from
        check_sources(last, manifest)
        say(f"continuing from {last}")
    # From here on a signal ends in a checkpoint; before, there is nothing to save
    start = time.perf_counter()
    trainer.stop_signal.listen()
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{last}: its state holds more than numbers, and what it holds is not run; "
            f"delete {last}: the run then continues from an earlier checkpoint or starts again"
        ) from error
    if trainer.is_world_process_zero():
        note_training(
            Path(trainer.args.output_dir).parent,
            trainer.contents.stage,
            from_step=step_of(last) if last else 0,
            to_step=trainer.state.global_step,
            seconds=time.perf_counter() - start,
        )
    signal = trainer.stop_signal.received
    if signal:
        say(
            f"stopped by signal {signal} at step {trainer.state.global_step}, which is saved; "
            "the same command continues"
        )
        sys.exit(128 + signal)


def end_dry_run(partial: Path) -> NoReturn:
    """End the process; the Trainer's folder goes, unless an interrupted run has left it."""
    processes().wait_for_everyone()
    if processes().is_main_process:
        with contextlib.suppress(OSError):  # not empty
            partial.rmdir()
    say("dry run: nothing was written; the same command without --dry_run trains")
    sys.exit(0)


def note_training(run: Path, stage: str, from_step: int, to_step: int, seconds: float) -> None:
    """Add one process's part of a training to ``runs/<name>/timing.jsonl``.

    ``evaluation.cost`` adds the parts up.
    """
    row = {
        "stage": stage,
        "from_step": from_step,
        "to_step": to_step,
        "seconds": round(seconds, 3),
    }
    append_log(run / TIMING, row)
