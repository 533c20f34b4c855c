"""What people write who come from other programs, and what it is called here."""

from __future__ import annotations

import re

# Flags of no section, by their usual names elsewhere
_GPUS = (
    "GPUs are found by themselves: CUDA_VISIBLE_DEVICES=0,1 picks some, ACCELERATE_CONFIG=FILE "
    "says more"
)
_AGAIN = "an interrupted stage goes on by itself: run the same command again"
_LORA = "write --model.tune lora"
_BACKBONE = "write --model.backbone NAME_OR_FOLDER"
_DATA = "write --data.path FOLDER"
_OUTPUT = "write --output_dir FOLDER"
_REDO = "write --redo STAGE to make a stage and what follows again"
_DTYPE = "write --model.dtype bfloat16 or float32"
_BATCH = "write --sft.batch_size (rows a step) or --sft.micro_batch_size (what memory holds)"
_REPORT = "write --sft.report_to or --rl.report_to"
ELSEWHERE = {
    "accelerate_config": "it is a variable: ACCELERATE_CONFIG=FILE bash sft.sh ...",
    "base_model": _BACKBONE,
    "batch": _BATCH,
    "batchsize": _BATCH,
    "bf16": _DTYPE,
    "category": _DATA,
    "ckpt": "write --evaluate.checkpoint sft, rl or FOLDER",
    "config_file": "write --config FILE",
    "cuda": _GPUS,
    "data": _DATA,
    "data_dir": _DATA,
    "data_path": _DATA,
    "dataset": _DATA,
    "device": _GPUS,
    "devices": _GPUS,
    "exp_name": "write --name NAME",
    "experiment": "write --name NAME",
    "force": _REDO,
    "fp16": _DTYPE,
    "gpu": _GPUS,
    "gpus": _GPUS,
    "gradient_accumulation_steps": "it follows from sft.batch_size and sft.micro_batch_size",
    "load_in_4bit": "quantised training is not offered; write --model.tune lora to save memory",
    "load_in_8bit": "quantised training is not offered; write --model.tune lora to save memory",
    "lora": _LORA,
    "lr": "write --sft.learning_rate or --rl.learning_rate",
    "max_length": "write --model.max_tokens",
    "max_seq_length": "write --model.max_tokens",
    "model": _BACKBONE,
    "model_name": _BACKBONE,
    "model_name_or_path": _BACKBONE,
    "model_path": _BACKBONE,
    "n_gpu": _GPUS,
    "nproc_per_node": _GPUS,
    "num_gpus": _GPUS,
    "num_processes": _GPUS,
    "num_train_epochs": "write --sft.epochs or --rl.epochs",
    "num_workers": "there are none to count; OMP_NUM_THREADS sets the threads of a process",
    "out": _OUTPUT,
    "output": _OUTPUT,
    "outdir": _OUTPUT,
    "overwrite": _REDO,
    "per_device_train_batch_size": "write --sft.micro_batch_size",
    "random_seed": "write --seed",
    "resume": _AGAIN,
    "resume_from_checkpoint": _AGAIN,
    "run_name": "write --name NAME",
    "tensorboard": _REPORT,
    "use_lora": _LORA,
    "wandb": _REPORT,
    "from": "it belongs to the .sh commands of the stages",
    "redo": "it belongs to the .sh commands of the stages",
}
# Keys of a section by their names elsewhere -> ours; where a section has no such key, nothing
ALIASES = {
    "batch": "batch_size",
    "bs": "batch_size",
    "clip_range": "epsilon",
    "clip": "epsilon",
    "cutoff": "max_tokens",
    "entropy_coef": "beta",
    "eval_steps": "evals_per_epoch",
    "group_size": "num_generations",
    "history": "max_history",
    "k": "num_beams",
    "kcore": "k_core",
    "kl_coef": "beta",
    "levels": "codebook_sizes",
    "lora_r": "lora_rank",
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "max_seq_length": "max_tokens",
    "min_interactions": "k_core",
    "name": "backbone",
    "num_codes": "codebook_sizes",
    "num_levels": "codebook_sizes",
    "num_train_epochs": "epochs",
    "path": "backbone",
    "per_device_train_batch_size": "micro_batch_size",
    "scheduler": "schedule",
    "topk": "num_beams",
    "train_ratio": "split_ratios",
    "use_lora": "tune",
    "warmup": "warmup_steps",
    "wd": "weight_decay",
}
NUMBER = re.compile(r"-?\d+(\.\d+)?")


def advice_on_key(section: str, name: str, known: list[str]) -> str:
    """``; write --sft.learning_rate`` for an unknown key that has another name here, else "".

    Args:
        section: of the settings; "" for a flag of none.
        name: the key as it was written.
        known: the keys of the section.
    """
    plain = name.lower().replace("-", "_")
    if not section:
        return f"; {ELSEWHERE[plain]}" if plain in ELSEWHERE else ""
    ours = ALIASES.get(plain, "")
    return f"; write {section}.{ours}" if ours in known else ""


def advice_on_word(word: str) -> str:
    """What to write for a word that is no flag, where one can tell; else "".

    >>> advice_on_word("-c"), advice_on_word("configs/quickstart.yaml")
    ('; write --config FILE', '; write --config configs/quickstart.yaml')
    >>> advice_on_word("sft.epochs=3")
    '; write --sft.epochs 3'
    """
    key, equals, value = word.partition("=")
    if word == "-c":
        return "; write --config FILE"
    if word.endswith((".yaml", ".yml")) and not equals:
        return f"; write --config {word}"
    if equals and key:
        return f"; write --{key.lstrip('-')} {value}"
    if NUMBER.fullmatch(word.strip("[],")):
        return "; lists are written with commas and no blanks: --sids.codebook_sizes 64,64,64"
    return ""
