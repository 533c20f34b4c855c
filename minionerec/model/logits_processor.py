"""The catalogue constraint as a ``LogitsProcessor`` for plain ``model.generate``."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from minionerec.catalogue.trie import SidTrie


class CatalogueLogitsProcessor(LogitsProcessor):
    """Leaves a score only to tokens that continue an item of the catalogue.

    Args:
        trie: the catalogue, built with ``level_token_ids``, on the model's device.
        prompt_length: width of the (left-padded) prompts.
        eos_token_id: the only token allowed behind a whole SID, and behind a sequence that is no
            item's beginning (such a sequence has score -inf already).
    """

    def __init__(self, trie: SidTrie, prompt_length: int, eos_token_id: int):
        self.trie = trie
        self.prompt_length = prompt_length
        self.eos_token_id = eos_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the scores ``(rows, V)`` of all other tokens to -inf."""
        trie = self.trie
        generated = input_ids[:, self.prompt_length :]  # (rows, tokens so far)

        # Walk down the trie along what was generated
        nodes = torch.zeros(len(input_ids), dtype=torch.long, device=scores.device)
        lost = torch.zeros_like(nodes, dtype=torch.bool)
        for level, token in enumerate(generated.T[: trie.num_levels]):
            child, legal, tokens = self._children(nodes, level)  # (rows, F)
            match = legal & (tokens == token[:, None])
            at_leaf = trie.leaf[nodes] >= 0  # a whole SID: whatever follows is the end
            lost |= ~match.any(1) & ~at_leaf
            which = match.int().argmax(1, keepdim=True)
            nodes = torch.where(at_leaf, nodes, child.gather(1, which)[:, 0])

        # What may come next: children, or the end behind a whole SID
        # (behind the last level only the end is allowed: any level's table will do)
        level = min(generated.shape[1], trie.num_levels - 1)
        _, legal, tokens = self._children(nodes, level)
        at_leaf = trie.leaf[nodes] >= 0
        rows = torch.arange(len(nodes), device=scores.device)[:, None].expand_as(tokens)
        # Behind a whole SID, and where no item begins like this, nothing but the end is left
        may_follow = legal & ~at_leaf[:, None] & ~lost[:, None]
        allowed = torch.zeros_like(scores, dtype=torch.bool)  # (rows, V)
        allowed[rows[may_follow], tokens[may_follow]] = True
        allowed[:, self.eos_token_id] |= at_leaf | lost
        return scores.masked_fill(~allowed, -torch.inf)

    def _children(self, nodes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Child nodes, which of them exist, and their token ids, each ``(rows, F)``."""
        child, legal, codes = self.trie.expand(nodes, level)
        return child.long(), legal, self.trie.level_tokens[level][codes.long()]
