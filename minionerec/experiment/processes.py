"""The processes of one launch: who speaks, who holds the lock, which launches are refused."""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta

import torch
from accelerate import DistributedType, PartialState
from transformers.utils import logging as transformers_logging

from minionerec.errors import UserError

# The others wait while the first process measures, saves or trains a reward's model. NCCL's own ten
# minutes would end the launch in the midst of it, and again on every rerun. A process that died
# needs no limit: the launcher stops the others.
LONGEST_WAIT = timedelta(days=1)


def quiet_libraries() -> None:
    """Leave errors; hide the libraries' remarks, on which a user of a stage cannot act."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", module=r"(torch|transformers|accelerate|peft|huggingface_hub)\b.*"
    )


def processes() -> PartialState:
    """This process among those of the launch.

    On CPUs accelerate sees the others only when it is told so first. What the first call says of
    waiting holds for the whole launch: every stage calls this before it builds a trainer.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)


def shards_weights() -> bool:
    """Whether the launch shares out the weights of what is trained (FSDP)."""
    return _is_on("ACCELERATE_USE_FSDP")


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")


def check_launch(tune: str = "full") -> None:
    """Refuse a launch under which decoding or a checkpoint would not hold the whole model.

    Args:
        tune: ``model.tune`` of a stage that trains.

    Raises:
        UserError: with a line for every setting to change.
    """
    problems = []
    if shards_weights() and processes().distributed_type == DistributedType.MULTI_CPU:
        problems.append(
            "accelerate configuration: distributed_type: got FSDP on the CPU, where accelerate "
            "shards nothing; use "
            "configs/accelerate/cpu_processes.yaml"
        )
    if shards_weights():
        for key, good in (
            ("FSDP_VERSION", "2"),
            ("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT"),
            ("FSDP_CPU_RAM_EFFICIENT_LOADING", "false"),
        ):
            found = os.environ.get(key, good)
            if found.lower() != good.lower():
                problems.append(
                    f"accelerate configuration: {key.lower()}: got {found}, expected {good}, as in "
                    "configs/accelerate/fsdp.yaml"
                )
        if tune != "full":
            problems.append(
                f"model.tune: got {tune}, expected full: FSDP cannot share out the token rows "
                f"that adapters train; use "
                "configs/accelerate/ddp.yaml, adapters need little memory"
            )
    if (
        _is_on("ACCELERATE_USE_DEEPSPEED")
        and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    ):
        problems.append(
            "accelerate configuration: zero_stage: got 3, which shards the weights that "
            "decoding reads; expected at most 2, "
            "or FSDP with configs/accelerate/fsdp.yaml"
        )
    if problems:
        raise UserError("\n".join(problems))
