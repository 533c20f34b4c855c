"""Several stages in one process of several, as ``accelerate launch`` starts it: importing torch once for all of them.

accelerate launch [...] tests/stages.py [--faults NAME,...] CONFIG:STAGE[:KEY=VALUE...] ...
"""

import gc
import os
import signal
import sys

import torch
from accelerate import DistributedType, PartialState
from torch.distributed.tensor import DTensor

import evaluate
import minionerec_trainer as trainers
import rl
import sft
from minionerec.errors import UserError, one_line_errors
from minionerec.experiment import parts
from minionerec.model import ranking
from minionerec.training.sharded import WholeCopy

MAIN = {"sft": sft.main, "rl": rl.main, "evaluate": evaluate.main}
SECOND = os.environ.get("RANK") == "1"


def fsdp_on_cpu() -> None:
    """Accelerate leaves FSDP out for processes on the CPU, and only there; torch itself shards on
    gloo too.
    """
    original = PartialState.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        # Only at first: later on accelerate itself has written FSDP there
        if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = init


def die_at_third_save() -> None:
    """Every process ends as if killed, once the third checkpoint is there."""
    saves, original = [], trainers.RankingTrainer.save_checkpoint

    def save(self, *args):
        original(self, *args)
        saves.append(self.state.global_step)
        if len(saves) == 3:
            os._exit(9)

    trainers.RankingTrainer.save_checkpoint = save


def nan_in_second_process() -> None:
    """Its loss alone is not a number in the third step."""
    original = trainers.SFTTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if SECOND and self.state.global_step == 2 else loss

    trainers.SFTTrainer.compute_loss = compute_loss


def mistake_in_second_process() -> None:
    """It alone finds something to refuse, while the first waits for its gradients."""
    original = trainers.SFTTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        if SECOND and self.state.global_step == 1:
            raise UserError("row 7: too long; shorten it")
        return original(self, *args, **kwargs)

    trainers.SFTTrainer.compute_loss = compute_loss


def small_forwards() -> None:
    """Four users share a forward, so that a tiny world has parts for everyone."""
    ranking.USERS_PER_FORWARD = 4


def kill_second_process_after_two_parts() -> None:
    """It alone, at once and without a word, while the first goes on."""
    written, original = [], parts.write_part

    def write_part(*args):
        original(*args)
        written.append(args)
        if SECOND and len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    parts.write_part = write_part


def show_sharding() -> None:
    """Say how much of the model's weights the optimiser of the first process holds."""
    original = trainers.RankingTrainer._prepare_for_training

    def prepare(self, *args):
        prepared = original(self, *args)
        weights = [
            p.to_local() if isinstance(p, DTensor) else p
            for group in self.optimizer.param_groups
            for p in group["params"]
        ]
        whole = sum(p.numel() for p in trainers.base_causal_lm(self.whole_model()).parameters())
        if not SECOND:
            print(
                f"share of the weights: {sum(p.numel() for p in weights) / whole:.3f}", flush=True
            )
        return prepared

    trainers.RankingTrainer._prepare_for_training = prepare


def show_gathers() -> None:
    """Say of every time that the whole copy is gathered whose weights it is to have."""
    asked, gathered = WholeCopy.at, WholeCopy.gather
    steps = []

    def at(self, step, sharded):
        steps.append(step)
        return asked(self, step, sharded)

    def gather(self, sharded):
        gathered(self, sharded)
        if not SECOND:
            print(f"gathered for step {steps[-1]}", flush=True)

    WholeCopy.at, WholeCopy.gather = at, gather


def show_held() -> None:
    """Say after each micro-batch of the second step what all tensors of the first process take."""
    original = trainers.RankingTrainer.training_step

    def training_step(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if self.state.global_step == 1 and not SECOND:
            held = held_bytes() / sum(p.numel() for p in self.model.parameters())
            print(f"{self.contents.stage} holds {held:.2f} bytes a parameter", flush=True)
        return loss

    trainers.RankingTrainer.training_step = training_step


def held_bytes() -> int:
    """Of every storage that a tensor of this process reads, gradients included."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storages = {}
    for tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.device.type == "cpu":
            storages[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
    return sum(storages.values())


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[0] == "--faults":
        for name in words[1].split(","):
            globals()[name]()
        words = words[2:]
    with one_line_errors():
        for word in words:
            config, stage, *flags = word.split(":")
            sys.argv = [
                stage,
                "--config",
                config,
                *(part for flag in flags for part in f"--{flag}".split("=")),
            ]
            MAIN[stage]()
