"""Filters as masks over a trie: which of its nodes lead to an item that may be recommended.

A search that steps only onto such nodes never spends a beam on a dead end: a beam keeps at least
one allowed SID below it, so W beams end on W allowed items whenever there are as many.

Shapes: N items, W beams, F children of a trie node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minionerec.catalogue.trie import SidTrie


@dataclass(frozen=True, eq=False)
class Mask:
    """What may be recommended of one catalogue. Make one with ``MaskBuilder.build``."""

    items: np.ndarray  # (N,) bool, by item index
    # (nodes + F,) bool on the trie's device: whether an allowed SID lies below a node, or is it
    nodes: Tensor

    def of_children(self, first_child: Tensor, fan_out: int) -> Tensor:
        """``(R,)`` first children -> ``(R, F)`` whether they and the nodes behind them may be used.

        A row is one copy of a run of the table, not F look-ups.
        """
        runs = self.nodes.as_strided((len(self.nodes) - fan_out + 1, fan_out), (1, 1))
        return runs.index_select(0, first_child)


class MaskBuilder:
    """Turns sets of items into masks, from tables that are the same for all masks of a trie."""

    def __init__(self, trie: SidTrie):
        self._device = trie.leaf_node.device
        self._num_nodes = len(trie.parent)
        self._padding = max(1, *trie.fan_out)
        self._leaf_node = trie.leaf_node.cpu().numpy()

        # Nearly always a leaf has one item, so its first one is looked up, then the few others
        first_item, other_items = trie.first_and_other_items()
        self._first_item = torch.from_numpy(first_item)  # (leaves,)
        self._other_items = other_items
        self._leaf_of_other = trie.leaf_of_item[other_items]

        # Per depth, deepest first: the nodes with children, and where their children begin
        first_child = trie.first_child.cpu().numpy()
        self._levels = []
        depths = list(zip(trie.depth_start, trie.depth_start[1:], strict=False))
        for start, end in reversed(depths[:-1]):
            has_children = first_child[start + 1 : end + 1] > first_child[start:end]
            inner = start + np.flatnonzero(has_children)
            if len(inner):
                children = slice(int(first_child[start]), int(first_child[end]))
                begins = first_child[inner] - children.start
                is_run = len(inner) == end - start  # then a slice is faster than a list
                self._levels.append((slice(start, end) if is_run else inner, children, begins))

    def build(self, items: np.ndarray) -> Mask:
        """The mask of the items that may be recommended, ``(N,)`` bool."""
        # A SID may be used as soon as one of its items may
        leaves = torch.from_numpy(items).index_select(0, self._first_item).numpy()
        if len(self._other_items):
            leaves[self._leaf_of_other[items[self._other_items]]] = True
        nodes = np.zeros(self._num_nodes + self._padding, dtype=bool)
        last = self._num_nodes - len(leaves)
        if self._leaf_node[0] == last:  # all leaves are as deep: they are the last nodes
            nodes[last : self._num_nodes] = leaves
        else:
            nodes[self._leaf_node] = leaves
        # Upwards: a node may be used as soon as one of its children may
        for parents, children, begins in self._levels:
            nodes[parents] = np.logical_or.reduceat(nodes[children], begins)
        return Mask(items, torch.from_numpy(nodes).to(self._device))
