"""Rows to what one forward of a trainer reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from minionerec.catalogue.rows import Row
from minionerec.catalogue.trie import SidTrie
from minionerec.model.token_trees import pack_trees
from minionerec.training.group_logps import label_pairs


def collate_sft(
    rows: Sequence[Row],
    share: bool = True,
    trie: SidTrie | None = None,
    paths: list[list[int]] | None = None,
) -> dict[str, Any]:
    """Rows to one packed tree with its (slot, label) pairs.

    With a trie a SID's end-of-sequence token, which nothing can replace, is no label, and ``sid_pairs`` tells which pairs
    are normalised over ``children``. Without rows the tree is one token and there is no pair.
    """
    if not rows:
        none = torch.empty(0, dtype=torch.long)
        return {
            "tree": pack_trees([[0]], share=share),
            "slots": none,
            "pair_rows": none,
            "shift_labels": none,
            "labels": none,
            "sid_pairs": none,
            "children": none[:, None],
        }
    is_sid = [trie is not None and row.task.endswith("to_sid") for row in rows]
    sequences = [
        row.prompt + (row.completion[:-1] if sid else row.completion)
        for row, sid in zip(rows, is_sid, strict=True)
    ]
    tree = pack_trees([sequence[:-1] for sequence in sequences], share=share)
    slots, pair_rows, labels, inverse = label_pairs(
        tree, sequences, [len(row.prompt) for row in rows]
    )
    lengths = [
        len(sequence) - len(row.prompt) for sequence, row in zip(sequences, rows, strict=True)
    ]
    sid_pairs = inverse[torch.repeat_interleave(torch.tensor(is_sid), torch.tensor(lengths))]
    above = [
        node
        for row, sid in zip(rows, is_sid, strict=True)
        if sid
        for node in [0, *paths[row.target_item][:-1]]
    ]
    children = (
        torch.from_numpy(trie.child_tokens(np.array(above, dtype=np.int64)))
        if above
        else torch.empty(0, 1, dtype=torch.long)
    )
    return {
        "tree": tree,
        "slots": slots,
        "pair_rows": pair_rows,
        "shift_labels": labels,
        "labels": labels,
        "sid_pairs": sid_pairs,
        "children": children,
    }  # the Trainer counts shift_labels, and only where there are labels


def collate_rl(numbered: Sequence[tuple[int, Row]]) -> dict[str, Any]:
    """Numbered rows to what ``roll_out`` takes, with a label for each, as the Trainer counts labels."""
    numbers, rows = [number for number, _ in numbered], [row for _, row in numbered]
    labels = torch.zeros(len(rows))
    return {"prompts": {"rows": rows, "numbers": numbers}, "shift_labels": labels, "labels": labels}
