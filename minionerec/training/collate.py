"""Rows to what one forward of a trainer reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minionerec.catalogue.rows import Label, Row
from minionerec.catalogue.trie import SidTrie
from minionerec.model.token_trees import pack_trees
from minionerec.training.group_logps import label_pairs


def collate_sft(
    rows: Sequence[Row],
    share: bool = True,
    trie: SidTrie | None = None,
    paths: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """Rows to one packed tree with its (slot, token) pairs.

    A row has a sequence of its own for every answer it has (one, but for soft labels). With a
    trie a SID's end-of-sequence token, which nothing can replace, is no label, and the tokens of
    SIDs are normalised over the children of their prefix. Without rows the tree is one token and
    there is no pair.

    Args:
        rows: of one forward.
        share: False for models that take no token trees.
        trie: the catalogue, where SIDs are normalised over legal children.
        paths: with a trie, each item's nodes from the first level to its leaf.

    Returns:
        ``tree``; ``slots`` ``(M,)`` that predict something; for J pairs ``pair_rows`` ``(J,)``
        into slots, ``pair_tokens``, and the weights ``own`` and ``teacher`` of ``Label``;
        ``sid_pairs`` ``(S,)`` the pairs that are normalised over children, ``child_rows``
        ``(C,)`` the slots and ``children`` ``(C, F)`` the legal tokens of each place in the trie
        that these pairs read, ``child_of_pair`` ``(S,)`` and ``place`` ``(S,)`` where among them
        each pair's token is; ``shift_labels``, which the Trainer counts, holds as many numbers as
        the rows have tokens to predict.
    """
    if not rows:
        return _nothing(share)
    starts: list[int] = []
    sequences: list[list[int]] = []
    above: list[int] = []  # trie node over each token of a SID
    is_sid: list[bool] = []  # per token
    own: list[float] = []
    teacher: list[float] = []
    counted = 0
    for row in rows:
        # Behind a whole SID the end of the sequence is certain: nothing to learn from it
        over_children = trie is not None and row.task.endswith("to_sid")
        labels = row.labels or (Label(row.target_item, row.completion, 1.0, 1.0),)
        for label in labels:
            tokens = label.completion[:-1] if over_children else label.completion
            starts.append(len(row.prompt))
            sequences.append(row.prompt + tokens)
            above += [0, *paths[label.item][:-1]] if over_children else [-1] * len(tokens)
            is_sid += [over_children] * len(tokens)
            own += [label.own] * len(tokens)
            teacher += [label.teacher] * len(tokens)
        # A row counts once, however many answers it has: their weights add up to one
        counted += len(row.completion) - over_children

    # The last token of a sequence is predicted, never read.
    tree = pack_trees([sequence[:-1] for sequence in sequences], share=share)
    slots, pair_rows, pair_tokens, inverse = label_pairs(tree, sequences, starts)
    sid_pairs = inverse[torch.tensor(is_sid)]
    counted_labels = torch.zeros(counted, dtype=torch.long)
    # Plain tensors under plain names, which accelerate moves to the device
    return {
        "tree": tree,
        "slots": slots,
        "pair_rows": pair_rows,
        "pair_tokens": pair_tokens,
        "own": _in_order_of_pairs(own, inverse),
        "teacher": _in_order_of_pairs(teacher, inverse),
        "sid_pairs": sid_pairs,
        **_children(
            trie, np.array(above)[is_sid], pair_rows[sid_pairs].numpy(), pair_tokens[sid_pairs]
        ),
        "shift_labels": counted_labels,
        # the Trainer counts shift_labels, and only where there are labels
        "labels": counted_labels,
    }


def _in_order_of_pairs(values: list[float], inverse: Tensor) -> Tensor:
    """``(J,)`` values that come sequence by sequence, in the order of the pairs."""
    ordered = torch.empty(len(values))
    ordered[inverse] = torch.tensor(values)
    return ordered


def _children(
    trie: SidTrie | None, nodes: np.ndarray, slots: np.ndarray, tokens: Tensor
) -> dict[str, Tensor]:
    """Every place in the trie once, however many pairs read it: answers share most of theirs.

    Args:
        trie: the catalogue.
        nodes: ``(S,)`` the node above each pair's token.
        slots: ``(S,)`` the slot that predicts it.
        tokens: ``(S,)``.
    """
    if trie is None or not len(nodes):
        none = torch.empty(0, dtype=torch.long)
        return {"child_rows": none, "children": none[:, None], "child_of_pair": none, "place": none}
    # One number for a slot and a node; two tasks may share a slot with different nodes
    width = int(nodes.max()) + 1
    distinct, child_of_pair = np.unique(slots * width + nodes, return_inverse=True)
    # The widest place decides F: at the root that is every first code
    children = trie.child_tokens(distinct % width)  # (C, F)
    place = (children[child_of_pair] == tokens.numpy()[:, None]).argmax(axis=1)
    return {
        "child_rows": torch.from_numpy(distinct // width),
        "children": torch.from_numpy(children),
        "child_of_pair": torch.from_numpy(child_of_pair),
        "place": torch.from_numpy(place),
    }


def _nothing(share: bool) -> dict[str, Any]:
    """The batch of a process that has no rows in a step."""
    none = torch.empty(0, dtype=torch.long)
    keys = (
        "slots",
        "pair_rows",
        "pair_tokens",
        "own",
        "teacher",
        "sid_pairs",
        "shift_labels",
        "labels",
    )
    return {
        "tree": pack_trees([[0]], share=share),
        **dict.fromkeys(keys, none),
        **_children(None, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), none),
    }


def collate_rl(numbered: Sequence[tuple[int, Row]]) -> dict[str, Any]:
    """Numbered rows to the arguments of ``roll_out``.

    There is a label for each row, because the Trainer counts labels.
    """
    numbers = [number for number, _ in numbered]
    rows = [row for _, row in numbered]
    labels = torch.zeros(len(rows))
    return {"prompts": {"rows": rows, "numbers": numbers}, "shift_labels": labels, "labels": labels}
