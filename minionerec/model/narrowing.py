"""What a search may not step onto: masks of the catalogue, and a few leaves of each prompt's own.

Shapes: B prompts, W beams, F children of a trie node, X excluded nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minionerec.catalogue.masks import Mask
from minionerec.catalogue.trie import SidTrie


class Narrowing:
    """The filters of one batch of prompts.

    Each prompt may have a mask, which prompts may share, and leaves of its own that must not be
    returned. Neither costs more with a larger catalogue.
    """

    def __init__(
        self,
        trie: SidTrie,
        excluded: Sequence[Sequence[int]] | None,
        masks: Sequence[Mask | None] | None,
    ):
        self.trie = trie
        self._rows_of_mask: dict[Mask, list[int]] = {}
        for row, mask in enumerate(masks or ()):
            if mask is not None:
                rows = self._rows_of_mask.setdefault(mask, [])
                rows.append(row)
        self._own: list[tuple[Tensor, Tensor]] = []
        if excluded is not None and any(excluded):
            self._own = self._nodes_without_leaves(excluded, masks)

    @classmethod
    def of(
        cls,
        trie: SidTrie,
        excluded: Sequence[Sequence[int]] | None,
        masks: Sequence[Mask | None] | None,
    ) -> Narrowing | None:
        """The filters of a batch; None where nothing is filtered.

        Args:
            trie: what is searched.
            excluded: per prompt, leaves.
            masks: per prompt, what may be returned; None: everything.
        """
        has_masks = masks is not None and any(mask is not None for mask in masks)
        if not has_masks and not (excluded is not None and any(excluded)):
            return None
        return cls(trie, excluded, masks)

    def forbidden(self, nodes: Tensor, level: int) -> Tensor:
        """Which children of ``(B, W)`` nodes of a depth must not be stepped onto, ``(B, W, F)``.

        Places without a child hold anything.
        """
        fan_out = max(1, self.trie.fan_out[level])
        forbidden = torch.zeros(*nodes.shape, fan_out, dtype=torch.bool, device=nodes.device)
        for mask, rows in self._rows_of_mask.items():
            first_child = self.trie.first_child.index_select(0, nodes[rows].flatten())
            allowed = mask.of_children(first_child, fan_out)
            forbidden[rows] = ~allowed.view(len(rows), -1, fan_out)
        if self._own:
            parents, places = self._own[level]  # (B, X)
            # A beam at the parent of an excluded node must not take that child
            prompt, beam, which = (nodes[..., None] == parents[:, None]).nonzero(as_tuple=True)
            forbidden[prompt, beam, places[prompt, which]] = True
        return forbidden

    def _nodes_without_leaves(
        self, excluded: Sequence[Sequence[int]], masks: Sequence[Mask | None] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Per level, parents ``(B, X)`` of nodes that lead to nothing, and which child each is.

        Nothing means: only to leaves that are excluded or masked.
        """
        trie = self.trie
        parent = trie.parent.cpu().numpy()
        first_child = trie.first_child.cpu().numpy()
        leaf_node = trie.leaf_node.cpu().numpy()
        everything = np.ones(len(parent), dtype=bool)
        dead_of_prompt = []
        for row, leaves in enumerate(excluded):
            mask = masks[row] if masks is not None else None
            alive = everything if mask is None else mask.on_host
            dead = {int(leaf_node[leaf]) for leaf in leaves}
            # Upwards, level by level: a node dies with the last of its children
            frontier = set(dead)
            while frontier:
                above = {int(parent[node]) for node in frontier} - {0, -1}
                frontier = set()
                for node in above - dead:
                    children = np.arange(first_child[node], first_child[node + 1])
                    living = children[alive[children]]
                    if dead.issuperset(living.tolist()):
                        frontier.add(node)
                dead |= frontier
            dead_of_prompt.append(np.array(sorted(dead), dtype=np.int64))

        tables = []
        for start, end in zip(trie.depth_start[1:], trie.depth_start[2:], strict=False):
            here = [dead[(dead >= start) & (dead < end)] for dead in dead_of_prompt]
            shape = (len(here), max(map(len, here)))
            # -1 is no beam's node: behind a prompt's last dead node nothing is found
            parents = np.full(shape, -1)
            places = np.zeros(shape, dtype=np.int64)
            for row, nodes in enumerate(here):
                above_nodes = parent[nodes]
                parents[row, : len(nodes)] = above_nodes
                places[row, : len(nodes)] = nodes - first_child[above_nodes]
            device = trie.leaf_node.device
            on_device = torch.from_numpy(parents).to(device)
            tables.append((on_device, torch.from_numpy(places).to(device)))
        return tables
