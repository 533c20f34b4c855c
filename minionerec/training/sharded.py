"""Models whose weights FSDP shares out: a whole copy that decodes, whole files, a reference.

No GPU ever holds all weights in float32: they are gathered in the dtype that training computes in,
or one parameter after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments

from minionerec.experiment.processes import shards_weights


def decoder_of(model: nn.Module, args: TrainingArguments) -> nn.Module:
    """What decodes for a model that is to be trained: itself, or a whole copy if FSDP shards it.

    The copy has the dtype that training computes in, as the evaluation of its checkpoints has.

    Args:
        model: on the CPU, where it stays until it is sharded.
        args: of the Trainer.
    """
    if not shards_weights():
        return model.to(args.device)
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    weights = (weight.to(args.device, dtype, copy=True) for weight in model.parameters())
    # Of buffers, such as the frequencies of positions, only the place changes
    return with_weights(model, weights).to(args.device).eval()


def with_weights(model: nn.Module, weights: Iterable[Tensor]) -> nn.Module:
    """A deep copy of a model with other weights in the place of its own, which are not copied."""
    # A deep copy takes what it knows as copied already, so that tied weights stay tied
    known = {}
    for own, other in zip(model.parameters(), weights, strict=True):
        known[id(own)] = nn.Parameter(other.detach(), requires_grad=False)
    return copy.deepcopy(model, known)


class WholeCopy:
    """All weights of a sharded model in one place, for whatever is no training forward.

    FSDP's own model holds a share of the weights and gathers the others inside a forward that all
    processes make together. Decoding makes another number of forwards in each process, so it reads
    this copy instead.

    FSDP keeps parameters in their order and shards each of them along its first dimension.

    Args:
        model: of ``decoder_of``.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._step: int | None = None  # whose weights it has

    def at(self, step: int, sharded: nn.Module) -> nn.Module:
        """The copy with the weights of an optimiser step; gathered once, when it is first asked.

        Every process must ask at the same time.
        """
        # Micro-batches of a step, and the validation before it, see the same weights
        if self._step != step:
            self.gather(sharded)
            self._step = step
        return self.model

    @torch.no_grad()
    def gather(self, sharded: nn.Module) -> None:
        """Bring the copy up to date; every process must call this at the same time."""
        pairs = zip(self.model.parameters(), sharded.parameters(), strict=True)
        for whole, shard in pairs:
            # Rounded before it travels
            whole.copy_(_in_full(shard.to(whole.dtype)))

    @torch.no_grad()
    def plain(self, sharded: nn.Module, wanted: bool) -> nn.Module | None:
        """A sharded model, this or its reference, as one process would have it, on the CPU.

        Every process must call this at the same time.

        Args:
            sharded: whose weights are gathered, one after the other.
            wanted: whether this process is to have it; None elsewhere.
        """
        weights = []
        for shard in sharded.parameters():
            # All processes send their part, also those that keep nothing
            whole = _in_full(shard)
            if wanted:
                weights.append(whole.cpu())
        return with_weights(self.model, weights).cpu() if wanted else None

    @torch.no_grad()
    def load(self, checkpoint: Path, sharded: nn.Module) -> None:
        """Give the weights of a checkpoint to the shards of this model or its reference.

        The Trainer would broadcast a state dictionary, and torch's broadcast hangs where weights
        are tied.
        """
        saved = type(self.model).from_pretrained(checkpoint, dtype=torch.float32)  # on the CPU
        pairs = zip(saved.parameters(), sharded.parameters(), strict=True)
        for whole, shard in pairs:
            if isinstance(shard, DTensor):
                # Every process has read the file: each takes its share, and none sends any
                whole = distribute_tensor(
                    whole.data.to(shard.device),
                    shard.device_mesh,
                    shard.placements,
                    src_data_rank=None,
                )
            shard.copy_(whole)
        # The same step may have other weights now: a run ends with those of its best
        self._step = None


def shard_reference(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Share out a model that is never trained, as the policy is; forwards are made by all together.

    So both compute in the same way: before the first step they agree to the last bit.
    """
    sharded = fsdp2_prepare_model(accelerator, model)
    # What a backward pass would do otherwise: give the gathered weights back
    sharded.set_reshard_after_forward(True)
    return sharded


def keep_results_in_float32(accelerator: Accelerator) -> None:
    """Let bfloat16 end where it ends in one process, under autocast.

    Accelerate would also round what a forward returns, here log-probabilities: by .03 at -6, more
    than a KL. And it would add up gradients in bfloat16.
    """
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32
    )


def _in_full(shard: Tensor) -> Tensor:
    return shard.full_tensor() if isinstance(shard, DTensor) else shard
