"""The likelihood of completions, which SFT maximises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from minionerec.catalogue.rows import Row
from minionerec.catalogue.trie import SidTrie
from minionerec.model.output_head import (
    LogitsHead,
    OutputHead,
    children_logps,
    vocab_logps,
)
from minionerec.model.token_trees import TokenTree
from minionerec.training.collate import collate_sft
from minionerec.training.objective import Loss


def sft_logp(model: nn.Module, inputs: dict[str, Any], teacher_weight: float = 0.0) -> Tensor:
    """Weighted log-likelihood of all completion tokens of a batch from ``collate_sft``, ``()``.

    The J pairs (slot, token) of the batch fall into two kinds: SID tokens, where the batch says so,
    are normalised over the legal children of their prefix; all others over the vocabulary. A pair
    weighs what its answer does: one but for rows with soft labels.

    Args:
        model: with ``enable_trees``.
        inputs: the batch.
        teacher_weight: share of the teacher's answers; the rest is for the rows' own targets.
    """
    rows = inputs["pair_rows"]  # (J,) which of the M slots each pair reads
    tokens = inputs["pair_tokens"]  # (J,)
    sid_pairs = inputs["sid_pairs"]  # (S,) numbers of the pairs that are normalised over children
    # A row without soft labels has both weights 1, whatever the teacher's share is
    weights = (1.0 - teacher_weight) * inputs["own"] + teacher_weight * inputs["teacher"]  # (J,)

    def readout(hidden: Tensor, head: OutputHead | LogitsHead) -> Tensor:
        """The weighted log-likelihood of all answers, summed."""
        if not len(sid_pairs):
            return (vocab_logps(hidden, head, rows, tokens) * weights).sum()
        # one row of children for every place in the trie, however many pairs read it
        legal = children_logps(hidden, head, inputs["child_rows"], inputs["children"])  # (C, F)
        logps = legal[inputs["child_of_pair"], inputs["place"]]  # (S,)
        total = (logps * weights[sid_pairs]).sum()
        is_text = torch.ones_like(rows, dtype=torch.bool)
        is_text[sid_pairs] = False
        if is_text.any():
            logps = vocab_logps(hidden, head, rows[is_text], tokens[is_text])
            total = total + (logps * weights[is_text]).sum()
        return total

    return model(tree=inputs["tree"], slots=inputs["slots"], readout=readout)


class RowLikelihood:
    """SFT's loss as a term of RL's: the likelihood of all answers that rows have, by their weights.

    Args:
        trie: the catalogue.
        normalize: what log-probabilities are normalised over, ``vocab`` or ``trie``.
        share: False for models that take no token trees.
        device: of the model.
    """

    def __init__(self, trie: SidTrie, normalize: str, share: bool, device: torch.device):
        self.over_children = trie if normalize == "trie" else None
        self.paths = trie.item_paths()
        self.num_levels = trie.num_levels
        self.share = share
        self.device = device

    def __call__(self, model: nn.Module, rows: Sequence[Row], groups: Tensor | float) -> Loss:
        """Negative log-likelihood per level of a SID, a mean over ``groups`` rows.

        So it has the scale of ``objective.likelihood_anchor``, which has the target alone.
        """
        batch = send_to_device(self.batch(rows), self.device)
        # A process without rows in a step takes part all the same: others wait for its gradients
        if not rows:
            return Loss(zero_loss(model, batch["tree"]), {})
        # The answers of a row add up to one, so that a row counts once, whatever a teacher knew. A
        # SID's tokens are averaged over the levels of the trie, as the anchor on targets does.
        logp = sft_logp(model, batch) / self.num_levels
        return Loss(-logp / groups, {"label_logp": logp.item() / len(rows)})

    def batch(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What one forward reads; the counts of its labels are not used here."""
        return collate_sft(rows, self.share, self.over_children, self.paths)


def zero_loss(model: nn.Module, tree: TokenTree) -> Tensor:
    """A loss of 0 that depends on every weight.

    A process without rows in a step needs it: the others wait for its gradients all the same.
    """
    # No slot is read, but the whole model runs: every weight gets a gradient of 0
    nothing = torch.empty(0, dtype=torch.long, device=tree.input_ids.device)
    first_column = nothing.new_zeros(1)

    def readout(hidden: Tensor, head: OutputHead | LogitsHead) -> Tensor:
        return head.columns(hidden, first_column).sum()  # over no rows: 0

    return model(tree=tree, slots=nothing, readout=readout)
