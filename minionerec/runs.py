"""The housekeeping that ``sft.py``, ``rl.py``, ``evaluate.py`` and ``recommend.py`` share: inputs, batches, resume, output."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import DistributedType, PartialState
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from minionerec import artifacts, backbone
from minionerec.config import UserError
from minionerec.cost import note_training
from minionerec.dataset import Row, Samples, load_samples
from minionerec.prompts import TEMPLATES, Renderer, Template
from minionerec.report import curves
from minionerec.settings import Experiment, ModelSettings
from minionerec.sids import SIDS_FILE, SidTable, SidTrie, load_sids
from minionerec.training import clean_history, last_checkpoint
from minionerec.trees import base_causal_lm


def quiet_libraries() -> None:
    """Leave errors; hide the libraries' remarks, which say nothing that a user of a stage can act on."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|accelerate|peft|huggingface_hub)\b.*")


def say(text: str) -> None:
    """Print once, however many processes run."""
    if processes().is_main_process:
        print(text, flush=True)


def processes() -> PartialState:
    """This process among those of the launch; on CPUs accelerate sees the others only when it is told so first."""
    return PartialState(cpu=not torch.cuda.is_available())


def check_launch(tune: str = "full") -> None:
    """Refuse a launch configuration under which decoding would not see the whole model, or a checkpoint would not be whole.

    Args:
        tune: ``model.tune`` of a stage that trains.

    Raises:
        UserError: with a line for every setting to change.
    """
    on = lambda key: os.environ.get(key, "").lower() in ("1", "true")  # noqa: E731
    problems = []
    if on("ACCELERATE_USE_FSDP") and processes().distributed_type == DistributedType.MULTI_CPU:
        problems.append("accelerate configuration: distributed_type: got FSDP on the CPU, where accelerate shards nothing; use "
                        "configs/accelerate/cpu_processes.yaml")
    if on("ACCELERATE_USE_FSDP"):
        for key, good in (("FSDP_VERSION", "2"), ("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT"), ("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")):
            found = os.environ.get(key, good)
            if found.lower() != good.lower():
                problems.append(f"accelerate configuration: {key.lower()}: got {found}, expected {good}, as in "
                                "configs/accelerate/fsdp.yaml")
        if tune != "full":
            problems.append(f"model.tune: got {tune}, expected full: FSDP cannot share out the token rows that adapters train; use "
                            "configs/accelerate/ddp.yaml, adapters need little memory")
    if on("ACCELERATE_USE_DEEPSPEED") and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        problems.append("accelerate configuration: zero_stage: got 3, which shards the weights that decoding reads; expected at most 2, "
                        "or FSDP with configs/accelerate/fsdp.yaml")
    if problems:
        raise UserError("\n".join(problems))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """The directory's lock, held by the first process for all of them."""
    with artifacts.locked(path) if processes().is_main_process else contextlib.nullcontext():
        yield


def load_catalogue(experiment: Experiment, data_dir: Path, sids_dir: Path) -> tuple[Samples, SidTable]:
    """Samples and SIDs of the same items.

    Raises:
        UserError: they do not belong together, or a split has no sample.
    """
    samples = load_samples(data_dir, experiment.data.max_history)
    for split, rows in samples.splits.items():
        if not rows:
            raise UserError(f"{data_dir}: the {split} split has no sample; prepare the data with another data.split or more users")
    return samples, load_sids(sids_dir / SIDS_FILE, samples.item_ids)


def texts(items: pd.DataFrame) -> list[str]:
    """What a scratch tokenizer learns from."""
    return [f"{title}\n{description}" for title, description in zip(items["title"], items["description"], strict=True)]


def template_of(settings: ModelSettings) -> Template:
    """The built-in wording that the settings name."""
    return TEMPLATES[settings.template]


def renderer(tokenizer: PreTrainedTokenizerBase, template: Template, sids: SidTable, samples: Samples, max_tokens: int) -> Renderer:
    """The one renderer of all stages."""
    return Renderer(tokenizer, template, sids.token_ids(tokenizer), samples.items, max_tokens)


def trie(sids: SidTable, tokenizer: PreTrainedTokenizerBase) -> SidTrie:
    """The catalogue as token tables."""
    return SidTrie(sids.codes, sids.level_token_ids(tokenizer))


def check_context(model: nn.Module, rows: Sequence[Row], setting: str) -> None:
    """Refuse rows that are longer than what the model can read.

    Raises:
        UserError: naming the setting to lower.
    """
    longest = max(len(row.prompt) + len(row.completion) for row in rows)
    context = getattr(base_causal_lm(model).config.get_text_config(), "max_position_embeddings", None)
    if context and longest > context:
        raise UserError(f"{setting}: the longest of {len(rows):,} rows has {longest} tokens, the model's context is {context}; lower it")


def describe(model: nn.Module) -> str:
    """``0.91 M parameters, 0.91 M of them trained, on cpu``."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"{total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M of them trained, on {processes().num_processes} x {device}"


def split_batch(section: str, batch_size: int, micro_batch_size: int) -> tuple[int, int]:
    """Rows per forward and process, and forwards per optimiser step, whose product over all processes is ``batch_size``.

    Raises:
        UserError: the processes do not divide the batch.
    """
    count = processes().num_processes
    if batch_size % count:
        raise UserError(f"{section}.batch_size: got {batch_size}, expected a multiple of the {count} processes")
    own = batch_size // count
    micro = next(size for size in range(min(micro_batch_size, own), 0, -1) if own % size == 0)
    return micro, own // micro


def training_arguments(experiment: Experiment, stage: str, *, eval_steps: int, total_steps: int, **specific: Any) -> TrainingArguments:
    """``TrainingArguments`` from the ``sft`` or ``rl`` section."""
    s = getattr(experiment, stage)
    report_to = [name.strip() for name in s.report_to.split(",")]
    _, bf16 = backbone.precision(experiment.model.dtype)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(artifacts.partial_path(experiment, stage) / "tensorboard"))
    return TrainingArguments(
        output_dir=str(artifacts.partial_path(experiment, stage)), eval_strategy="steps", eval_steps=eval_steps, save_strategy="steps",
        save_steps=eval_steps, load_best_model_at_end=True, metric_for_best_model="eval_NDCG@10", greater_is_better=True,
        restore_callback_states_from_checkpoint=True, logging_steps=max(1, min(eval_steps, total_steps // 100)),
        logging_nan_inf_filter=False, learning_rate=s.learning_rate, lr_scheduler_type=s.schedule, warmup_steps=s.warmup_steps,
        max_grad_norm=s.max_grad_norm, weight_decay=getattr(s, "weight_decay", 0.0), bf16=bf16, use_cpu=not torch.cuda.is_available(),
        seed=experiment.seed, data_seed=experiment.seed, report_to=report_to, run_name=experiment.name, remove_unused_columns=False,
        activation_checkpointing=experiment.model.gradient_checkpointing,
        disable_tqdm=not sys.stderr.isatty(), log_level_replica="error", ddp_find_unused_parameters=False,
        **specific)


def train_or_resume(trainer: Trainer) -> None:
    """Train; continue from the newest checkpoint of an interrupted run with the same settings.

    SIGTERM and SIGINT save a checkpoint and end the process with 128 + signal.

    Raises:
        UserError: the interrupted run had other settings (each is listed) or other parents.
    """
    last = last_checkpoint(Path(trainer.args.output_dir))
    if last:
        manifest = artifacts.read_manifest(last)
        changed = artifacts.settings_difference(manifest["settings"], trainer.contents.settings)
        if changed:
            raise UserError(f"{last.parent}: holds an interrupted run with other settings ({'; '.join(changed)}); "
                            "restore them, or delete it to start again")
        artifacts.check_parents(last, manifest)
        say(f"continuing from {last}")
    start = time.perf_counter()
    trainer.stop_signal.listen()
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except pickle.UnpicklingError as error:
        raise UserError(f"{last}: its state holds more than numbers, and what it holds is not run; delete {last}: the run then continues "
                        "from an earlier checkpoint or starts again") from error
    if trainer.is_world_process_zero():
        note_training(Path(trainer.args.output_dir).parent, trainer.contents.stage, int(last.name.rpartition("-")[2]) if last else 0,
                      trainer.state.global_step, time.perf_counter() - start)
    if trainer.stop_signal.received:
        say(f"stopped by signal {trainer.stop_signal.received} at step {trainer.state.global_step}, which is saved; "
            "the same command continues")
        sys.exit(128 + trainer.stop_signal.received)


def save_log(trainer: Trainer, directory: Path) -> None:
    """``log.jsonl`` and ``curves.png`` of a finished run."""
    rows = clean_history(trainer.state.log_history)
    with open(directory / "log.jsonl", "w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)
    curves(rows, directory / "curves.png")


def clean_up(experiment: Experiment, stage: str) -> None:
    """Forget the checkpoints of a stage that is committed; the other processes wait until it is."""
    processes().wait_for_everyone()
    if processes().is_main_process:
        artifacts.remove(artifacts.partial_path(experiment, stage))
