"""Semantic IDs: the table item -> codes, its tokens, and the trie that makes the catalogue the action space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minionerec.config import UserError

SIDS_FILE = "sids.json"
LEVELS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class SidTable:
    """The SID of every item, in the order of the item indexes.

    ``codes`` may differ in length between items (``collision: extra_level``), but no SID is the beginning of another.
    """

    item_ids: list[str]
    codes: list[tuple[int, ...]]
    codebook_sizes: list[int]
    sha256: str

    def tokens(self) -> list[str]:
        """Every SID token of every level, ``<a_0> <a_1> ... <b_0> ...``, used by an item or not."""
        return [f"<{LEVELS[level]}_{code}>" for level, size in enumerate(self.codebook_sizes) for code in range(size)]

    def token_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Each item's SID as token ids.

        Raises:
            UserError: the tokenizer does not know a SID token: it belongs to another catalogue.
        """
        levels = self.level_token_ids(tokenizer)
        return [[levels[level][code] for level, code in enumerate(codes)] for codes in self.codes]

    def level_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """For each level, the token id of each of its codes."""
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in self.tokens() if token not in vocabulary]
        if missing:
            raise UserError(f"the tokenizer lacks {len(missing)} SID tokens ({missing[0]}, ...): this model was trained on other "
                            f"SIDs than {self.sha256[:12]}; run the stage that trained it again")
        return [[vocabulary[f"<{LEVELS[level]}_{code}>"] for code in range(size)] for level, size in enumerate(self.codebook_sizes)]


def load_sids(path: Path, item_ids: Sequence[str] | None = None) -> SidTable:
    """Read and check ``sids.json``.

    Args:
        path: the file.
        item_ids: the catalogue whose order the table takes; the file's own order by default.

    Raises:
        UserError: naming the item and the value for anything that is not a valid SID of a known item.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
        sids, sizes = content["sids"], [int(size) for size in content["codebook_sizes"]]
    except FileNotFoundError:
        raise UserError(f"{path} not found; run `bash rqvae/rqvae.sh` with the same --config first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not a SID file ({type(error).__name__}: {error}); expected the keys sids and codebook_sizes") from None
    order = list(sids) if item_ids is None else list(item_ids)
    for item_id in order:
        if item_id not in sids:
            raise UserError(f"{path}: item '{item_id}' of the catalogue has no SID; run `bash rqvae/rqvae.sh` again")
    if len(order) != len(sids):
        surplus = next(item_id for item_id in sids if item_id not in set(order))
        raise UserError(f"{path}: item '{surplus}' is not in the catalogue ({len(sids)} SIDs, {len(order)} items); "
                        "run `bash rqvae/rqvae.sh` again")
    codes = [_checked(path, item_id, sids[item_id], sizes) for item_id in order]
    _check_prefix_free(path, order, codes)
    return SidTable(order, codes, sizes, hashlib.sha256(raw).hexdigest())


def _checked(path: Path, item_id: str, codes: object, sizes: list[int]) -> tuple[int, ...]:
    if not isinstance(codes, list) or not 1 <= len(codes) <= len(sizes):
        raise UserError(f"{path}: item '{item_id}': got {codes!r}, expected a list of 1 to {len(sizes)} codes")
    for level, (code, size) in enumerate(zip(codes, sizes, strict=False)):
        if type(code) is not int or not 0 <= code < size:
            raise UserError(f"{path}: item '{item_id}', level {level}: got {code!r}, expected a whole number from 0 to {size - 1}")
    return tuple(codes)


def _check_prefix_free(path: Path, item_ids: list[str], codes: list[tuple[int, ...]]) -> None:
    ordered = sorted(zip(codes, item_ids, strict=True))
    for (shorter, first), (longer, second) in zip(ordered, ordered[1:], strict=False):
        if len(shorter) < len(longer) and longer[: len(shorter)] == shorter:
            raise UserError(f"{path}: the SID of item '{first}' {list(shorter)} is the beginning of item '{second}' {list(longer)}; "
                            "give both the same number of levels")


class SidTrie:
    """Prefix tree over the catalogue as integer tables: which code may follow a partial SID.

    Nodes are numbered level by level in lexicographic order with the root 0, so the children of a node are the
    consecutive nodes ``first_child[node] .. first_child[node + 1] - 1``. A leaf is one SID; items that share a SID share
    the leaf. Only what is in the tables can be reached: a partial SID that no item has leads nowhere.

    Tables (all on one device): ``first_child`` (nodes + 1,), ``code`` (nodes,), ``parent`` (nodes,), ``leaf`` (nodes,)
    with -1 for inner nodes. ``depth_start[d]`` is the first node of depth d; ``fan_out[d]`` the most children that a
    node of depth d has.

    Args:
        codes: the SID of each item, by item index.
        level_token_ids: for each level the token id of each code; codes themselves if left out.

    Example:
        >>> trie = SidTrie([(0, 1), (0, 2), (3, 1)])
        >>> trie.children(0), trie.children(1), trie.find((0, 2)), trie.find((7,))
        ([0, 3], [1, 2], 4, None)
    """

    def __init__(self, codes: Sequence[Sequence[int]] | np.ndarray, level_token_ids: Sequence[Sequence[int]] | None = None):
        table = _padded(codes)                                                            # (N, L), -1 behind shorter SIDs
        self.num_items, self.num_levels = table.shape
        order = np.lexsort(table.T[::-1])
        table = table[order]
        new = np.ones((len(table), self.num_levels), dtype=bool)                          # row starts a new node of this depth
        new[1:] = np.logical_or.accumulate(table[1:] != table[:-1], axis=1)
        new &= table >= 0
        node_code, node_parent, self.depth_start = [np.array([-1])], [np.array([-1])], [0, 1]
        above = np.zeros(len(table), dtype=np.int64)                                      # each row's node one level up
        row_leaf_node = np.zeros(len(table), dtype=np.int64)
        for level in range(self.num_levels):
            starts = np.flatnonzero(new[:, level])
            inside = table[:, level] >= 0
            here = self.depth_start[-1] + np.cumsum(new[:, level]) - 1
            node_code.append(table[starts, level])
            node_parent.append(above[starts])
            row_leaf_node[inside] = here[inside]
            above = np.where(inside, here, above)
            self.depth_start.append(self.depth_start[-1] + len(starts))
        code, parent = np.concatenate(node_code), np.concatenate(node_parent)
        leaf_nodes, leaf_of_row = np.unique(row_leaf_node, return_inverse=True)
        leaf = np.full(len(code), -1, dtype=np.int64)
        leaf[leaf_nodes] = np.arange(len(leaf_nodes))
        first_child = 1 + np.searchsorted(parent[1:], np.arange(len(code) + 1))
        counts = np.diff(first_child)
        self.fan_out = [int(counts[a:b].max(initial=0)) for a, b in zip(self.depth_start, self.depth_start[1:], strict=False)]
        as_tensor = lambda values: torch.from_numpy(values.astype(np.int32))  # noqa: E731
        self.first_child, self.code, self.parent, self.leaf = map(as_tensor, (first_child, code, parent, leaf))
        self.leaf_node = as_tensor(leaf_nodes)
        self.leaf_of_item = np.empty(self.num_items, dtype=np.int64)
        self.leaf_of_item[order] = leaf_of_row
        by_leaf = np.argsort(self.leaf_of_item, kind="stable")
        self._leaf_items, self._leaf_start = by_leaf, np.searchsorted(self.leaf_of_item[by_leaf], np.arange(len(leaf_nodes) + 1))
        self.has_short_sids = bool(leaf_nodes[0] < self.depth_start[self.num_levels])   # some SID has fewer levels
        sizes = table.max(axis=0) + 1
        levels = level_token_ids if level_token_ids is not None else [range(size) for size in sizes]
        self.level_tokens = [torch.tensor(list(tokens), dtype=torch.long) for tokens in levels[: self.num_levels]]

    @property
    def num_leaves(self) -> int:
        """Distinct SIDs."""
        return len(self.leaf_node)

    def to(self, device: torch.device | str) -> SidTrie:
        """Move every table; returns self."""
        for name in ("first_child", "code", "parent", "leaf", "leaf_node"):
            setattr(self, name, getattr(self, name).to(device))
        self.level_tokens = [tokens.to(device) for tokens in self.level_tokens]
        return self

    def items_of_leaf(self, leaf: int) -> list[int]:
        """Item indexes that share this SID, in item order; one item unless SIDs collide."""
        return self._leaf_items[self._leaf_start[leaf]: self._leaf_start[leaf + 1]].tolist()

    def path(self, nodes: Tensor, num_levels: int) -> Tensor:
        """Nodes from depth 1 down to the given nodes: ``(...,)`` -> ``(..., num_levels)``, root (0) where the node is less deep."""
        steps = [nodes]
        for _ in range(num_levels - 1):
            steps.append(self.parent[steps[-1].long()].clamp(min=0))
        upwards = torch.stack(steps, dim=-1)                                               # node, parent, ..., root ...
        depth = (upwards > 0).sum(-1, keepdim=True)
        position = torch.arange(num_levels, device=nodes.device).expand(upwards.shape)
        return torch.where(position < depth, upwards.gather(-1, (depth - 1 - position).clamp(min=0)), 0)

    def child_tokens(self, nodes: np.ndarray) -> np.ndarray:
        """Token ids of the legal children of each inner node: ``(J,)`` -> ``(J, F)``, -1 where there are fewer than F."""
        first_child, code = self.first_child.cpu().numpy(), self.code.cpu().numpy()
        counts = first_child[nodes + 1] - first_child[nodes]
        offsets = np.arange(counts.max(initial=1))
        legal = offsets < counts[:, None]
        child = np.where(legal, first_child[nodes][:, None] + offsets, 1)
        width = max(map(len, self.level_tokens))
        table = np.stack([np.pad(tokens.cpu().numpy(), (0, width - len(tokens))) for tokens in self.level_tokens])
        level = np.searchsorted(np.array(self.depth_start[1:]), nodes, side="right")
        return np.where(legal, table[level[:, None], np.where(legal, code[child], 0)], -1)

    def item_path(self, item: int) -> list[int]:
        """Nodes from depth 1 down to the item's leaf."""
        nodes = [int(self.leaf_node[self.leaf_of_item[item]])]
        while int(self.parent[nodes[0]]) > 0:
            nodes.insert(0, int(self.parent[nodes[0]]))
        return nodes

    def children(self, node: int) -> list[int]:
        """Codes that may follow this node, ascending."""
        return self.code[int(self.first_child[node]): int(self.first_child[node + 1])].tolist()

    def find(self, codes: Sequence[int]) -> int | None:
        """The node of a partial SID; None if no item begins so."""
        node = 0
        for code in codes:
            start, children = int(self.first_child[node]), self.children(node)
            if code not in children:
                return None
            node = start + children.index(code)
        return node


def _padded(codes: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    if isinstance(codes, np.ndarray):
        return codes.astype(np.int32, copy=False)
    if not len(codes):
        raise ValueError("a trie needs at least one SID")
    longest = max(map(len, codes))
    return np.array([[*sid, *[-1] * (longest - len(sid))] for sid in codes], dtype=np.int32)
