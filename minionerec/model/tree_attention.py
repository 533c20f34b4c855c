"""Attention over token trees inside stock Hugging Face models.

``enable_trees`` gives a model a second way through its own ``forward``: ``model(tree=...,
slots=..., readout=...)`` runs the body on the tree and hands the hidden states of the wanted slots,
with the output head, to ``readout``. Going through ``forward`` keeps DDP, FSDP, autocast, gradient
checkpointing and PEFT working as they do for any other call. The same attention reads a search's
beams against a cache in which the prompt stands once.

Shapes: R blocks of Q queries and K keys; T tokens in the row, S keys in all (cached ones first); H
heads of width d; M wanted slots.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from minionerec.model.output_head import LogitsHead, OutputHead, output_head
from minionerec.model.probes import takes_trees
from minionerec.model.token_trees import Blocks, TokenTree

ATTENTION = "token_trees"  # the name under which transformers finds ``block_attention``
Readout = Callable[[Tensor, OutputHead | LogitsHead], Any]


def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    blocks: Blocks,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of one row of tokens, block by block; called by the layers of transformers models.

    Args:
        module: the attention layer (unused; part of the interface).
        query: ``(1, H, T, d)``.
        key: ``(1, H', S, d)`` with H a multiple of H'; cached tokens first.
        value: ``(1, H', S, d)``.
        attention_mask: None; the blocks say who sees whom.
        scaling: of the products of queries and keys.
        dropout: on the attention weights.
        sliding_window: this layer sees only so many positions back.
        softcap: ``cap * tanh(score / cap)``, as in Gemma-2.
        blocks: of the batch.

    Returns:
        ``(1, T, H, d)``, and no weights.
    """
    # Blocks become the batch: attention within each of them is an ordinary masked one
    q = _gather(query, blocks.queries)  # (R, H, Q, d)
    k = _gather(key, blocks.keys)  # (R, H', K, d)
    v = _gather(value, blocks.keys)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        # With a mask, SDPA on CUDA has no fused kernel that takes fewer key heads than query heads
        k = k.repeat_interleave(groups, dim=1)  # (R, H, K, d)
        v = v.repeat_interleave(groups, dim=1)

    mask = blocks.mask  # (R, Q, K)
    if sliding_window is not None:
        # Distances count positions in the sequence, not slots of the row
        ahead = blocks.query_positions[:, :, None] - blocks.key_positions[:, None, :]
        mask = mask & (ahead < sliding_window)
    mask = mask[:, None]  # (R, 1, Q, K), the same for all heads

    if softcap is None:
        out = _attend(q, k, v, mask, dropout, scaling)
    else:
        scores = q @ k.transpose(2, 3) * scaling  # (R, H, Q, K)
        # The cap comes before the mask: tanh of -inf would be finite
        scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
        out = F.dropout(weights, dropout) @ v  # (R, H, Q, d)

    # Blocks in a row, without what pads them
    row = out.transpose(1, 2).flatten(0, 1)  # (R * Q, H, d)
    if blocks.places is not None:
        row = row.index_select(0, blocks.places)
    return row[None, : query.shape[2]], None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """``(R, H, Q, d)`` of masked attention, in the dtype that is fastest."""
    if q.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling)
    # Autocast would make it bfloat16, whose backward pass takes three times as long on a CPU
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), mask, dropout, scale=scaling
        )


AttentionInterface.register(ATTENTION, block_attention)


def _gather(states: Tensor, places: Tensor) -> Tensor:
    """``(1, H, S, d)`` at ``places (R, K)`` -> ``(R, H, K, d)``."""
    found = states[0].index_select(1, places.flatten())  # (H, R * K, d)
    return found.unflatten(1, places.shape).transpose(0, 1)


@contextlib.contextmanager
def attention_over_blocks(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's layers call ``block_attention``.

    With gradient checkpointing the layers run again in the backward pass, after this context: then
    the switch stays on until the next plain forward (``enable_trees``) turns it off.
    """
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        if not (model.training and is_checkpointing(model)):
            model.config._attn_implementation = model.plain_attention


def is_checkpointing(model: nn.Module) -> bool:
    """Whether layers are computed again in the backward pass.

    Releases of transformers differ in what they call this of a whole model, not of its modules.
    """
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def enable_trees(model: PreTrainedModel) -> PreTrainedModel:
    """Give the model's ``forward`` the keywords ``tree``, ``slots`` and ``readout``.

    ``model(tree=tree, slots=(M,) flat slots, readout=f)`` returns ``f(hidden (M, D), head)``. For a
    tree without blocks it takes the model's plain way to the logits, whatever the architecture, and
    ``hidden`` are those logits. Every other call is unchanged. ``model.takes_trees`` says whether
    blocks work.
    """
    # PEFT, DDP and FSDP wrap or copy the model after this.
    # Of the class: a deep copy of the model must not run the original's forward
    plain_forward = type(model).forward
    model.plain_attention = model.config._attn_implementation

    def forward(
        self: PreTrainedModel,
        *args: Any,
        tree: TokenTree | None = None,
        slots: Any = None,  # (M,), with a tree
        readout: Any = None,  # a Readout, with a tree
        **kwargs: Any,
    ) -> Any:
        """The model's own forward; with a tree, attention sees each token's ancestors alone."""
        if tree is None or readout is None:
            self.config._attn_implementation = self.plain_attention
            return plain_forward(self, *args, **kwargs)
        if tree.blocks is not None:
            hidden = tree_hidden(self, tree)  # (T, D)
            return readout(hidden[slots], output_head(self))
        self.config._attn_implementation = self.plain_attention
        # Right-padded rows need no mask: causal models read from left to right
        output = plain_forward(self, input_ids=tree.input_ids, use_cache=False)
        return readout(output.logits.flatten(0, 1)[slots], LogitsHead())

    model.forward = types.MethodType(forward, model)
    model.takes_trees = takes_trees(model)
    return model


def tree_hidden(model: PreTrainedModel, tree: TokenTree) -> Tensor:
    """``(T, D)`` final hidden states of a tree's slots."""
    # The whole row is one "batch" of one sequence to the layers; positions say how deep a token is
    with attention_over_blocks(model):
        output = model.base_model(
            input_ids=tree.input_ids[None],
            position_ids=tree.position_ids[None],
            blocks=tree.blocks,
            use_cache=False,
        )
    return output.last_hidden_state[0]


def base_causal_lm(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside DDP and PEFT wrappers; adapters stay in place."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
