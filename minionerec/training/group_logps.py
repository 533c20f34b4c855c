"""Log-probabilities of groups of completions, and how far a policy has moved from its reference.

A group's prompt and the prefix tree of its completions are read in one forward
(``minionerec/model/token_trees.py``); only the log-probabilities of the completions' tokens, or of
the legal children of their prefixes, are computed.
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
    """Find the slots that predict the tokens ``starts[i] .. stops[i] - 1`` of each sequence.

    The last token of a sequence need not be in the tree: it is predicted, never read.

    Returns:
        slots ``(M,)`` distinct flat slots; rows ``(J,)`` ascending indexes into slots; tokens
        ``(J,)``; and inverse ``(J,)`` such that ``logps[inverse]`` has the order sequence by
        sequence, token by token.
    """
    slot_of, token_of = [], []
    for i, (nodes, sequence) in enumerate(zip(tree.nodes, sequences, strict=True)):
        stop = len(sequence) if stops is None else stops[i]
        # a token is predicted by the slot of the token before it
        slot_of.append(nodes[starts[i] - 1 : stop - 1])
        token_of.append(np.asarray(sequence[starts[i] : stop], dtype=np.int64))
    # Sequences that share a prefix share its slots: M distinct ones for J tokens
    slots, rows = np.unique(np.concatenate(slot_of), return_inverse=True)  # (M,), (J,)
    tokens = np.concatenate(token_of)

    # Pairs in the order of slots, so that the forward's output is read from front to back
    order = np.argsort(rows, kind="stable")
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return (
        torch.from_numpy(slots),
        torch.from_numpy(rows[order]),
        torch.from_numpy(tokens[order]),
        torch.from_numpy(inverse),
    )


class GroupOutput(NamedTuple):
    """What one forward over a micro-batch of groups gives."""

    logps: Tensor  # (B, G, L), 0 where masked
    children: Tensor | None  # (J, F) log-probabilities of the legal children at each pair
    target_logps: Tensor | None  # (B, L) of the targets' tokens


@dataclass
class GroupBatch:
    """Prompts with the prefix trees of their completions, ready for any model's forward.

    G' is G, or G + 1 with the prompt's target laid out as one more completion.
    """

    tree: TokenTree
    slots: Tensor  # (M,) the slots whose next-token distribution is needed
    pair_rows: Tensor  # (J,) ascending, into slots
    pair_tokens: Tensor  # (J,)
    pair_children: Tensor  # (J, F) token ids of the legal children at each pair, -1 where fewer
    scatter: Tensor  # (B * G' * L,) which pair holds each log-probability, -1 where masked
    mask: Tensor  # (B, G, L)
    shape: tuple[int, int, int]  # B, G', L

    @classmethod
    def make(
        cls,
        prompts: Sequence[Sequence[int]],
        nodes: Tensor,
        alive: Tensor,
        trie: SidTrie,
        share: bool = True,
        targets: Sequence[int] | None = None,
        given: Sequence[int] | None = None,
    ) -> GroupBatch:
        """Lay out groups of completions.

        Args:
            prompts: B lists of token ids.
            nodes: ``(B, G)`` leaf nodes of the completions.
            alive: ``(B, G)`` False where there is no completion.
            trie: the catalogue.
            share: False for models that take no token trees.
            targets: item of each prompt, laid out as one more completion for the likelihood term.
            given: levels of each group's completions that belong to the prompt: no tokens of its
                ``mask``.
        """
        # The target's own tokens share the prompt, and often a prefix, with the completions
        device = nodes.device
        group = nodes.shape[1]
        if targets is not None:
            leaves = torch.from_numpy(trie.leaf_of_item)[list(targets)].to(device)
            target_nodes = trie.leaf_node[leaves].long()[:, None]
            nodes = torch.cat([nodes, target_nodes], dim=1)
            alive = torch.cat([alive, torch.ones_like(target_nodes, dtype=torch.bool)], dim=1)
        paths = trie.path(nodes, trie.num_levels).cpu().numpy()  # (B, G', L), 0 behind short SIDs
        # The root is node 0, so a place behind the end of a short SID shows as 0
        mask = (paths > 0) & alive.cpu().numpy()[..., None]

        # One sequence per completion: its prompt, then the tokens on the way to its leaf
        code = trie.code.cpu().numpy()
        parent = trie.parent.cpu().numpy()
        tokens_of_level = [tokens.cpu().numpy() for tokens in trie.level_tokens]
        sequences: list[list[int]] = []
        starts: list[int] = []
        above: list[int] = []  # the node under which each token was chosen
        for b, completions in enumerate(paths):
            for g, path in enumerate(completions):
                visited = path[mask[b, g]]
                if not len(visited):
                    continue
                sequence = list(prompts[b])
                for level, node in enumerate(visited):
                    sequence.append(int(tokens_of_level[level][code[node]]))
                sequences.append(sequence)
                starts.append(len(prompts[b]))
                above.extend(parent[visited])

        tree = pack_trees([sequence[:-1] for sequence in sequences], share=share)
        slots, pair_rows, pair_tokens, inverse = label_pairs(tree, sequences, starts)
        # Sequences are in the order of (b, g, level), pairs in that of slots
        above_of_pair = np.empty(len(above), dtype=np.int64)
        above_of_pair[inverse.numpy()] = above
        # From pairs back to (b, g, level)
        scatter = np.full(mask.shape, -1, dtype=np.int64)
        scatter[mask] = inverse.numpy()
        # What a hint decided was read, but is not the policy's own choice
        chosen = mask[:, :group]
        if given is not None:
            levels = np.arange(mask.shape[-1])
            chosen = chosen & (levels >= np.array(given)[:, None])[:, None]
        return cls(
            tree=tree.to(device),
            slots=slots.to(device),
            pair_rows=pair_rows.to(device),
            pair_tokens=pair_tokens.to(device),
            pair_children=torch.from_numpy(trie.child_tokens(above_of_pair)).to(device),
            scatter=torch.from_numpy(scatter.reshape(-1)).to(device),
            mask=torch.from_numpy(chosen).to(device),
            shape=mask.shape,
        )

    def forward(self, model: nn.Module, normalize: str, with_children: bool) -> GroupOutput:
        """Log-probabilities of every completion token, in one forward.

        Args:
            model: with ``enable_trees``.
            normalize: ``vocab`` or ``trie``: what the log-probabilities are normalised over.
            with_children: also give those of all legal children, for the exact KL.
        """
        # Children are computed once, for whichever of both needs them
        needs_children = with_children or normalize == "trie"

        def readout(hidden: Tensor, head: OutputHead | LogitsHead) -> tuple[Tensor, Tensor | None]:
            children = None
            if needs_children:
                children = children_logps(hidden, head, self.pair_rows, self.pair_children)
            if normalize == "trie":
                return pick_child(children, self.pair_children, self.pair_tokens), children
            return vocab_logps(hidden, head, self.pair_rows, self.pair_tokens), children

        pairs, children = model(tree=self.tree, slots=self.slots, readout=readout)
        logps = self._scattered(pairs)  # (B, G', L)
        group = self.mask.shape[1]
        has_targets = self.shape[1] > group
        return GroupOutput(logps[:, :group], children, logps[:, -1] if has_targets else None)

    def spread(self, per_pair: Tensor) -> Tensor:
        """Values of the pairs ``(J,)`` to the completions' tokens, ``(B, G, L)``."""
        return self._scattered(per_pair)[:, : self.mask.shape[1]]

    def _scattered(self, per_pair: Tensor) -> Tensor:
        """``(J,)`` -> ``(B, G', L)``, 0 where masked."""
        found = per_pair[self.scatter.clamp(min=0)]
        return torch.where(self.scatter >= 0, found, 0.0).view(self.shape)
