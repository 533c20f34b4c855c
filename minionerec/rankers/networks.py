"""Next-item networks over item indexes: SASRec, GRU4Rec and an HSTU-style encoder.

Each reads a history and gives a vector per position; the score of an item is that vector's product
with the item's embedding plus the item's bias. ``sequential.py`` trains all three. Shapes: B
histories, T positions, D width, N items, H heads.

* SASRec (Kang and McAuley, arXiv:1808.09781). Departures: the norm before each block (Xiong et
  al., arXiv:2002.04745), GELU.
* GRU4Rec (Hidasi et al., arXiv:1511.06939). Departure: items share one table for input and output.
* HSTU (Zhai et al., arXiv:2402.17152, section 3.1): pointwise SiLU attention without softmax, gated
  by a projection of the input, with a learnt bias per distance. Departures: no bias over time, as
  not every data set has real times, and the sum over the past is divided by the number of items
  summed instead of by the longest history.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NextItemModel(nn.Module):
    """What the three have in common; a subclass turns embedded items into a vector per position.

    Args:
        num_items: N.
        max_history: T, longest history in items.
        hidden_size: D.
        num_layers: blocks.
        num_heads: H; divides D (no meaning to GRU4Rec).
        dropout: on embeddings and inside each block.
    """

    def __init__(
        self,
        num_items: int,
        max_history: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
    ):
        super().__init__()
        self.config = {
            "num_items": num_items,
            "max_history": max_history,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "dropout": dropout,
        }
        self.max_history = max_history
        self.scale = math.sqrt(hidden_size)  # of embeddings, as in SASRec's code
        self.items = nn.Embedding(num_items, hidden_size)
        self.bias = nn.Parameter(torch.zeros(num_items))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.items.weight, std=0.02)

    def hidden(self, items: Tensor) -> Tensor:
        """``(B, T)`` item indexes, padded on the right with any index, to ``(B, T, D)``.

        No position sees a later one, so what stands behind a history cannot change it and padding
        needs no mask.
        """
        return self.encode(self.items(items) * self.scale)

    def encode(self, x: Tensor) -> Tensor:
        """Scaled embeddings ``(B, T, D)`` to ``(B, T, D)``."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., N)``."""
        return hidden @ self.items.weight.T + self.bias


class SASRec(NextItemModel):
    """A causal transformer."""

    def __init__(
        self,
        num_items: int,
        max_history: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
    ):
        super().__init__(num_items, max_history, hidden_size, num_layers, num_heads, dropout)
        self.positions = nn.Embedding(max_history, hidden_size)
        block = nn.TransformerEncoderLayer(
            hidden_size,
            num_heads,
            4 * hidden_size,
            dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            block,
            num_layers,
            norm=nn.LayerNorm(hidden_size),
            enable_nested_tensor=False,
        )
        nn.init.normal_(self.positions.weight, std=0.02)

    def encode(self, x: Tensor) -> Tensor:
        """Section 3 of the paper."""
        steps = torch.arange(x.shape[1], device=x.device)
        causal = steps[None, :] > steps[:, None]  # (T, T), True is hidden
        x = self.dropout(x + self.positions(steps))  # (B, T, D)
        return self.blocks(x, mask=causal)


class GRU4Rec(NextItemModel):
    """A recurrent network."""

    def __init__(
        self,
        num_items: int,
        max_history: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
    ):
        super().__init__(num_items, max_history, hidden_size, num_layers, num_heads, dropout)
        self.gru = nn.GRU(
            hidden_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,  # it stands between layers
        )
        self.norm = nn.LayerNorm(hidden_size)

    def encode(self, x: Tensor) -> Tensor:
        """Section 3.1 of the paper, with dropout in front of the output too."""
        states, _ = self.gru(self.dropout(x))  # (B, T, D)
        return self.norm(self.dropout(states))


class HSTU(NextItemModel):
    """Blocks of pointwise attention."""

    def __init__(
        self,
        num_items: int,
        max_history: int,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
    ):
        super().__init__(num_items, max_history, hidden_size, num_layers, num_heads, dropout)
        blocks = [
            HSTUBlock(max_history, hidden_size, num_heads, dropout) for _ in range(num_layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden_size)

    def encode(self, x: Tensor) -> Tensor:
        """Equations 1 to 3 of the paper, block by block."""
        x = self.dropout(x)
        for block in self.blocks:
            x = x + block(x)
        return self.norm(x)


class HSTUBlock(nn.Module):
    """One block, ``(B, T, D)`` to the ``(B, T, D)`` that is added to its input."""

    def __init__(self, max_history: int, hidden_size: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.before = nn.LayerNorm(hidden_size)
        self.after = nn.LayerNorm(hidden_size)
        self.project = nn.Linear(hidden_size, 4 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.distance = nn.Parameter(torch.zeros(num_heads, max_history))  # bias per head, distance
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Attention weights are SiLU values over the past, divided by its length; no softmax."""
        batch, length, width = x.shape
        # One projection makes gate, value, key and query (equation 1).
        gate, value, key, query = F.silu(self.project(self.before(x))).chunk(4, dim=-1)
        value = self.heads(value)  # (B, H, T, D / H)
        key = self.heads(key)
        query = self.heads(query)
        # Equation 2: scores with a bias per distance, which clamp keeps in range for the future.
        steps = torch.arange(length, device=x.device)
        ago = steps[:, None] - steps[None, :]  # (T, T), negative is the future
        scores = query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])  # (B, H, T, T)
        scores = scores + self.distance[:, ago.clamp(min=0)]
        weights = F.silu(scores).masked_fill(ago < 0, 0.0) / (steps[:, None] + 1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, width)
        # Equation 3: the gate lets through what the position asks for.
        return self.output(self.dropout(self.after(mixed) * gate))

    def heads(self, x: Tensor) -> Tensor:
        """``(B, T, D)`` to ``(B, H, T, D / H)``."""
        batch, length, _ = x.shape
        return x.view(batch, length, self.num_heads, -1).transpose(1, 2)


NETWORKS: dict[str, type[NextItemModel]] = {"sasrec": SASRec, "gru4rec": GRU4Rec, "hstu": HSTU}
