"""Token trees: every prefix that sequences share stands once.

The sequences of a batch (prompt + completion) are merged into prefix trees and laid out as one row
of tokens without padding, parents before children. Layers see that row as any other; only attention
knows the tree (``tree_attention.py``): the row is cut into blocks of queries, and ``Blocks`` says
which keys each of them sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

# Attention costs queries x keys: short blocks see few slots of other branches, long ones read the
# slots above them less often. The lengths between these bounds are weighed in
# ``cheapest_block_length``.
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
        places: ``(T,)`` where in ``queries``, block after block, each query stands; None: only the
            last block is padded.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor
    query_positions: Tensor
    key_positions: Tensor
    places: Tensor | None = None

    def to(self, device: torch.device | str) -> Blocks:
        """The same blocks on another device."""
        return Blocks(
            self.queries.to(device),
            self.keys.to(device),
            self.mask.to(device),
            self.query_positions.to(device),
            self.key_positions.to(device),
            None if self.places is None else self.places.to(device),
        )

    def behind(self, length: int) -> Blocks:
        """The same blocks behind ``length`` cached tokens that everybody sees."""
        cached = torch.arange(length, device=self.keys.device)
        cached = cached.expand(len(self.keys), length)  # (R, length)
        seen = self.mask.new_ones(*self.mask.shape[:2], length)  # (R, Q, length)
        return replace(
            self,
            keys=torch.cat([cached, self.keys + length], dim=1),
            mask=torch.cat([seen, self.mask], dim=2),
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
        blocks: None where every sequence has a row of its own, for models whose attention takes no
            trees.
    """

    input_ids: Tensor
    position_ids: Tensor
    nodes: list[np.ndarray]
    blocks: Blocks | None

    @property
    def packed(self) -> Blocks:
        """The blocks, of a tree that shares prefixes.

        Raises:
            ValueError: every sequence has a row of its own.
        """
        if self.blocks is None:
            raise ValueError("this tree shares nothing, it has no blocks")
        return self.blocks

    def to(self, device: torch.device | str) -> TokenTree:
        """The same tree on another device."""
        return TokenTree(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.nodes,
            None if self.blocks is None else self.blocks.to(device),
        )


def pack_trees(
    sequences: Sequence[Sequence[int]], share: bool = True, block_length: int | None = None
) -> TokenTree:
    """Merge common prefixes.

    Args:
        sequences: token ids.
        share: False gives every sequence a padded row of its own.
        block_length: queries of an attention block; by default those with the least work.
    """
    # Models that mix tokens by other means than attention need rows of their own
    if not share:
        return _separate_rows(sequences)
    # In lexicographic order every sequence shares as much as it can with the one before it
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    # The row under construction: of each slot its token, its depth and the slot above it
    tokens: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    nodes = [np.empty(0, dtype=np.int64)] * len(sequences)
    before: Sequence[int] = []
    path: list[int] = []  # slots of the sequence before
    for i in order:
        sequence = sequences[i]
        shared = common_prefix(before, sequence)
        # Only what the sequence before does not have gets slots; the first of them hangs on what
        # both share
        new = range(len(tokens), len(tokens) + len(sequence) - shared)
        if new:
            parents += [path[shared - 1] if shared else -1, *new[:-1]]
        tokens += sequence[shared:]
        depths += range(shared, len(sequence))
        path = path[:shared] + list(new)
        nodes[i] = np.array(path, dtype=np.int64)
        before = sequence
    length = block_length or cheapest_block_length(depths)
    blocks = _blocks(np.array(parents), np.array(depths), length)
    return TokenTree(torch.tensor(tokens), torch.tensor(depths), nodes, blocks)


def cheapest_block_length(depths: Sequence[int]) -> int:
    """The number of queries per attention block with the fewest query-key pairs, padding included.

    The keys of a block are its own slots and those above its first one, of which there are
    ``depths[first]``.
    """

    def pairs(length: int) -> int:
        blocks = -(-len(depths) // length)  # rounded up
        above = _aligned(max(depths[::length]))
        return blocks * length * (length + above)

    # One block for all, two to eight of equal length, or any of a grid of lengths
    whole = _aligned(len(depths))
    even = [_aligned(whole // blocks + 1) for blocks in range(2, 9)]
    candidates = [whole, *even, *range(8 * ALIGNMENT, 64 * ALIGNMENT, 4 * ALIGNMENT)]
    longest = min(whole, LONGEST_BLOCK)
    return min((length for length in candidates if length <= longest), key=pairs)


def _aligned(slots: int) -> int:
    return -(-slots // ALIGNMENT) * ALIGNMENT


def _blocks(parents: np.ndarray, depths: np.ndarray, length: int) -> Blocks:
    """Blocks of ``length`` consecutive slots.

    Args:
        parents: ``(T,)`` slot of the parent, -1 for a root; always further left.
        depths: ``(T,)``.
        length: Q.
    """
    first = np.arange(0, len(parents), length)  # (R,) first slot of each block
    slots = first[:, None] + np.arange(length)  # (R, Q)
    real = slots < len(parents)
    queries = np.where(real, slots, 0)

    # What stands above a block's first slot, from the root down; all blocks climb at the same time.
    # Every later slot of the block hangs on one of these or on a slot of the block itself.
    depth = _aligned(int(depths[first].max()))
    above = np.zeros((len(first), depth), dtype=np.int64)  # (R, depth)
    rows = np.arange(len(first))
    slot = parents[first]
    while (slot >= 0).any():
        rows, slot = rows[slot >= 0], slot[slot >= 0]
        above[rows, depths[slot]] = slot
        slot = parents[slot]

    # The block's keys are [above | own slots]; each one's parent as a column of them
    parent = parents[queries]  # (R, Q)
    in_block = depth + parent - first[:, None]
    in_above = depths[queries] - 1
    local = np.where(parent >= first[:, None], in_block, in_above)
    local = np.where(real, local, -1)
    chain = np.broadcast_to(np.arange(depth) - 1, above.shape)  # each hangs on the one before
    mask = ancestors(np.concatenate([chain, local], axis=1))[:, depth:]  # (R, Q, K)

    keys = np.concatenate([above, queries], axis=1)  # (R, K)
    return Blocks(
        queries=torch.from_numpy(queries),
        keys=torch.from_numpy(keys),
        mask=torch.from_numpy(mask),
        query_positions=torch.from_numpy(depths[queries]),
        key_positions=torch.from_numpy(depths[keys]),
    )


def ancestors(parents: np.ndarray) -> np.ndarray:
    """Which slots are above which.

    Args:
        parents: ``(R, S)`` parent slot of every slot, -1 for none; always further left.

    Returns:
        ``(R, S, S)`` bool, for each slot itself and what is above it.
    """
    rows, width = parents.shape
    # A slot is above whatever its parent is above, and parents come first: one pass from left to
    # right. The last row stands for "no parent", which -1 picks.
    above = np.zeros((rows, width + 1, width), dtype=bool)
    everyone = np.arange(rows)
    for slot in range(width):
        above[:, slot] = above[everyone, parents[:, slot]]
        above[:, slot, slot] = True
    return above[:, :width]


def _separate_rows(sequences: Sequence[Sequence[int]]) -> TokenTree:
    # Padding on the right: a causal model never sees it from the left
    width = max(len(sequence) for sequence in sequences)
    rows = []
    nodes = []
    for row, sequence in enumerate(sequences):
        padding = [0] * (width - len(sequence))
        rows.append([*sequence, *padding])
        nodes.append(row * width + np.arange(len(sequence)))
    ids = torch.tensor(rows)
    return TokenTree(ids, torch.arange(width).expand_as(ids), nodes, None)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
