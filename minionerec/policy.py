"""Log-probabilities of many completions with every shared prefix computed once.

The sequences of a micro-batch (prompt + completion) are merged into prefix trees; trees are packed into rows; one
forward with a tree mask and explicit positions gives each node what a forward over its own path would give. Rows of one
user share the history, completions of one group share the prompt, all rows share the wording.

``enable_trees`` gives a stock Hugging Face model a second way through its own ``forward``: ``model(tree=..., readout=...)``
runs the body on the tree and hands the hidden states of the wanted nodes, with the output head, to ``readout``. Going
through ``forward`` keeps DDP, FSDP, autocast and PEFT working as they do for any other call.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minionerec.output_head import LogitsHead, OutputHead, children_logps, output_head, pick_child, vocab_logps
from minionerec.sids import SidTrie

LONGEST_ROW = 1024         # slots; a row's mask has their square
ATTENTION_SLOTS = 1536     # at this length of a row its dense attention costs as much as everything else (6 x the width, small models)


@dataclass(frozen=True)
class TokenTree:
    """Packed prefix trees. R rows of S slots.

    Attributes:
        input_ids: ``(R, S)``, right-padded.
        position_ids: ``(R, S)``, depth of each node in its own sequence.
        visible: ``(R, S, S)`` bool, whether a slot (second axis) sees another (third): itself and its ancestors.
        nodes: for each sequence, in the order given, the flat slot (row * S + slot) of each of its tokens.
        shared: False where every sequence has a row of its own, for models that take no tree masks.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    nodes: list[np.ndarray]
    shared: bool = True

    def to(self, device: torch.device | str) -> TokenTree:
        """The same tree on another device."""
        return TokenTree(self.input_ids.to(device), self.position_ids.to(device), self.visible.to(device), self.nodes, self.shared)


def attention_mask(visible: Tensor, positions: Tensor, model: PreTrainedModel) -> Tensor | dict[str, Tensor]:
    """What each query sees, as the model's attention wants it: one mask, or one per kind of layer.

    Eager attention adds its mask, and would silently add a bool one; SDPA takes bool in any precision, autocast included.
    Layers with a sliding window see that many positions back; a model counts slots, which in a tree are not positions.

    Args:
        visible: ``(B, Q, S)`` bool; the queries are the last Q of the S slots.
        positions: ``(B, S)`` of every slot.
        model: whose attention it is for.
    """
    config = model.config.get_text_config()
    kinds, window = set(getattr(config, "layer_types", None) or []), getattr(config, "sliding_window", None)
    if not window or kinds == {"full_attention"}:
        return _as_attention_wants(visible, model)
    near = positions[:, -visible.shape[1]:, None] - positions[:, None, :] < window                           # (B, Q, S)
    sliding = _as_attention_wants(visible & near, model)
    return {"full_attention": _as_attention_wants(visible, model), "sliding_attention": sliding} if kinds else sliding


def _as_attention_wants(visible: Tensor, model: PreTrainedModel) -> Tensor:
    """``(B, Q, S)`` bool -> ``(B, 1, Q, S)``."""
    if model.config._attn_implementation != "eager":
        return visible[:, None]
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(visible.shape, dtype=model.dtype, device=visible.device).masked_fill(~visible, lowest)[:, None]


def pack_trees(sequences: Sequence[Sequence[int]], row_length: int | None = None, share: bool = True) -> TokenTree:
    """Merge common prefixes and pack the trees into rows.

    Sequences are visited in lexicographic order, so that those with a common prefix meet in one row; a row that is full
    is closed and the next one repeats what it needs of a prefix.

    Args:
        sequences: token ids.
        row_length: most slots of a row (one longer sequence gets a row of its own length); the cheapest by default.
        share: False gives every sequence a row of its own.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    ordered = [sequences[i] for i in order]
    common = [0, *(common_prefix(a, b) for a, b in zip(ordered, ordered[1:], strict=False))]
    lengths = list(map(len, ordered))
    starts = row_starts(lengths, common, row_length)[0] if share else range(len(ordered))

    tokens: list[list[int]] = []                              # of each row, slot by slot
    parents: list[list[int]] = []
    depths: list[list[int]] = []
    paths: list[tuple[int, list[int]]] = [(0, [])] * len(sequences)
    path: list[int] = []
    for place, (i, sequence) in enumerate(zip(order, ordered, strict=True)):
        shared = common[place]
        if len(tokens) < len(starts) and place == starts[len(tokens)]:
            tokens, parents, depths, shared = [*tokens, []], [*parents, []], [*depths, []], 0
        new = range(len(tokens[-1]), len(tokens[-1]) + len(sequence) - shared)
        tokens[-1].extend(sequence[shared:])
        parents[-1].extend([path[shared - 1] if shared else -1, *new[:-1]] if new else [])
        depths[-1].extend(range(shared, len(sequence)))
        path = path[:shared] + list(new)
        paths[i] = len(tokens) - 1, path
    width = max(map(len, tokens))
    input_ids, position_ids = _padded(tokens, width, 0), _padded(depths, width, 0)
    nodes = [row * width + np.asarray(path, dtype=np.int64) for row, path in paths]
    visible = ancestors(_padded(parents, width, -1))
    return TokenTree(*map(torch.from_numpy, (input_ids, position_ids, visible)), nodes, share)


def row_starts(lengths: Sequence[int], common: Sequence[int], row_length: int | None = None) -> tuple[list[int], int]:
    """Cut ordered sequences into rows, each as late as possible.

    Args:
        lengths: of the sequences.
        common: how many tokens each shares with the one before it.
        row_length: most slots of a row; by default the length that makes the least work: all rows are padded to the
            longest one, and dense attention grows with its square.

    Returns:
        The place of the first sequence of every row, and the slots of the longest row.
    """
    if row_length is None:
        longest, whole = max(lengths), sum(lengths) - sum(common)
        candidates = {longest, *(longest + part * longest // 4 for part in range(1, 8)), *(whole // rows + 1 for rows in range(1, 9))}
        plans = [row_starts(lengths, common, length) for length in sorted(candidates) if length <= max(longest, LONGEST_ROW)]
        return min(plans, key=lambda plan: len(plan[0]) * plan[1] * (1 + plan[1] / ATTENTION_SLOTS))
    starts, slots, widest = [], 0, 0
    for place, (length, shared) in enumerate(zip(lengths, common, strict=True)):
        slots += length - shared
        if not starts or slots > row_length:
            starts.append(place)
            slots = length
        widest = max(widest, slots)
    return starts, widest


def ancestors(parents: np.ndarray) -> np.ndarray:
    """``(R, S)`` parent slot of every slot (-1: none; always further left) -> ``(R, S, S)`` bool: itself and what is above it."""
    rows, width = parents.shape
    above = np.zeros((rows, width + 1, width), dtype=bool)    # the last one stands for "no parent"
    everyone = np.arange(rows)
    for slot in range(width):
        above[:, slot] = above[everyone, parents[:, slot]]
        above[:, slot, slot] = True
    return above[:, :width]


def _padded(rows: list[list[int]], width: int, filler: int) -> np.ndarray:
    return np.array([row + [filler] * (width - len(row)) for row in rows], dtype=np.int64)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length


def enable_trees(model: PreTrainedModel) -> PreTrainedModel:
    """Give the model's ``forward`` the keywords ``tree``, ``slots`` and ``readout``; every other call is unchanged.

    ``model(tree=tree, slots=(M,) flat slots, readout=f)`` returns ``f(hidden (M, D), head)``. For a tree that is not
    shared it takes the model's plain way to the logits, whatever the architecture, and ``hidden`` are those logits.
    """
    plain_forward = model.forward

    def forward(self: PreTrainedModel, *args, tree: TokenTree | None = None, slots: Tensor | None = None, readout=None, **kwargs):
        if tree is None:
            return plain_forward(*args, **kwargs)
        if not tree.shared:          # right-padded rows need no mask: causal models read from left to right
            return readout(plain_forward(input_ids=tree.input_ids, use_cache=False).logits.flatten(0, 1)[slots], LogitsHead())
        hidden = self.base_model(input_ids=tree.input_ids, position_ids=tree.position_ids, use_cache=False,
                                 attention_mask=attention_mask(tree.visible, tree.position_ids, self)).last_hidden_state
        return readout(hidden.flatten(0, 1)[slots], output_head(self))

    model.forward = types.MethodType(forward, model)
    model.takes_trees = takes_trees(model)
    return model


def label_pairs(tree: TokenTree, sequences: Sequence[Sequence[int]], starts: Sequence[int], stops: Sequence[int] | None = None
                ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which (slot, token) pairs hold the log-probability of the tokens ``starts[i] .. stops[i] - 1`` of each sequence.

    The last token of a sequence need not be in the tree: it is predicted, never read.

    Returns:
        slots ``(M,)`` distinct flat slots; rows ``(J,)`` ascending indexes into slots; tokens ``(J,)``; and inverse
        ``(J,)`` such that ``logps[inverse]`` has the order sequence by sequence, token by token.
    """
    slot_of, token_of = [], []
    for i, (nodes, sequence) in enumerate(zip(tree.nodes, sequences, strict=True)):
        stop = len(sequence) if stops is None else stops[i]
        slot_of.append(nodes[starts[i] - 1: stop - 1])
        token_of.append(np.asarray(sequence[starts[i]: stop], dtype=np.int64))
    flat_slots, flat_tokens = np.concatenate(slot_of), np.concatenate(token_of)
    slots, rows = np.unique(flat_slots, return_inverse=True)
    order = np.argsort(rows, kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return tuple(torch.from_numpy(x) for x in (slots, rows[order], flat_tokens[order], inverse))


class GroupOutput(NamedTuple):
    """What one forward over a micro-batch of groups gives."""

    logps: Tensor                   # (B, G, L), 0 where masked
    children: Tensor | None         # (M, F) log-probabilities of the legal children of every inner node visited
    target_logps: Tensor | None     # (B, L) of the targets' tokens


@dataclass
class GroupBatch:
    """Prompts with the prefix trees of their completions, ready for any model's forward."""

    tree: TokenTree
    slots: Tensor               # (M,) the slots whose next-token distribution is needed
    pair_rows: Tensor           # (J,) ascending, into slots
    pair_tokens: Tensor         # (J,)
    pair_children: Tensor       # (J, F) token ids of the legal children at each pair, -1 where fewer
    scatter: Tensor             # (B * G' * L,) place of each wanted log-probability among the pairs, -1 where masked
    mask: Tensor                # (B, G, L)
    shape: tuple[int, int, int]     # B, G' (a target more than G if wanted), L

    @classmethod
    def make(cls, prompts: Sequence[Sequence[int]], nodes: Tensor, alive: Tensor, trie: SidTrie, share: bool = True,
             targets: Sequence[int] | None = None) -> GroupBatch:
        """Lay out groups of completions.

        Args:
            prompts: B lists of token ids.
            nodes: ``(B, G)`` leaf nodes of the completions.
            alive: ``(B, G)`` False where there is no completion.
            trie: the catalogue.
            share: False for models that take no tree masks.
            targets: item of each prompt, laid out as one more completion for the likelihood term.
        """
        device, group = nodes.device, nodes.shape[1]
        if targets is not None:
            leaves = torch.from_numpy(trie.leaf_of_item)[list(targets)].to(device)
            nodes = torch.cat([nodes, trie.leaf_node[leaves].long()[:, None]], dim=1)
            alive = torch.cat([alive, torch.ones_like(alive[:, :1])], dim=1)
        paths = trie.path(nodes, trie.num_levels).cpu().numpy()                                  # (B, G', L)
        code, parent = trie.code.cpu().numpy(), trie.parent.cpu().numpy()
        tokens_of = [tokens.cpu().numpy() for tokens in trie.level_tokens]
        mask = (paths > 0) & alive.cpu().numpy()[..., None]
        sequences, starts, above = [], [], []
        for b, row in enumerate(paths):
            for g, path in enumerate(row):
                real = path[mask[b, g]]
                if len(real):
                    sequences.append(list(prompts[b]) + [int(tokens_of[level][code[node]]) for level, node in enumerate(real)])
                    starts.append(len(prompts[b]))
                    above.extend(parent[real])
        tree = pack_trees([sequence[:-1] for sequence in sequences], share=share)
        slots, pair_rows, pair_tokens, inverse = label_pairs(tree, sequences, starts)
        above_of_pair = np.empty(len(above), dtype=np.int64)
        above_of_pair[inverse.numpy()] = above
        children = trie.child_tokens(above_of_pair)
        scatter = np.full(mask.shape, -1, dtype=np.int64)
        scatter[mask] = inverse.numpy()
        move = lambda values: (torch.from_numpy(values) if isinstance(values, np.ndarray) else values).to(device)  # noqa: E731
        return cls(tree.to(device), move(slots), move(pair_rows), move(pair_tokens), move(children), move(scatter.reshape(-1)),
                   move(mask[:, :group]), mask.shape)

    def forward(self, model: nn.Module, normalize: str, with_children: bool) -> GroupOutput:
        """Log-probabilities of every completion token, in one forward."""
        wanted = with_children or normalize == "trie"

        def readout(hidden: Tensor, head: OutputHead | LogitsHead) -> tuple[Tensor, Tensor | None]:
            children = children_logps(hidden, head, self.pair_rows, self.pair_children) if wanted else None
            if normalize == "trie":
                return pick_child(children, self.pair_children, self.pair_tokens), children
            return vocab_logps(hidden, head, self.pair_rows, self.pair_tokens), children

        pairs, children = model(tree=self.tree, slots=self.slots, readout=readout)
        logps = torch.where(self.scatter >= 0, pairs[self.scatter.clamp(min=0)], 0.0).view(self.shape)
        group = self.mask.shape[1]
        targets = logps[:, -1] if self.shape[1] > group else None
        return GroupOutput(logps[:, :group], children, targets)

    def spread(self, per_pair: Tensor) -> Tensor:
        """``(J,)`` values of the pairs to the completions' tokens, ``(B, G, L)``."""
        return torch.where(self.scatter >= 0, per_pair[self.scatter.clamp(min=0)], 0.0).view(self.shape)[:, : self.mask.shape[1]]


def k3_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """``exp(ref - logp) - (ref - logp) - 1`` per token: the non-negative estimate of KL(policy || reference) that TRL uses.

    Source: Schulman's k3; unbounded where the policy has made a token rare.
    """
    gap = ref_logps - logps
    return torch.exp(gap) - gap - 1


def exact_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """KL(policy || reference) over the legal children, ``(J, F)`` log-probabilities -> ``(J,)``; no sampling error."""
    legal = logps > -torch.inf
    gap = torch.where(legal, logps, 0.0) - torch.where(legal, ref_logps, 0.0)
    return (torch.where(legal, logps, -torch.inf).exp() * gap).sum(-1)


def takes_trees(model: PreTrainedModel) -> bool:
    """Whether a tree forward of this model gives what plain forwards give, tried on a few tokens.

    False for architectures that ignore custom masks or positions (state-space layers, for example).
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    sequences = [[t % vocabulary for t in s] for s in ([5, 6, 7, 8, 9], [5, 6, 17, 18], [5, 26, 27])]
    tree = pack_trees(sequences).to(model.device)
    slots = torch.from_numpy(np.concatenate(tree.nodes)).to(model.device)
    everything = torch.arange(model.config.get_text_config().vocab_size, device=model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(input_ids=torch.tensor([s], device=model.device)).logits[0] for s in sequences]).float()
    try:
        with torch.no_grad():
            found = model(tree=tree, slots=slots, readout=lambda hidden, head: head.columns(hidden, everything))
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
