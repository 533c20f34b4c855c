"""Two ways to feed a prompt's beams to a model: shared prefix (tree) or whole sequences (replay)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from minionerec.model.output_head import LogitsHead, output_head
from minionerec.model.token_trees import Blocks, common_prefix, pack_trees
from minionerec.model.tree_attention import attention_over_blocks, base_causal_lm

BEGINNING_TOKENS = 16  # a common beginning shorter than this is not worth a forward of its own


class TreeDecoder:
    """Reads prompts once, then any number of beams' tokens against one cache in which every prompt stands once."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.head = model, output_head(model)
        self._beginning: list[int] = []
        self._beginning_cache = DynamicCache()

    def read_beginning(self, prompts: Sequence[Sequence[int]]) -> int:
        """Read what all prompts of a run have in common (their wording) once, for every ``prefill`` that follows.

        Returns:
            Its length in tokens; 0 where it is too short to be worth a forward of its own.
        """
        length = min(common_prefix(min(prompts), max(prompts)), min(map(len, prompts)) - 1)
        if length < BEGINNING_TOKENS or len(prompts) == 1:
            return 0
        tree = pack_trees([prompts[0][:length]]).to(self.model.device)
        self._cache = DynamicCache()
        self._body(tree.input_ids, tree.position_ids, tree.blocks)
        self._beginning, self._beginning_cache = list(prompts[0][:length]), self._cache
        return length

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts, as a prefix tree behind the common beginning.

        Returns:
            ``(B, D)`` hidden state of each prompt's last token.
        """
        device, done = self.model.device, len(self._beginning)
        if not all(
            len(prompt) > done and list(prompt[:done]) == self._beginning for prompt in prompts
        ):
            done = 0
        tree = pack_trees([prompt[done:] for prompt in prompts]).to(device)
        self._cache = DynamicCache(
            [(layer.keys, layer.values) for layer in self._beginning_cache.layers] if done else None
        )
        hidden = self._body(tree.input_ids, done + tree.position_ids, tree.blocks.behind(done))

        lengths = torch.tensor([len(prompt) for prompt in prompts])
        slots = torch.zeros(
            len(prompts), int(lengths.max()), dtype=torch.long
        )  # (B, P) places in the cache
        slots[:, :done] = torch.arange(done)
        for row, nodes in zip(slots, tree.nodes, strict=True):
            row[done : done + len(nodes)] = torch.from_numpy(done + nodes)
        self._lengths, self._keys = lengths.to(device)[:, None], slots.to(device)  # (B, 1), (B, K)
        self._key_positions = torch.arange(slots.shape[1], device=device).expand_as(self._keys)
        self._prompt = (self._key_positions < self._lengths)[:, None]  # (B, 1, P) real tokens
        self._columns = torch.empty(
            len(prompts), 1, 0, dtype=torch.long, device=device
        )  # (B, W, depth) among the keys
        return hidden[[int(nodes[-1]) for nodes in tree.nodes]]

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Read one more token per beam.

        Args:
            tokens: ``(B, W)``.
            parents: ``(B, W)`` which beam of the previous call (of the prompt, at first) each token continues.

        Returns:
            ``(B, W, D)`` hidden states.
        """
        batch, width = tokens.shape
        depth, seen = self._columns.shape[-1], self._keys.shape[1]
        beams = torch.arange(batch * width, device=tokens.device).view(batch, width)
        own = torch.arange(seen, seen + width, device=tokens.device).expand(batch, width)
        before = self._columns.gather(1, parents[..., None].expand(-1, -1, depth))
        self._columns = torch.cat([before, own[..., None]], dim=-1)
        positions = (self._lengths + depth).expand(batch, width)
        self._keys = torch.cat([self._keys, self._cache.get_seq_length() + beams], dim=1)
        self._key_positions = torch.cat([self._key_positions, positions], dim=1)
        mask = torch.zeros(batch, width, seen + width, dtype=torch.bool, device=tokens.device)
        mask[..., : self._prompt.shape[-1]] = self._prompt
        mask.scatter_(2, self._columns, True)
        blocks = Blocks(beams, self._keys, mask, positions, self._key_positions)
        return self._body(tokens.flatten(), positions.flatten(), blocks).view(batch, width, -1)

    def _body(self, ids: Tensor, positions: Tensor, blocks: Blocks) -> Tensor:
        """``(T,)`` tokens -> ``(T, D)`` hidden states; keys and values join the cache."""
        with attention_over_blocks(self.model):
            return self.model.base_model(
                input_ids=ids[None],
                position_ids=positions[None],
                blocks=blocks,
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state[0]


class ReplayDecoder:
    """The same answers from plain forwards only, for models that take no token trees: every beam is read in full.

    Its "hidden states" are the logits themselves.
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.head = model, LogitsHead()

    def read_beginning(self, prompts: Sequence[Sequence[int]]) -> int:
        """Nothing is shared."""
        return 0

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits behind each prompt, ``(B, V)``."""
        self._paths = [
            torch.tensor([prompt], device=self.model.device) for prompt in prompts
        ]  # each (W, length)
        return self._last_logits()[:, 0]

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Logits behind each beam, ``(B, W, V)``."""
        self._paths = [
            torch.cat([path[parent], token[:, None]], dim=1)
            for path, parent, token in zip(self._paths, parents, tokens, strict=True)
        ]
        return self._last_logits()

    def _last_logits(self) -> Tensor:
        return torch.stack(
            [
                self.model(input_ids=path, use_cache=False, logits_to_keep=1).logits[:, -1]
                for path in self._paths
            ]
        )


def make_decoder(model: torch.nn.Module) -> TreeDecoder | ReplayDecoder:
    """The fast decoder where ``trees.enable_trees`` found that the model takes token trees, else the plain one."""
    inner = base_causal_lm(model)
    return TreeDecoder(inner) if inner.takes_trees else ReplayDecoder(inner)
