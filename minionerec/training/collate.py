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
    paths: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """Rows to one packed tree with its J pairs (slot, label), what ``sft_logp`` reads.

    With a trie, the S pairs ``sid_pairs`` are normalised over ``children`` instead of the
    vocabulary, and a SID's end-of-sequence token is no label, because nothing can take its place.

    Args:
        rows: none gives a tree of one token without pairs.
        share: False for models that take no token trees.
        trie: the catalogue, where SIDs are normalised over legal children.
        paths: with a trie, each item's nodes from the first level to its leaf.
    """
    if not rows:
        return _no_rows(share)
    sequences: list[list[int]] = []
    starts: list[int] = []
    lengths: list[int] = []
    is_sid: list[bool] = []
    above: list[int] = []  # trie nodes whose children the tokens of SIDs are normalised over
    for row in rows:
        # Behind a whole SID the end of the sequence is certain: nothing to learn from it
        sid = trie is not None and row.task.endswith("to_sid")
        completion = row.completion[:-1] if sid else row.completion
        sequences.append(row.prompt + completion)
        starts.append(len(row.prompt))
        lengths.append(len(completion))
        is_sid.append(sid)
        if sid:
            above += [0, *paths[row.target_item][:-1]]  # 0 is the root

    # The last token of a sequence is predicted, never read.
    tree = pack_trees([sequence[:-1] for sequence in sequences], share=share)
    slots, pair_rows, labels, pair_of_token = label_pairs(tree, sequences, starts)

    token_is_sid = torch.repeat_interleave(torch.tensor(is_sid), torch.tensor(lengths))  # (J,)
    children = torch.empty(0, 1, dtype=torch.long)
    if above and trie is not None:
        children = torch.from_numpy(trie.child_tokens(np.array(above, dtype=np.int64)))  # (S, F)
    # Plain tensors under plain names, which accelerate moves to the device
    return {
        "tree": tree,
        "slots": slots,
        "pair_rows": pair_rows,
        "shift_labels": labels,  # the Trainer counts these,
        "labels": labels,  # and only where there is this key
        "sid_pairs": pair_of_token[token_is_sid],
        "children": children,
    }


def _no_rows(share: bool) -> dict[str, Any]:
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


def collate_rl(numbered: Sequence[tuple[int, Row]]) -> dict[str, Any]:
    """Numbered rows to the arguments of ``roll_out``.

    There is a label for each row, because the Trainer counts labels.
    """
    numbers = [number for number, _ in numbered]
    rows = [row for _, row in numbered]
    labels = torch.zeros(len(rows))
    return {"prompts": {"rows": rows, "numbers": numbers}, "shift_labels": labels, "labels": labels}
