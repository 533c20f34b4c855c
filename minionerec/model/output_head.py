"""From final hidden states to log-probabilities, only where they are needed.

A vocabulary has 150,000 columns and a training step some hundred rows that carry a label: the
vocabulary's normaliser is built up over blocks of columns, so that memory grows with rows x block.
Scores over the catalogue need only the columns of SID tokens.

Shapes: D width, V vocabulary, M hidden states, J pairs (hidden state, token), F children of a trie
node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

# Logits that exist at a time: those that a core's cache holds, or enough to fill a GPU
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
# Up to so many logits are kept for the backward pass instead of being computed again
KEPT_ELEMENTS = 2**25


class Columns(NamedTuple):
    """A linear output layer and what a family does to its logits.

    ``cap * tanh(scale * (h W^T + b) / cap)``; without a cap ``scale * (h W^T + b)``.
    """

    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    scale: float
    cap: float | None

    def logits(self, hidden: Tensor, which: slice | Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., columns)`` in float32.

        The product itself is made in the dtype of the operands.
        """
        bias = None if self.bias is None else self.bias[which]
        return self.finish(F.linear(hidden, self.weight[which], bias).float())

    def finish(self, logits: Tensor) -> Tensor:
        """Scale and cap."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits

    def slope(self, logits: Tensor) -> Tensor | float:
        """Derivative of the finished logits with respect to the linear layer's output."""
        if not self.cap:
            return self.scale
        return self.scale * (1 - (logits / self.cap) ** 2)  # tanh' = 1 - tanh^2

    def blocks(self, rows: int) -> list[slice]:
        """The vocabulary cut into pieces, for so many rows of logits.

        The last piece may be shorter.
        """
        # At least 256 columns, or the loop over blocks costs more than the product
        elements = BLOCK_ELEMENTS.get(self.weight.device.type, 2**26)
        width = max(256, elements // max(1, rows))
        return [slice(start, start + width) for start in range(0, len(self.weight), width)]


class OutputHead:
    """A model's output layer, with Gemma-2's cap and the scales of Cohere and Granite."""

    def __init__(self, model: PreTrainedModel):
        # Families that have none of these lack the attribute, or hold None
        config = model.config.get_text_config()
        self.layer = model.get_output_embeddings()
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.scale = getattr(config, "logit_scale", None) or 1.0
        self.scale /= getattr(config, "logits_scaling", None) or 1.0

    def matrix(self, hidden: Tensor) -> tuple[Tensor, Columns]:
        """Hidden states and columns in the dtype in which the model multiplies them.

        That is autocast's dtype where it is on.
        """
        weight, bias = head_weight(self.layer)
        if weight is None:
            raise TypeError(f"{type(self.layer).__name__} holds no matrix of an output layer")
        device = hidden.device.type
        dtype = weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        if bias is not None:
            bias = bias.to(dtype)
        return hidden.to(dtype), Columns(weight.to(dtype), bias, self.scale, self.cap)

    def columns(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., len(tokens))``.

        In float32 throughout: rounding to bfloat16 would create ties between items.
        """
        # Only these columns are copied to float32, never the whole matrix; autocast, which would
        # round them first, has no part in it
        table, biases = head_weight(self.layer)
        if table is None:
            raise TypeError(f"{type(self.layer).__name__} holds no matrix of an output layer")
        bias = None if biases is None else biases[tokens].float()
        with torch.autocast(hidden.device.type, enabled=False):
            exact = Columns(table[tokens].float(), bias, self.scale, self.cap)
            return exact.logits(hidden.float(), slice(None))

    def logsumexp(self, hidden: Tensor, exact: Tensor) -> Tensor:
        """``(..., D)`` -> ``(...)`` log of the vocabulary's normaliser, float32, no gradient.

        Args:
            hidden: final hidden states.
            exact: token ids whose logits are taken in float32 also in a model of lower precision.
        """
        _, columns = self.matrix(hidden)
        flat = hidden.reshape(-1, hidden.shape[-1]).to(columns.weight.dtype)  # (M, D)
        rounded = columns.weight.dtype != torch.float32
        is_exact = torch.zeros(len(columns.weight), dtype=torch.bool, device=flat.device)  # (V,)
        if rounded:
            is_exact[exact] = True
        total = torch.full((len(flat),), -torch.inf, device=flat.device)  # (M,)
        for block in columns.blocks(len(flat)):
            logits = columns.logits(flat, block)  # (M, block)
            if rounded:  # counted below, once and not rounded
                logits.masked_fill_(is_exact[block], -torch.inf)
            total = torch.logaddexp(total, torch.logsumexp(logits, dim=-1))
        if rounded:
            logits = self.columns(flat, exact)
            total = torch.logaddexp(total, torch.logsumexp(logits, dim=-1))
        return total.view(hidden.shape[:-1])


class LogitsHead:
    """The same answers from whole rows of logits, made by any function of the hidden states."""

    def __init__(self, logits: Callable[[Tensor], Tensor] = lambda hidden: hidden):
        self.logits = logits

    def columns(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., len(tokens))``."""
        return self.logits(hidden)[..., tokens].float()

    def logsumexp(self, hidden: Tensor, exact: Tensor) -> Tensor:
        """``(..., D)`` -> ``(...)``."""
        return torch.logsumexp(self.logits(hidden).float(), dim=-1)


def output_head(model: PreTrainedModel) -> OutputHead | LogitsHead:
    """The model's head.

    It gives whole rows of logits where the output layer has no plain weight matrix, as with LoRA on
    it.
    """
    # Blocks of columns need the matrix itself; any other layer can only be called
    head = OutputHead(model)
    if head_weight(head.layer)[0] is not None:
        return head
    identity = Columns(torch.empty(0, 0), None, head.scale, head.cap)
    return LogitsHead(lambda hidden: identity.finish(head.layer(hidden).float()))


def head_weight(layer: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of an output layer, with what adapters for new tokens have learnt.

    (None, None) if it has no such matrix.
    """
    tokens = layer.token_adapter if isinstance(layer, TrainableTokensWrapper) else layer
    # With new-token adapters the matrix is the frozen one with some rows replaced; switched off
    # (for the reference) or merged, it is the plain one
    if isinstance(tokens, TrainableTokensLayer):
        base = tokens.base_layer
        weight = base.weight
        if not (tokens.disable_adapters or tokens.merged):
            weight = tokens.get_merged_weights(tokens.active_adapters)
        return weight, getattr(base, "bias", None)
    # the method and not the class is compared: FSDP changes the class
    is_linear = type(layer).forward is nn.Linear.forward
    return (layer.weight, layer.bias) if is_linear else (None, None)


def vocab_logps(
    hidden: Tensor, head: OutputHead | LogitsHead, rows: Tensor, tokens: Tensor
) -> Tensor:
    """``log p(token)`` over the whole vocabulary for pairs (row of hidden, token).

    Args:
        hidden: ``(M, D)`` final hidden states.
        head: from hidden states to logits.
        rows: ``(J,)`` which hidden state each pair reads.
        tokens: ``(J,)`` the tokens.

    Returns:
        ``(J,)`` float32.
    """
    # Without blocks the whole rows exist, and autograd keeps them
    if isinstance(head, LogitsHead):
        return head.logits(hidden).float().log_softmax(dim=-1)[rows, tokens]
    hidden, columns = head.matrix(hidden)
    return _VocabLogps.apply(
        hidden, columns.weight, columns.bias, columns.scale, columns.cap, rows, tokens
    )


class _VocabLogps(torch.autograd.Function):
    """``logits[rows, tokens] - logsumexp(logits)[rows]``, by blocks of columns."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        cap: float | None,
        rows: Tensor,
        tokens: Tensor,
    ) -> Tensor:
        """``(J,)`` float32; arguments as those of ``vocab_logps`` and of ``Columns``."""
        columns = Columns(weight, bias, scale, cap)
        # A first pass keeps two numbers per row: the normaliser and the label's logit
        keep = any(ctx.needs_input_grad) and len(hidden) * len(weight) <= KEPT_ELEMENTS
        total = torch.full((len(hidden),), -torch.inf, device=hidden.device)  # (M,) normaliser
        picked = torch.zeros(len(rows), device=hidden.device)  # (J,) the labels' logits
        kept = []
        with torch.autocast(hidden.device.type, enabled=False):
            for block in columns.blocks(len(hidden)):
                logits = columns.logits(hidden, block)  # (M, block)
                total = torch.logaddexp(total, torch.logsumexp(logits, dim=-1))
                # A label lies in one block only; the others leave what was picked as it is
                place, inside = _inside(tokens, block, logits.shape[1])
                picked = torch.where(inside, logits[rows, place], picked)
                if keep:
                    kept.append(logits)
        ctx.save_for_backward(hidden, weight, bias, rows, tokens, total, *kept)
        ctx.scale = scale
        ctx.cap = cap
        return picked - total[rows]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias for ``grad`` ``(J,)``.

        Logits that were not kept are computed again.
        """
        hidden, weight, bias, rows, tokens, total, *kept = ctx.saved_tensors
        columns = Columns(weight, bias, ctx.scale, ctx.cap)
        # d log p(t) / d logit(v) = [v = t] - p(v): a row's softmax enters once per pair that reads
        # it
        of_row = torch.zeros_like(total).index_add_(0, rows, grad)  # (M,) sum of the row's pairs
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden: Any = torch.zeros_like(hidden, dtype=torch.float32) if needs_hidden else None
        grad_weight: Any = torch.empty_like(weight) if needs_weight else None
        grad_bias: Any = torch.empty_like(bias) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for i, block in enumerate(columns.blocks(len(hidden))):
                logits = kept[i] if kept else columns.logits(hidden, block)
                slope = columns.slope(logits)
                place, inside = _inside(tokens, block, logits.shape[1])
                # in place, (M, block): the softmax times -of_row, then the labels' part
                change = logits.sub_(total[:, None]).exp_().mul_(-of_row[:, None])
                own = torch.where(inside, grad, 0.0)  # (J,)
                change.index_put_((rows, place), own, accumulate=True)
                if columns.cap or columns.scale != 1.0:
                    change = change * slope
                change = change.to(weight.dtype)
                # The chain rule through h W^T + b, block by block
                if grad_hidden is not None:
                    grad_hidden += change @ weight[block]
                if grad_weight is not None:
                    torch.mm(change.T, hidden, out=grad_weight[block])
                if grad_bias is not None:
                    grad_bias[block] = change.sum(0)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _inside(tokens: Tensor, block: slice, width: int) -> tuple[Tensor, Tensor]:
    """Each token's place in a block of columns, and whether it lies there at all."""
    place = tokens - block.start
    inside = (place >= 0) & (place < width)
    return place.clamp(0, width - 1), inside


def children_logps(
    hidden: Tensor, head: OutputHead | LogitsHead, rows: Tensor, children: Tensor
) -> Tensor:
    """Log-probabilities over the legal children only.

    Args:
        hidden: ``(M, D)`` final hidden states.
        head: from hidden states to logits; only the columns of SID tokens are computed.
        rows: ``(J,)`` which hidden state each pair reads.
        children: ``(J, F)`` token ids, -1 where there are fewer.

    Returns:
        ``(J, F)`` float32, -inf where there is no child.
    """
    columns = torch.unique(children[children >= 0])  # every token once, ascending
    place = torch.searchsorted(columns, children.clamp(min=0))
    place = place.clamp(max=len(columns) - 1)  # (J, F) where each child is among the columns
    logits = head.columns(hidden, columns)  # (M, columns)
    # Each pair keeps the columns of its own children: siblings are few, columns many
    own = logits[rows].gather(1, place)  # (J, F)
    return F.log_softmax(own.masked_fill(children < 0, -torch.inf), dim=-1)


def pick_child(logps: Tensor, children: Tensor, tokens: Tensor) -> Tensor:
    """The log-probability of one of the children: ``(J, F)``, ``(J, F)``, ``(J,)`` -> ``(J,)``."""
    is_token = children == tokens[:, None]
    which = is_token.int().argmax(1, keepdim=True)  # (J, 1)
    return logps.gather(1, which)[:, 0]
