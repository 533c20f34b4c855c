"""Log-probabilities of groups of completions, and how far a policy has moved from its reference.

A group's prompt and the prefix tree of its completions are read in one forward (``minionerec/model/token_trees.py``); only the
log-probabilities of the completions' tokens, or of the legal children of their prefixes, are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minionerec.catalogue.trie import SidTrie
from minionerec.model.output_head import (
    LogitsHead,
    OutputHead,
    children_logps,
    pick_child,
    vocab_logps,
)
from minionerec.model.token_trees import TokenTree, pack_trees


def label_pairs(
    tree: TokenTree,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    stops: Sequence[int] | None = None,
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
        slot_of.append(nodes[starts[i] - 1 : stop - 1])
        token_of.append(np.asarray(sequence[starts[i] : stop], dtype=np.int64))
    flat_slots, flat_tokens = np.concatenate(slot_of), np.concatenate(token_of)
    slots, rows = np.unique(flat_slots, return_inverse=True)
    order = np.argsort(rows, kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return tuple(torch.from_numpy(x) for x in (slots, rows[order], flat_tokens[order], inverse))


class GroupOutput(NamedTuple):
    """What one forward over a micro-batch of groups gives."""

    logps: Tensor  # (B, G, L), 0 where masked
    children: (
        Tensor | None
    )  # (M, F) log-probabilities of the legal children of every inner node visited
    target_logps: Tensor | None  # (B, L) of the targets' tokens


@dataclass
class GroupBatch:
    """Prompts with the prefix trees of their completions, ready for any model's forward."""

    tree: TokenTree
    slots: Tensor  # (M,) the slots whose next-token distribution is needed
    pair_rows: Tensor  # (J,) ascending, into slots
    pair_tokens: Tensor  # (J,)
    pair_children: Tensor  # (J, F) token ids of the legal children at each pair, -1 where fewer
    scatter: Tensor  # (B * G' * L,) place of each wanted log-probability among the pairs, -1 where masked
    mask: Tensor  # (B, G, L)
    shape: tuple[int, int, int]  # B, G' (a target more than G if wanted), L

    @classmethod
    def make(
        cls,
        prompts: Sequence[Sequence[int]],
        nodes: Tensor,
        alive: Tensor,
        trie: SidTrie,
        share: bool = True,
        targets: Sequence[int] | None = None,
    ) -> GroupBatch:
        """Lay out groups of completions.

        Args:
            prompts: B lists of token ids.
            nodes: ``(B, G)`` leaf nodes of the completions.
            alive: ``(B, G)`` False where there is no completion.
            trie: the catalogue.
            share: False for models that take no token trees.
            targets: item of each prompt, laid out as one more completion for the likelihood term.
        """
        device, group = nodes.device, nodes.shape[1]
        if targets is not None:
            leaves = torch.from_numpy(trie.leaf_of_item)[list(targets)].to(device)
            nodes = torch.cat([nodes, trie.leaf_node[leaves].long()[:, None]], dim=1)
            alive = torch.cat([alive, torch.ones_like(alive[:, :1])], dim=1)
        paths = trie.path(nodes, trie.num_levels).cpu().numpy()  # (B, G', L)
        code, parent = trie.code.cpu().numpy(), trie.parent.cpu().numpy()
        tokens_of = [tokens.cpu().numpy() for tokens in trie.level_tokens]
        mask = (paths > 0) & alive.cpu().numpy()[..., None]
        sequences, starts, above = [], [], []
        for b, row in enumerate(paths):
            for g, path in enumerate(row):
                real = path[mask[b, g]]
                if len(real):
                    sequences.append(
                        list(prompts[b])
                        + [int(tokens_of[level][code[node]]) for level, node in enumerate(real)]
                    )
                    starts.append(len(prompts[b]))
                    above.extend(parent[real])
        tree = pack_trees([sequence[:-1] for sequence in sequences], share=share)
        slots, pair_rows, pair_tokens, inverse = label_pairs(tree, sequences, starts)
        above_of_pair = np.empty(len(above), dtype=np.int64)
        above_of_pair[inverse.numpy()] = above
        children = trie.child_tokens(above_of_pair)
        scatter = np.full(mask.shape, -1, dtype=np.int64)
        scatter[mask] = inverse.numpy()
        move = lambda values: (
            torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        ).to(device)  # noqa: E731
        return cls(
            tree.to(device),
            move(slots),
            move(pair_rows),
            move(pair_tokens),
            move(children),
            move(scatter.reshape(-1)),
            move(mask[:, :group]),
            mask.shape,
        )

    def forward(self, model: nn.Module, normalize: str, with_children: bool) -> GroupOutput:
        """Log-probabilities of every completion token, in one forward."""
        wanted = with_children or normalize == "trie"

        def readout(hidden: Tensor, head: OutputHead | LogitsHead) -> tuple[Tensor, Tensor | None]:
            children = (
                children_logps(hidden, head, self.pair_rows, self.pair_children) if wanted else None
            )
            if normalize == "trie":
                return pick_child(children, self.pair_children, self.pair_tokens), children
            return vocab_logps(hidden, head, self.pair_rows, self.pair_tokens), children

        pairs, children = model(tree=self.tree, slots=self.slots, readout=readout)
        logps = torch.where(self.scatter >= 0, pairs[self.scatter.clamp(min=0)], 0.0).view(
            self.shape
        )
        group = self.mask.shape[1]
        targets = logps[:, -1] if self.shape[1] > group else None
        return GroupOutput(logps[:, :group], children, targets)

    def spread(self, per_pair: Tensor) -> Tensor:
        """``(J,)`` values of the pairs to the completions' tokens, ``(B, G, L)``."""
        return torch.where(self.scatter >= 0, per_pair[self.scatter.clamp(min=0)], 0.0).view(
            self.shape
        )[:, : self.mask.shape[1]]
