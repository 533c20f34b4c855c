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
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from minionerec.sids import SidTrie

CHUNK_ELEMENTS = 2**25     # logits of at most this many elements exist at a time (128 MB in float32)


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


def attention_mask(visible: Tensor, model: PreTrainedModel) -> Tensor:
    """``(B, Q, S)`` bool -> ``(B, 1, Q, S)`` as the model's attention wants it.

    Eager attention adds its mask, and would silently add a bool one; SDPA takes bool in any precision, autocast included.
    """
    if model.config._attn_implementation != "eager":
        return visible[:, None]
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(visible.shape, dtype=model.dtype, device=visible.device).masked_fill(~visible, lowest)[:, None]


def pack_trees(sequences: Sequence[Sequence[int]], row_length: int = 256, share: bool = True) -> TokenTree:
    """Merge common prefixes and pack the trees into rows of about ``row_length`` slots.

    Sequences are visited in lexicographic order, so that those with a common prefix meet in one row; a row that is full
    is closed and the next one repeats what it needs of a prefix. A sequence longer than ``row_length`` gets a row as
    long as itself. With ``share`` off every sequence has a row of its own.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    rows: list[tuple[list[int], list[int]]] = []              # tokens and depths of each row
    paths: list[tuple[int, np.ndarray]] = [(0, np.empty(0, dtype=np.int64))] * len(sequences)
    previous: Sequence[int] = ()
    path: list[int] = []
    for i in order:
        sequence = sequences[i]
        shared = _common_prefix(previous, sequence)
        if not rows or not share or len(rows[-1][0]) + len(sequence) - shared > max(row_length, len(sequence)):
            rows.append(([], []))
            shared = 0
        tokens, depths = rows[-1]
        path = path[:shared] + list(range(len(tokens), len(tokens) + len(sequence) - shared))
        tokens.extend(sequence[shared:])
        depths.extend(range(shared, len(sequence)))
        paths[i] = (len(rows) - 1, np.array(path, dtype=np.int64))
        previous = sequence
    width = max(len(tokens) for tokens, _ in rows)
    input_ids, position_ids = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=np.int64)
    visible = np.zeros((len(rows), width, width), dtype=bool)
    visible[:, np.arange(width), np.arange(width)] = True     # a padding slot sees itself, so that no softmax is empty
    for r, (tokens, depths) in enumerate(rows):
        input_ids[r, : len(tokens)], position_ids[r, : len(tokens)] = tokens, depths
    for r, path in paths:
        visible[r, path[:, None], path[None, :]] |= np.tri(len(path), dtype=bool)
    return TokenTree(torch.from_numpy(input_ids), torch.from_numpy(position_ids), torch.from_numpy(visible),
                     [r * width + path for r, path in paths], share)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
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
    plain_forward = type(model).forward      # of the class: a deep copy of the model must not run the original's

    def forward(self: PreTrainedModel, *args, tree: TokenTree | None = None, slots: Tensor | None = None, readout=None, **kwargs):
        if tree is None:
            return plain_forward(self, *args, **kwargs)
        if not tree.shared:          # right-padded rows need no mask: causal models read from left to right
            return readout(plain_forward(self, input_ids=tree.input_ids, use_cache=False).logits.flatten(0, 1)[slots], LogitsHead(self))
        hidden = self.base_model(input_ids=tree.input_ids, position_ids=tree.position_ids,
                                 attention_mask=attention_mask(tree.visible, self), use_cache=False).last_hidden_state
        return readout(hidden.flatten(0, 1)[slots], OutputHead(self))

    model.forward = types.MethodType(forward, model)
    model.takes_trees = takes_trees(model)
    return model


class OutputHead:
    """From final hidden states to logits, as the model's own forward does it, but only where they are needed.

    Besides the linear layer some families cap (Gemma-2: ``cap * tanh(logits / cap)``) or scale (Cohere, Granite) logits.
    """

    def __init__(self, model: PreTrainedModel):
        config = model.config.get_text_config()
        self.layer = model.get_output_embeddings()
        self.is_linear = type(self.layer).forward is nn.Linear.forward      # also where FSDP has changed the class
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)

    def __call__(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., V)`` in the model's dtype.

        A linear layer's weight is used as ``columns`` uses it, without a call of the module: FSDP orders its communication by
        such calls, and which of the two a micro-batch needs differs between processes.
        """
        if self.is_linear:
            return self._finish(nn.functional.linear(hidden, self.layer.weight, self.layer.bias))
        return self._finish(self.layer(hidden))

    def columns(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., len(tokens))`` in float32: rounding a bfloat16 logit would create ties between items.

        A head that adapters wrap has no single weight matrix; its full output is indexed instead.
        """
        if not self.is_linear:
            return self(hidden)[..., tokens].float()
        bias = None if self.layer.bias is None else self.layer.bias[tokens].float()
        with torch.autocast(hidden.device.type, enabled=False):
            return self._finish(nn.functional.linear(hidden.float(), self.layer.weight[tokens].float(), bias))

    def logsumexp(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` -> ``(...)`` log of the vocabulary's normaliser, float32, one chunk of rows at a time; no gradient kept."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        size = max(1, CHUNK_ELEMENTS // self.layer.weight.shape[0])
        pieces = [torch.logsumexp(self(chunk).float(), dim=-1) for chunk in flat.split(size)]
        return torch.cat(pieces).view(hidden.shape[:-1])

    def _finish(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


class LogitsHead(OutputHead):
    """The head where the "hidden states" already are logits."""

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden

    def columns(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return hidden[..., tokens].float()


def vocab_logps(hidden: Tensor, head: OutputHead, rows: Tensor, tokens: Tensor) -> Tensor:
    """``log p(token)`` over the whole vocabulary for pairs (row of hidden, token).

    Args:
        hidden: ``(M, D)`` final hidden states.
        head: from hidden states to logits.
        rows: ``(J,)`` ascending; which hidden state each pair reads.
        tokens: ``(J,)`` the tokens.

    Returns:
        ``(J,)`` float32. Logits exist for one chunk of rows at a time and are recomputed in the backward pass.
    """
    def chunk_logps(states: Tensor, pair_rows: Tensor, pair_tokens: Tensor) -> Tensor:
        logits = head(states).float()
        return logits[pair_rows, pair_tokens] - torch.logsumexp(logits, dim=-1)[pair_rows]

    size = max(1, CHUNK_ELEMENTS // head.layer.weight.shape[0])
    if len(hidden) <= size:
        return chunk_logps(hidden, rows, tokens)
    pieces = []
    for start in range(0, len(hidden), size):
        inside = (rows >= start) & (rows < start + size)
        arguments = (hidden[start: start + size], rows[inside] - start, tokens[inside])
        pieces.append(checkpoint(chunk_logps, *arguments, use_reentrant=False) if hidden.requires_grad else chunk_logps(*arguments))
    return torch.cat(pieces)


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

        def readout(hidden: Tensor, head: OutputHead) -> tuple[Tensor, Tensor | None]:
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


def children_logps(hidden: Tensor, head: OutputHead, rows: Tensor, children: Tensor) -> Tensor:
    """Log-probabilities over the legal children only.

    Args:
        hidden: ``(M, D)`` final hidden states.
        head: from hidden states to logits; only the columns of SID tokens are computed.
        rows: ``(J,)`` which hidden state each pair reads.
        children: ``(J, F)`` token ids, -1 where there are fewer.

    Returns:
        ``(J, F)`` float32, -inf where there is no child.
    """
    columns = torch.unique(children[children >= 0])
    place = torch.searchsorted(columns, children.clamp(min=0)).clamp(max=len(columns) - 1)
    own = head.columns(hidden, columns)[rows].gather(1, place)
    return F.log_softmax(own.masked_fill(children < 0, -torch.inf), dim=-1)


def pick_child(logps: Tensor, children: Tensor, tokens: Tensor) -> Tensor:
    """The log-probability of one of the children: ``(J, F)``, ``(J, F)``, ``(J,)`` -> ``(J,)``."""
    return logps.gather(1, (children == tokens[:, None]).int().argmax(1, keepdim=True))[:, 0]


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
    was_training = model.training
    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(input_ids=torch.tensor([s], device=model.device)).logits[0] for s in sequences]).float()
    try:
        with torch.no_grad():
            found = model(tree=tree, slots=slots, readout=lambda hidden, head: head(hidden)).float()
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
