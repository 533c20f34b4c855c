"""The catalogue constraint as a ``LogitsProcessor`` for plain ``model.generate``."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from minionerec.catalogue.trie import SidTrie


class CatalogueLogitsProcessor(LogitsProcessor):
    """The same constraint for plain ``model.generate``: only tokens that continue an item of the catalogue keep a score.

    Args:
        trie: the catalogue, built with ``level_token_ids``, on the model's device.
        prompt_length: width of the (left-padded) prompts.
        eos_token_id: the only token allowed behind a whole SID, and behind a sequence that is no item's beginning (such a
            sequence has score -inf already).
    """

    def __init__(self, trie: SidTrie, prompt_length: int, eos_token_id: int):
        self.trie, self.prompt_length, self.eos_token_id = trie, prompt_length, eos_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        trie, nodes = self.trie, torch.zeros(len(input_ids), dtype=torch.long, device=scores.device)
        lost = torch.zeros_like(nodes, dtype=torch.bool)
        for level, token in enumerate(input_ids[:, self.prompt_length :].T[: trie.num_levels]):
            child, legal, tokens = self._children(nodes, level)
            match = legal & (tokens == token[:, None])
            stay = trie.leaf[nodes] >= 0  # a whole SID: whatever follows is the end
            lost |= ~match.any(1) & ~stay
            nodes = torch.where(
                stay, nodes, child.gather(1, match.int().argmax(1, keepdim=True))[:, 0]
            )
        level = min(input_ids.shape[1] - self.prompt_length, trie.num_levels - 1)
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        child, legal, tokens = self._children(nodes, level)
        rows = torch.arange(len(nodes), device=scores.device)[:, None].expand_as(tokens)
        going = legal & (trie.leaf[nodes] < 0)[:, None] & ~lost[:, None]
        allowed[rows[going], tokens[going]] = True
        allowed[:, self.eos_token_id] |= (trie.leaf[nodes] >= 0) | lost
        return scores.masked_fill(~allowed, -torch.inf)

    def _children(self, nodes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        child, legal, codes = self.trie.expand(nodes, level)
        return child.long(), legal, self.trie.level_tokens[level][codes.long()]
