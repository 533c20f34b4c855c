"""A whole copy of a model whose weights FSDP shards over the processes."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


class WholeCopy:
    """All weights of a sharded model in one place, for whatever is no training forward.

    FSDP's own model holds a share of the weights and gathers the others inside a forward that all
    processes make together. Decoding makes another number of forwards in each process, so it reads
    this copy instead.

    Args:
        model: the model before it is sharded.
        device: where the copy lies.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.model = copy.deepcopy(model).to(device).eval()

    @torch.no_grad()
    def gather(self, sharded: nn.Module) -> nn.Module:
        """Bring the copy up to date and return it.

        Every process must call this at the same time.
        """
        # FSDP keeps parameters in their order and shards each of them along its first dimension
        pairs = zip(self.model.parameters(), sharded.parameters(), strict=True)
        for whole, shard in pairs:
            whole.copy_(shard.full_tensor() if isinstance(shard, DTensor) else shard)
        return self.model

    def load(self, checkpoint: Path, sharded: nn.Module) -> None:
        """Give the weights of a checkpoint to the shards, by way of the copy.

        The Trainer would broadcast a state dictionary, and torch's broadcast hangs where weights
        are tied.
        """
        # Of an adapter only its own weights were saved; the frozen ones are in the copy already
        if isinstance(self.model, PeftModel):
            adapter = self.model.active_adapter
            self.model.load_adapter(str(checkpoint), adapter, is_trainable=True)
        else:
            saved = type(self.model).from_pretrained(checkpoint, dtype=self.model.dtype)
            self.model.load_state_dict(saved.state_dict())
        self._scatter(sharded)

    @torch.no_grad()
    def _scatter(self, sharded: nn.Module) -> None:
        pairs = zip(self.model.parameters(), sharded.parameters(), strict=True)
        for whole, shard in pairs:
            if isinstance(shard, DTensor):
                shard.copy_(distribute_tensor(whole.data, shard.device_mesh, shard.placements))
            else:
                shard.copy_(whole.data)
