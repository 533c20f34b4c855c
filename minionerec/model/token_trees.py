"""Every shared prefix is computed once: token trees, and attention over them inside stock Hugging Face models.

The sequences of a batch (prompt + completion) are merged into prefix trees and laid out as one row of tokens without
padding, parents before children. Layers see that row as any other; only attention knows the tree: it cuts the row into
blocks and lets every token see itself and its ancestors, through the attention interface of transformers. The same
attention reads a search's beams against a cache in which the prompt stands once.

``enable_trees`` gives a model this second way through its own ``forward``: ``model(tree=..., slots=..., readout=...)``
runs the body on the tree and hands the hidden states of the wanted slots, with the output head, to ``readout``. Going
through ``forward`` keeps DDP, FSDP, autocast, gradient checkpointing and PEFT working as they do for any other call.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from minionerec.model.output_head import LogitsHead, output_head

ATTENTION = "token_trees"  # the name under which transformers finds ``block_attention``
LONGEST_BLOCK = 1024  # slots; a block's mask has their square
ALIGNMENT = 8  # blocks are padded to multiples of it, which the fused kernels of GPUs ask for


@dataclass(frozen=True)
class Blocks:
    """Who sees whom. R blocks of Q queries and K keys; T queries and S keys in all.

    Attributes:
        queries: ``(R, Q)`` the T queries in order; 0 behind the last one.
        keys: ``(R, K)`` which of the S keys.
        mask: ``(R, Q, K)`` bool, whether a query sees a key; no row is empty.
        query_positions: ``(R, Q)``, for layers with a sliding window.
        key_positions: ``(R, K)``.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor
    query_positions: Tensor
    key_positions: Tensor

    def to(self, device: torch.device | str) -> Blocks:
        """The same blocks on another device."""
        return Blocks(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def behind(self, length: int) -> Blocks:
        """The same blocks behind ``length`` cached tokens that everybody sees."""
        cached = torch.arange(length, device=self.keys.device).expand(len(self.keys), length)
        return replace(
            self,
            keys=torch.cat([cached, self.keys + length], dim=1),
            mask=torch.cat([self.mask.new_ones(*self.mask.shape[:2], length), self.mask], dim=2),
            query_positions=self.query_positions + length,
            key_positions=torch.cat([cached, self.key_positions + length], dim=1),
        )


@dataclass(frozen=True)
class TokenTree:
    """Packed prefix trees, T slots.

    Attributes:
        input_ids: ``(T,)``; ``(rows, width)`` right-padded where nothing is shared.
        position_ids: of the same shape, depth of each token in its own sequence.
        nodes: for each sequence, in the order given, the flat slot of each of its tokens.
        blocks: None where every sequence has a row of its own, for models whose attention takes no trees.
    """

    input_ids: Tensor
    position_ids: Tensor
    nodes: list[np.ndarray]
    blocks: Blocks | None

    def to(self, device: torch.device | str) -> TokenTree:
        """The same tree on another device."""
        blocks = None if self.blocks is None else self.blocks.to(device)
        return TokenTree(
            self.input_ids.to(device), self.position_ids.to(device), self.nodes, blocks
        )


def pack_trees(
    sequences: Sequence[Sequence[int]], share: bool = True, block_length: int | None = None
) -> TokenTree:
    """Merge common prefixes.

    Sequences are visited in lexicographic order, so that every one shares as much as it can with the one before it.

    Args:
        sequences: token ids.
        share: False gives every sequence a padded row of its own.
        block_length: queries of an attention block; those with the least work by default.
    """
    if not share:
        return _separate_rows(sequences)
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    ordered = [sequences[i] for i in order]
    common = [0, *(common_prefix(a, b) for a, b in zip(ordered, ordered[1:], strict=False))]
    tokens: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    paths: list[list[int]] = []
    path: list[int] = []
    for sequence, shared in zip(ordered, common, strict=True):
        new = range(len(tokens), len(tokens) + len(sequence) - shared)
        parents += [path[shared - 1] if shared else -1, *new[:-1]] if new else []
        tokens += sequence[shared:]
        depths += range(shared, len(sequence))
        path = path[:shared] + list(new)
        paths.append(path)
    nodes = [np.empty(0, dtype=np.int64)] * len(sequences)
    for i, path in zip(order, paths, strict=True):
        nodes[i] = np.array(path, dtype=np.int64)
    blocks = _blocks(
        np.array(parents), np.array(depths), block_length or cheapest_block_length(depths)
    )
    return TokenTree(torch.tensor(tokens), torch.tensor(depths), nodes, blocks)


def cheapest_block_length(depths: Sequence[int]) -> int:
    """The number of queries per attention block with the fewest query-key pairs, padding included.

    The keys of a block are its own slots and those above its first one, of which there are ``depths[first]``.
    """

    def pairs(length: int) -> int:
        return -(-len(depths) // length) * length * (length + _aligned(max(depths[::length])))

    whole = _aligned(len(depths))
    even = [_aligned(whole // blocks + 1) for blocks in range(2, 9)]
    candidates = [whole, *even, *range(8 * ALIGNMENT, 64 * ALIGNMENT, 4 * ALIGNMENT)]
    return min((length for length in candidates if length <= min(whole, LONGEST_BLOCK)), key=pairs)


def _aligned(slots: int) -> int:
    return -(-slots // ALIGNMENT) * ALIGNMENT


def _blocks(parents: np.ndarray, depths: np.ndarray, length: int) -> Blocks:
    """Blocks of ``length`` consecutive slots.

    Args:
        parents: ``(T,)`` slot of the parent, -1 for a root; always further left.
        depths: ``(T,)``.
        length: Q.
    """
    first = np.arange(0, len(parents), length)  # (R,)
    slots = first[:, None] + np.arange(length)
    real = slots < len(parents)
    queries = np.where(real, slots, 0)  # (R, Q)
    depth = _aligned(int(depths[first].max()))
    above = np.zeros((len(first), depth), dtype=np.int64)  # from the root down
    rows, slot = np.arange(len(first)), parents[first]
    while (slot >= 0).any():
        rows, slot = rows[slot >= 0], slot[slot >= 0]
        above[rows, depths[slot]] = slot
        slot = parents[slot]
    parent = parents[queries]
    local = np.where(parent >= first[:, None], depth + parent - first[:, None], depths[queries] - 1)
    chain = np.broadcast_to(np.arange(depth) - 1, above.shape)
    mask = ancestors(np.concatenate([chain, np.where(real, local, -1)], axis=1))[
        :, depth:
    ]  # (R, Q, K)
    keys = np.concatenate([above, queries], axis=1)
    return Blocks(*map(torch.from_numpy, (queries, keys, mask, depths[queries], depths[keys])))


def ancestors(parents: np.ndarray) -> np.ndarray:
    """``(R, S)`` parent slot of every slot (-1: none; always further left) -> ``(R, S, S)`` bool: itself and what is above it."""
    rows, width = parents.shape
    above = np.zeros((rows, width + 1, width), dtype=bool)  # the last one stands for "no parent"
    everyone = np.arange(rows)
    for slot in range(width):
        above[:, slot] = above[everyone, parents[:, slot]]
        above[:, slot, slot] = True
    return above[:, :width]


def _separate_rows(sequences: Sequence[Sequence[int]]) -> TokenTree:
    width = max(map(len, sequences))
    ids = torch.tensor([[*sequence, *[0] * (width - len(sequence))] for sequence in sequences])
    nodes = [row * width + np.arange(len(sequence)) for row, sequence in enumerate(sequences)]
    return TokenTree(ids, torch.arange(width).expand_as(ids), nodes, None)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length


# --------------------------------------------------------------------------------------------------------- attention


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
    blocks: Blocks | None = None,
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
    q, k, v = (
        _gather(query, blocks.queries),
        _gather(key, blocks.keys),
        _gather(value, blocks.keys),
    )  # (R, H or H', Q or K, d)
    # repeated here: with a mask, SDPA on CUDA has no fused kernel that takes fewer key heads than query heads
    k, v = (
        x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) if x.shape[1] < q.shape[1] else x
        for x in (k, v)
    )
    mask = blocks.mask
    if sliding_window is not None:
        mask = mask & (
            blocks.query_positions[:, :, None] - blocks.key_positions[:, None, :] < sliding_window
        )
    if softcap is None:
        out = F.scaled_dot_product_attention(q, k, v, mask[:, None], dropout, scale=scaling)
    else:
        scores = softcap * torch.tanh(q @ k.transpose(2, 3) * scaling / softcap)
        weights = (
            scores.masked_fill(~mask[:, None], -torch.inf)
            .softmax(dim=-1, dtype=torch.float32)
            .to(q.dtype)
        )
        out = F.dropout(weights, dropout) @ v
    return out.transpose(1, 2).flatten(0, 1)[None, : query.shape[2]], None


AttentionInterface.register(ATTENTION, block_attention)


def _gather(states: Tensor, places: Tensor) -> Tensor:
    """``(1, H, S, d)`` at ``places (R, K)`` -> ``(R, H, K, d)``."""
    return states[0].index_select(1, places.flatten()).unflatten(1, places.shape).transpose(0, 1)


@contextlib.contextmanager
def attention_over_blocks(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's layers call ``block_attention``.

    With gradient checkpointing the layers run again in the backward pass, behind this context: then the way stays
    switched until the next plain forward (``enable_trees``) switches it back.
    """
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        if not (model.is_activation_checkpointing and model.training):
            model.config._attn_implementation = model.plain_attention


def enable_trees(model: PreTrainedModel) -> PreTrainedModel:
    """Give the model's ``forward`` the keywords ``tree``, ``slots`` and ``readout``; every other call is unchanged.

    ``model(tree=tree, slots=(M,) flat slots, readout=f)`` returns ``f(hidden (M, D), head)``. For a tree without blocks
    it takes the model's plain way to the logits, whatever the architecture, and ``hidden`` are those logits.
    """
    plain_forward = type(
        model
    ).forward  # of the class: a deep copy of the model must not run the original's
    model.plain_attention = model.config._attn_implementation

    def forward(
        self: PreTrainedModel,
        *args,
        tree: TokenTree | None = None,
        slots: Tensor | None = None,
        readout=None,
        **kwargs,
    ):
        if tree is None or tree.blocks is None:
            self.config._attn_implementation = self.plain_attention
            if tree is None:
                return plain_forward(self, *args, **kwargs)
            # right-padded rows need no mask: causal models read from left to right
            return readout(
                plain_forward(self, input_ids=tree.input_ids, use_cache=False).logits.flatten(0, 1)[
                    slots
                ],
                LogitsHead(),
            )
        hidden = tree_hidden(self, tree)
        return readout(hidden[slots], output_head(self))

    model.forward = types.MethodType(forward, model)
    model.takes_trees = takes_trees(model)
    return model


def tree_hidden(model: PreTrainedModel, tree: TokenTree) -> Tensor:
    """``(T, D)`` final hidden states of a tree's slots."""
    with attention_over_blocks(model):
        return model.base_model(
            input_ids=tree.input_ids[None],
            position_ids=tree.position_ids[None],
            blocks=tree.blocks,
            use_cache=False,
        ).last_hidden_state[0]


def takes_trees(model: PreTrainedModel) -> bool:
    """Whether a tree forward of this model gives what plain forwards give, tried on a few tokens.

    False for architectures whose layers mix tokens by other means than attention, or whose attention does more than
    ``block_attention`` does.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    sequences = [
        [t % vocabulary for t in s] for s in ([5, 6, 7, 8, 9], [5, 6, 17, 18], [5, 26, 27])
    ]
    tree = pack_trees(sequences, block_length=6).to(model.device)
    slots = torch.from_numpy(np.concatenate(tree.nodes)).to(model.device)
    everything = torch.arange(model.config.get_text_config().vocab_size, device=model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        expected = torch.cat(
            [model(input_ids=torch.tensor([s], device=model.device)).logits[0] for s in sequences]
        ).float()
    try:
        with torch.no_grad():
            found = model(
                tree=tree,
                slots=slots,
                readout=lambda hidden, head: head.columns(hidden, everything),
            )
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    finally:
        model.train(was_training)
    tolerance = 1e-3 if model.dtype == torch.float32 else 5e-2
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1.0))


def base_causal_lm(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside DDP and PEFT wrappers; adapters stay in place."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
