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
    # (nodes + F,) bool: whether an allowed SID lies below a node, or is it
    on_host: np.ndarray
    nodes: Tensor  # the same on the trie's device

    def of_children(self, first_child: Tensor, fan_out: int) -> Tensor:
        """``(R,)`` first children -> ``(R, F)`` whether they and the nodes behind them may be used.

        A row is one copy of a run of the table, not F look-ups.
        """
        starts = len(self.nodes) - fan_out + 1
        runs = self.nodes.as_strided((starts, fan_out), (1, 1))
        return runs.index_select(0, first_child)


class MaskBuilder:
    """Turns sets of items into masks, from tables that are the same for all masks of a trie."""

    def __init__(self, trie: SidTrie):
        self._device = trie.leaf_node.device
        self._num_nodes = len(trie.parent)
        self._padding = max(1, *trie.fan_out)
        # SIDs of one length have the last nodes, and a slice is far faster than a list
        self._leaf_nodes: slice | np.ndarray = slice(trie.depth_start[-2], self._num_nodes)
        if trie.has_short_sids:
            self._leaf_nodes = trie.leaf_node.cpu().numpy()

        # Nearly always a leaf has one item, so its first one is looked up, then the few others
        first_item, other_items = trie.first_and_other_items()
        self._first_item = torch.from_numpy(first_item)  # (leaves,)
        self._other_items = other_items
        self._leaf_of_other = trie.leaf_of_item[other_items]

        # Per depth, deepest first: the nodes with children, and where their children begin
        first_child = trie.first_child.cpu().numpy()
        self._levels = []
        for depth in reversed(range(trie.num_levels)):
            start = trie.depth_start[depth]
            end = trie.depth_start[depth + 1]
            num_children = np.diff(first_child[start : end + 1])
            inner = start + np.flatnonzero(num_children)
            children = slice(int(first_child[start]), int(first_child[end]))
            begins = first_child[inner] - children.start
            if len(inner):
                self._levels.append((inner, children, begins))

    def build(self, items: np.ndarray) -> Mask:
        """The mask of the items that may be recommended, ``(N,)`` bool."""
        # A SID may be used as soon as one of its items may
        leaves = torch.from_numpy(items).index_select(0, self._first_item).numpy()
        if len(self._other_items):
            others = items[self._other_items]
            leaves[self._leaf_of_other[others]] = True
        nodes = np.zeros(self._num_nodes + self._padding, dtype=bool)
        nodes[self._leaf_nodes] = leaves
        # Upwards: a node may be used as soon as one of its children may
        for parents, children, begins in self._levels:
            nodes[parents] = np.logical_or.reduceat(nodes[children], begins)
        on_device = torch.from_numpy(nodes).to(self._device)
        return Mask(items, nodes, on_device)
