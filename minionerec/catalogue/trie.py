"""The trie of all SIDs, which makes the catalogue the action space."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minionerec.catalogue.compact import IntRows


class SidTrie:
    """Prefix tree over the catalogue as integer tables: which code may follow a partial SID.

    Nodes are numbered level by level in lexicographic order with the root 0, so the children of a
    node are the consecutive nodes ``first_child[node] .. first_child[node + 1] - 1``. A leaf is one
    SID; items that share a SID share the leaf. Only what is in the tables can be reached: a partial
    SID that no item has leads nowhere.

    Tables (int32, all on one device): ``first_child`` (nodes + 1,), ``code`` (nodes,), ``parent``
    (nodes,), ``leaf`` (nodes,) with -1 for inner nodes, ``leaf_node`` (leaves,). ``depth_start[d]``
    is the first node of depth d; ``fan_out[d]`` the most children that a node of depth d has.
    ``leaf_of_item`` (N,) stays on the host. ``has_choice`` (nodes,) bool: whether more than one SID
    lies below a node.

    Args:
        codes: the SID of each item, by item index; an array is ``(N, L)`` with -1 behind shorter
            SIDs.
        level_token_ids: for each level the token id of each code; codes themselves if left out.

    Example:
        >>> trie = SidTrie([(0, 1), (0, 2), (3, 1)])
        >>> trie.children(0), trie.children(1), trie.find((0, 2)), trie.find((7,))
        ([0, 3], [1, 2], 4, None)
    """

    def __init__(
        self,
        codes: Sequence[Sequence[int]] | np.ndarray,
        level_token_ids: Sequence[Sequence[int]] | None = None,
    ):
        table = _padded(codes)  # (N, L), -1 behind shorter SIDs
        self.num_items, self.num_levels = table.shape
        sizes = [int(column.max()) + 1 for column in table.T]
        levels = level_token_ids if level_token_ids is not None else [range(size) for size in sizes]
        self.level_tokens = [
            torch.tensor(list(tokens), dtype=torch.long) for tokens in levels[: self.num_levels]
        ]
        self.has_short_sids = bool(table.min() < 0)  # some SID has fewer levels
        rows = _sort_rows(table, sizes, self.has_short_sids)
        code, parent, node_of_row, self.depth_start = _number_nodes(
            rows, self.num_levels, self.has_short_sids
        )
        counts = np.bincount(parent[1:], minlength=len(code))  # children of each node
        self.fan_out = [
            int(counts[a:b].max(initial=0))
            for a, b in zip(self.depth_start, self.depth_start[1:], strict=False)
        ]
        self._number_leaves(rows.order, node_of_row, len(code))
        first_child = _running_total(counts) + np.int32(1)
        widest = max(1, *self.fan_out)
        # What a step reads are runs of these tables, so each ends in as many entries as the longest
        # run has.
        self._code = torch.from_numpy(np.pad(code, (0, widest)))
        self._node = torch.arange(len(code) + widest, dtype=torch.int32).clamp_(max=len(code) - 1)
        self._legal = torch.arange(2 * widest) < widest  # W times yes, then W times no
        self._legal_start = torch.from_numpy(
            widest - counts.astype(np.int32)
        )  # from here on: count times yes, then no
        self.first_child, self.parent = torch.from_numpy(first_child), torch.from_numpy(parent)
        self.has_choice = torch.from_numpy(self._find_choices(counts, parent))
        self._cut_runs()

    def _find_choices(self, counts: np.ndarray, parent: np.ndarray) -> np.ndarray:
        """``(nodes,)`` bool: a node with several children, and whatever is above one."""
        found = counts > 1
        starts = self.depth_start[-3:0:-1]  # of the depths that have both parents and children
        ends = self.depth_start[-2:1:-1]
        for start, end in zip(starts, ends, strict=True):
            below = parent[start:end][found[start:end]]
            found[below] = True
        return found

    def _number_leaves(
        self,
        order: np.ndarray,
        node_of_row: np.ndarray,
        num_nodes: int,
    ) -> None:
        """The tables that say which items a leaf has.

        Rows are the items in the order of their SIDs.
        """
        is_leaf = np.zeros(num_nodes, dtype=bool)
        is_leaf[node_of_row] = True
        leaf = np.cumsum(is_leaf, dtype=np.int32) - np.int32(1)
        leaf_of_row = leaf[node_of_row]
        leaf[~is_leaf] = -1
        self.leaf, self.leaf_node = (
            torch.from_numpy(leaf),
            torch.from_numpy(np.flatnonzero(is_leaf).astype(np.int32)),
        )
        self.leaf_of_item = np.empty(self.num_items, dtype=np.int32)
        self.leaf_of_item[order] = leaf_of_row
        # Leaves are numbered by depth first: rows follow that order unless SIDs differ in length.
        self._leaf_items = (
            order[np.argsort(leaf_of_row, kind="stable")] if self.has_short_sids else order
        )
        self._leaf_start = _running_total(np.bincount(leaf_of_row, minlength=len(self.leaf_node)))

    def _cut_runs(self) -> None:
        """Views in which entry ``[i, j]`` is entry ``i + j`` of a table.

        A row of F children is one copy, not F look-ups.
        """

        def runs(table: Tensor, width: int) -> Tensor:
            return table.as_strided((len(table) - width + 1, width), (1, 1))

        self.code = self._code[: len(self.parent)]
        tables = (self._node, self._legal, self._code)
        self._runs = [
            tuple(runs(table, max(1, width)) for table in tables)
            for width in self.fan_out[: self.num_levels]
        ]
        largest = max(map(len, self.level_tokens))
        self._clamped = [len(tokens) < largest for tokens in self.level_tokens]

    @property
    def num_leaves(self) -> int:
        """Distinct SIDs."""
        return len(self.leaf_node)

    @property
    def nbytes(self) -> int:
        """Bytes that all tables hold, on the device and on the host."""
        tensors = [getattr(self, name) for name in self._TABLES] + self.level_tokens
        arrays = (self.leaf_of_item, self._leaf_items, self._leaf_start)
        return sum(t.numel() * t.element_size() for t in tensors) + sum(a.nbytes for a in arrays)

    _TABLES = (
        "first_child",
        "parent",
        "leaf",
        "leaf_node",
        "_code",
        "_node",
        "_legal",
        "_legal_start",
        "has_choice",
    )

    def to(self, device: torch.device | str) -> SidTrie:
        """Move every table; returns self."""
        for name in self._TABLES:
            setattr(self, name, getattr(self, name).to(device))
        self.level_tokens = [tokens.to(device) for tokens in self.level_tokens]
        self._cut_runs()
        return self

    def expand(self, nodes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """One step of a decode: the children of every node, F places each.

        Seven gathers and copies on the tables' device, whatever the catalogue's size; nothing waits
        for the host.

        Args:
            nodes: ``(...,)`` of any integer type. Meant are nodes of depth ``level``; every other
                has no place for more
                than F children, and a leaf has none.
            level: 0 to L - 1; F is ``max(1, fan_out[level])``.

        Returns:
            child nodes ``(..., F)`` int32; whether there is such a child ``(..., F)`` bool; the
            children's codes ``(..., F)`` int32. Where there is no child, node and code are some
            other node's: valid indices without meaning.
        """
        node_runs, legal_runs, code_runs = self._runs[level]
        flat, shape = nodes.reshape(-1), (*nodes.shape, node_runs.shape[1])
        start = self.first_child.index_select(0, flat)
        legal = legal_runs.index_select(0, self._legal_start.index_select(0, flat))
        codes = code_runs.index_select(0, start)
        if self._clamped[level]:
            codes.clamp_(max=len(self.level_tokens[level]) - 1)
        return node_runs.index_select(0, start).view(shape), legal.view(shape), codes.view(shape)

    def items_of_leaf(self, leaf: int) -> list[int]:
        """Item indexes that share this SID, in item order; one item unless SIDs collide."""
        return self._leaf_items[self._leaf_start[leaf] : self._leaf_start[leaf + 1]].tolist()

    def first_and_other_items(self) -> tuple[np.ndarray, np.ndarray]:
        """The first item of every leaf, ``(leaves,)``, and all items that share a leaf with one."""
        is_first = np.zeros(self.num_items, dtype=bool)
        is_first[self._leaf_start[:-1]] = True
        return self._leaf_items[is_first], self._leaf_items[~is_first]

    def items_of_leaves(
        self,
        leaves: Sequence[int],
        scores: Sequence[float],
        left_out: Collection[int] = (),
        allowed: np.ndarray | None = None,
    ) -> tuple[list[int], list[float]]:
        """A ranked list of SIDs as a ranked list of items, each with its SID's score.

        Items that share a SID all stand at its place, in item order.

        Args:
            leaves: best first; -1 where there is no further one.
            scores: of the leaves.
            left_out: items that the list must not hold.
            allowed: ``(N,)`` bool, items that it may hold; None: all.
        """
        items: list[int] = []
        item_scores: list[float] = []
        left_out = set(left_out)  # of a history, which may be long and is a list
        for leaf, score in zip(leaves, scores, strict=True):
            if leaf < 0:
                continue
            for item in self.items_of_leaf(leaf):
                if item not in left_out and (allowed is None or allowed[item]):
                    items.append(item)
                    item_scores.append(score)
        return items, item_scores

    def leaves_only_of(
        self, items: Collection[int], allowed: np.ndarray | None = None
    ) -> list[int]:
        """Leaves that hold none but these items, ascending.

        To exclude items, exclude these leaves: a SID that an excluded item shares with another must
        stay reachable for that one.

        Args:
            items: to exclude.
            allowed: ``(N,)`` bool; items that may not be recommended anyway need no leaf. None: all
                may.
        """
        unwanted = set(items)
        leaves = set()
        for item in unwanted:
            leaf = int(self.leaf_of_item[item])
            for other in self.items_of_leaf(leaf):
                if other not in unwanted and (allowed is None or allowed[other]):
                    break
            else:
                leaves.add(leaf)
        return sorted(leaves)

    def path(self, nodes: Tensor, num_levels: int) -> Tensor:
        """Nodes from depth 1 down to the given nodes.

        ``(...,)`` -> ``(..., num_levels)``, root (0) where the node is less deep.
        """
        steps = [nodes]
        for _ in range(num_levels - 1):
            steps.append(self.parent[steps[-1].long()].clamp(min=0))
        upwards = torch.stack(steps, dim=-1)  # node, parent, ..., root ...
        depth = (upwards > 0).sum(-1, keepdim=True)
        position = torch.arange(num_levels, device=nodes.device).expand(upwards.shape)
        return torch.where(
            position < depth, upwards.gather(-1, (depth - 1 - position).clamp(min=0)), 0
        )

    def child_tokens(self, nodes: np.ndarray) -> np.ndarray:
        """Token ids of the legal children of each inner node.

        ``(J,)`` -> ``(J, F)``, -1 where there are fewer than F.
        """
        first_child, code = self.first_child.cpu().numpy(), self.code.cpu().numpy()
        counts = first_child[nodes + 1] - first_child[nodes]
        offsets = np.arange(counts.max(initial=1))
        legal = offsets < counts[:, None]
        child = np.where(legal, first_child[nodes][:, None] + offsets, 1)
        width = max(map(len, self.level_tokens))
        table = np.stack(
            [np.pad(tokens.cpu().numpy(), (0, width - len(tokens))) for tokens in self.level_tokens]
        )
        level = np.searchsorted(np.array(self.depth_start[1:]), nodes, side="right")
        return np.where(legal, table[level[:, None], np.where(legal, code[child], 0)], -1)

    def item_path(self, item: int) -> list[int]:
        """Nodes from depth 1 down to the item's leaf."""
        nodes = [int(self.leaf_node[self.leaf_of_item[item]])]
        while int(self.parent[nodes[0]]) > 0:
            nodes.insert(0, int(self.parent[nodes[0]]))
        return nodes

    def item_paths(self) -> IntRows:
        """``item_path`` of every item, in one table."""
        leaves = torch.from_numpy(self.leaf_of_item).long().to(self.leaf_node.device)
        paths = self.path(self.leaf_node[leaves], self.num_levels).cpu().numpy()  # (N, L)
        return IntRows(np.where(paths > 0, paths, -1))

    def children(self, node: int) -> list[int]:
        """Codes that may follow this node, ascending."""
        return self.code[int(self.first_child[node]) : int(self.first_child[node + 1])].tolist()

    def find(self, codes: Sequence[int]) -> int | None:
        """The node of a partial SID; None if no item begins so."""
        node = 0
        for code in codes:
            start, children = int(self.first_child[node]), self.children(node)
            if code not in children:
                return None
            node = start + children.index(code)
        return node


class _Rows(NamedTuple):
    """The items in the order of their SIDs."""

    order: np.ndarray  # (N,) int32 item of each row; equal SIDs in item order
    first_new: np.ndarray  # (N,) int8 first level that differs from the row before; L: none
    code_at: Callable[
        [int, np.ndarray | slice], np.ndarray
    ]  # (level, rows) -> codes, -1 behind shorter SIDs


def _sort_rows(
    table: np.ndarray,
    sizes: Sequence[int],
    has_short_sids: bool,
) -> _Rows:
    """Sort ``(N, L)`` codes below ``sizes``.

    A SID and its item number in one integer sort far faster than columns do.
    """
    num_items, num_levels = table.shape
    lift = int(has_short_sids)  # makes the -1 of a missing level a 0
    bits = [(size - 1 + lift).bit_length() for size in sizes]
    item_bits = (num_items - 1).bit_length()
    if sum(bits) + item_bits > 63:
        return _sort_rows_by_column(table)
    key = np.empty(num_items, dtype=np.int64)
    for start in range(0, num_items, 1 << 16):  # in blocks that stay in the cache
        block = key[start : start + (1 << 16)]
        block[:] = 0
        for level, width in enumerate(bits):
            block <<= width
            block += table[start : start + len(block), level]
            block += lift
        block <<= item_bits
        block += np.arange(start, start + len(block))
    key.sort()
    order = (key & ((1 << item_bits) - 1)).astype(np.int32)
    key >>= item_bits
    shifts = [sum(bits[level + 1 :]) for level in range(num_levels)]
    first_new = np.zeros(num_items, dtype=np.int8)
    difference = key[1:] ^ key[:-1]
    for shift in shifts:
        first_new[1:] += difference < (1 << shift)  # equal up to and including this level

    def code_at(level: int, rows: np.ndarray | slice) -> np.ndarray:
        return ((key[rows] >> shifts[level]) & ((1 << bits[level]) - 1)) - lift

    return _Rows(order, first_new, code_at)


def _sort_rows_by_column(table: np.ndarray) -> _Rows:
    """The same for SIDs that do not fit into 63 bits together with an item number."""
    order = np.lexsort(table.T[::-1])
    table = table[order]
    first_new = np.zeros(len(table), dtype=np.int8)
    first_new[1:] = np.logical_and.accumulate(table[1:] == table[:-1], axis=1).sum(axis=1)
    return _Rows(order.astype(np.int32), first_new, lambda level, rows: table[rows, level])


def _number_nodes(
    rows: _Rows, num_levels: int, has_short_sids: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Number the nodes of the tree.

    Returns:
        ``code`` (nodes,), ``parent`` (nodes,), the leaf's node of each row (N,), the first node of
        each depth (L + 2).
    """
    codes, parents, depth_start = [np.array([-1])], [np.array([-1])], [0, 1]
    above = np.zeros(len(rows.order), dtype=np.int32)  # each row's node one level up
    for level in range(num_levels):
        new = rows.first_new <= level
        if has_short_sids:
            inside = rows.code_at(level, slice(None)) >= 0
            new &= inside
        starts = np.flatnonzero(new)
        codes.append(rows.code_at(level, starts).astype(np.int32))
        parents.append(above[starts])
        here = new.astype(np.int32)
        here[0] += depth_start[-1] - 1
        np.cumsum(here, out=here)
        above = np.where(inside, here, above) if has_short_sids else here
        depth_start.append(depth_start[-1] + len(starts))
    return (
        np.concatenate(codes, dtype=np.int32),
        np.concatenate(parents, dtype=np.int32),
        above,
        depth_start,
    )


def _running_total(counts: np.ndarray) -> np.ndarray:
    """``(n,)`` -> ``(n + 1,)`` int32: how many came before each entry, and all of them."""
    total = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=total[1:])
    return total


def _padded(codes: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    if isinstance(codes, np.ndarray):
        return (
            codes if codes.dtype.itemsize < 4 or codes.dtype == np.int32 else codes.astype(np.int32)
        )
    if not len(codes):
        raise ValueError("a trie needs at least one SID")
    longest = max(map(len, codes))
    return np.array([[*sid, *[-1] * (longest - len(sid))] for sid in codes], dtype=np.int32)
