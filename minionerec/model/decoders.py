"""Two ways to feed a prompt's beams to a model: shared prefix (tree) or whole sequences (replay).

Shapes: B prompts, W beams per prompt, D width, V vocabulary, P tokens of the longest prompt, T
tokens of one forward, Q beams of a prompt that it reads at most. A beam's own tokens are its last
``depth`` ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from minionerec.model.output_head import LogitsHead, output_head
from minionerec.model.token_trees import Blocks, common_prefix, pack_trees
from minionerec.model.tree_attention import attention_over_blocks, base_causal_lm

BEGINNING_TOKENS = 16  # a common beginning shorter than this is not worth a forward of its own


class Reading(NamedTuple):
    """The beams that a forward reads: Q of each prompt at most, T in all."""

    beams: Tensor  # (B, Q) which; further ones behind a prompt's last
    column: Tensor  # (B, W) each beam's place among those of its prompt
    row: Tensor  # (B, Q) each one's place in the forward
    places: Tensor | None  # (T,) the places of (B, Q) that count; None: all


def _read_all(tokens: Tensor) -> Reading:
    batch, width = tokens.shape
    beams = torch.arange(batch * width, device=tokens.device).view(batch, width)
    each = torch.arange(width, device=tokens.device).expand(batch, width)
    return Reading(each, each, beams, None)


def _read_some(asked: Tensor) -> Reading:
    """Of ``(B, W)`` bool, in the order of the beams."""
    counts = asked.sum(1, keepdim=True)
    most = int(counts.max())
    beams = (~asked).sort(dim=1, stable=True).indices[:, :most]
    column = (asked.cumsum(1) - 1).clamp(min=0)
    counted = torch.arange(most, device=asked.device) < counts  # (B, Q)
    row = (counted.flatten().cumsum(0) - 1).clamp(min=0).view_as(counted)
    return Reading(beams, column, row, counted.flatten().nonzero()[:, 0])


class TreeDecoder:
    """Reads each prompt once, then any number of beams' tokens against one cache of all prompts."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.head = output_head(model)
        # What all prompts begin with, and its keys and values, once ``read_beginning`` was called
        self._beginning: list[int] = []
        self._beginning_cache = DynamicCache()

    def read_beginning(self, prompts: Sequence[Sequence[int]]) -> int:
        """Read what all prompts of a run have in common, once for every ``prefill``.

        Returns:
            Its length in tokens; 0 where it is too short to be worth a forward of its own.
        """
        # What the first and the last one in lexicographic order share, all of them share
        shared = common_prefix(min(prompts, key=tuple), max(prompts, key=tuple))
        shortest = min(len(prompt) for prompt in prompts)
        length = min(shared, shortest - 1)  # every prompt keeps a token to read
        if length < BEGINNING_TOKENS or len(prompts) == 1:
            return 0
        beginning = list(prompts[0][:length])
        # A tree of one path: the same attention, so that the cache is the one prompts continue
        tree = pack_trees([beginning]).to(self.model.device)
        self._cache = DynamicCache()
        self._body(tree.input_ids, tree.position_ids, tree.packed)
        self._beginning = beginning
        self._beginning_cache = self._cache
        return length

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts, as a prefix tree behind the common beginning.

        Returns:
            ``(B, D)`` hidden state of each prompt's last token.
        """
        device = self.model.device
        done = len(self._beginning)
        for prompt in prompts:
            if len(prompt) <= done or list(prompt[:done]) != self._beginning:
                done = 0  # some other run's prompts
        # Prompts of a batch share more than the beginning, say a user's history
        tree = pack_trees([prompt[done:] for prompt in prompts]).to(device)
        # The cache starts as a view of the beginning's; appending copies, the original stays
        known = None
        if done:
            known = [(layer.keys, layer.values) for layer in self._beginning_cache.layers]
        self._cache = DynamicCache(known)
        hidden = self._body(tree.input_ids, done + tree.position_ids, tree.packed.behind(done))

        # Where in the cache each prompt's tokens stand: what ``extend`` lets its beams see
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        slots = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)  # (B, P)
        slots[:, :done] = torch.arange(done)
        for row, nodes in zip(slots, tree.nodes, strict=True):
            row[done : done + len(nodes)] = torch.from_numpy(done + nodes)
        self._lengths = lengths.to(device)[:, None]  # (B, 1)
        self._keys = slots.to(device)  # (B, K); K grows by W with every ``extend``
        positions = torch.arange(slots.shape[1], device=device)
        self._key_positions = positions.expand_as(self._keys)  # (B, K)
        self._is_prompt = (self._key_positions < self._lengths)[:, None]  # (B, 1, P)
        # Each beam's own tokens, as columns of the keys
        self._columns = torch.empty(len(prompts), 1, 0, dtype=torch.long, device=device)
        self._last = hidden[[int(nodes[-1]) for nodes in tree.nodes]]  # (B, D)
        return self._last

    def extend(self, tokens: Tensor, parents: Tensor, asked: Tensor | None = None) -> Tensor:
        """Read one more token per beam.

        Args:
            tokens: ``(B, W)``.
            parents: ``(B, W)`` which beam of the previous call (of the prompt, at first) each token
                continues.
            asked: ``(B, W)`` bool, the beams whose hidden states matter, now and in later calls;
                None: all.

        Returns:
            ``(B, W, D)`` hidden states, 0 where they were not asked for.
        """
        batch, width = tokens.shape
        device = tokens.device
        depth = self._columns.shape[-1]
        seen = self._keys.shape[1]
        reading = _read_all(tokens)
        if asked is not None and not asked.all():
            reading = _read_some(asked)
        most = reading.beams.shape[1]  # Q

        # A beam sees what its parent saw, and itself. Nothing in the cache is copied or reordered:
        # a beam that was dropped stays in it, unseen.
        above = parents[..., None].expand(-1, -1, depth)
        before = self._columns.gather(1, above)  # (B, W, depth)
        own = seen + reading.column  # (B, W)
        self._columns = torch.cat([before, own[..., None]], dim=-1)
        if not most:
            return self._last.new_zeros(batch, width, self._last.shape[-1])

        # All beams' tokens are one row of the forward, T long.
        # The new tokens join the keys of their prompt
        cached = self._cache.get_seq_length()
        positions = (self._lengths + depth).expand(batch, most)
        self._keys = torch.cat([self._keys, cached + reading.row], dim=1)
        self._key_positions = torch.cat([self._key_positions, positions], dim=1)

        # One block per prompt: Q queries, and as keys its prompt and all beams' tokens so far
        mask = torch.zeros(batch, most, seen + most, dtype=torch.bool, device=device)
        mask[..., : self._is_prompt.shape[-1]] = self._is_prompt
        columns = self._columns
        if reading.places is not None:
            columns = columns.gather(1, reading.beams[..., None].expand(-1, -1, depth + 1))
        mask.scatter_(2, columns, True)
        blocks = Blocks(
            reading.row, self._keys, mask, positions, self._key_positions, reading.places
        )
        if reading.places is None:
            return self._body(tokens.flatten(), positions.flatten(), blocks).view(batch, width, -1)
        beams = torch.arange(batch, device=device)[:, None] * width + reading.beams
        beams = beams.flatten()[reading.places]  # (T,) counted through all prompts
        some = self._body(
            tokens.flatten()[beams], positions.flatten()[reading.places], blocks
        )  # (T, D)
        hidden = some.new_zeros(batch * width, some.shape[-1])
        return hidden.index_copy_(0, beams, some).view(batch, width, -1)

    def _body(self, ids: Tensor, positions: Tensor, blocks: Blocks) -> Tensor:
        """``(T,)`` tokens -> ``(T, D)`` hidden states; keys and values join the cache."""
        with attention_over_blocks(self.model):
            output = self.model.base_model(
                input_ids=ids[None],
                position_ids=positions[None],
                blocks=blocks,
                past_key_values=self._cache,
                use_cache=True,
            )
        return output.last_hidden_state[0]


class ReplayDecoder:
    """The same answers from plain forwards only, for models that take no token trees.

    Every beam is read in full, and its "hidden states" are the logits themselves.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.head = LogitsHead()

    def read_beginning(self, prompts: Sequence[Sequence[int]]) -> int:
        """Nothing is shared."""
        return 0

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits behind each prompt, ``(B, V)``."""
        self._paths = []  # of each prompt its beams, (W, length)
        for prompt in prompts:
            self._paths.append(torch.tensor([prompt], device=self.model.device))
        return self._last_logits()[:, 0]

    def extend(self, tokens: Tensor, parents: Tensor, asked: Tensor | None = None) -> Tensor:
        """Logits behind each beam, ``(B, W, V)``, whether they were asked for or not."""
        longer = []
        for path, parent, token in zip(self._paths, parents, tokens, strict=True):
            longer.append(torch.cat([path[parent], token[:, None]], dim=1))
        self._paths = longer
        return self._last_logits()

    def _last_logits(self) -> Tensor:
        """``(B, W, V)``, with a forward per prompt: their beams differ in length."""
        # Only the last position's logits are computed
        rows = []
        for path in self._paths:
            output = self.model(input_ids=path, use_cache=False, logits_to_keep=1)
            rows.append(output.logits[:, -1])
        return torch.stack(rows)


def make_decoder(model: torch.nn.Module) -> TreeDecoder | ReplayDecoder:
    """The fast decoder if the model takes token trees, else the plain one."""
    inner = base_causal_lm(model)
    return TreeDecoder(inner) if inner.takes_trees else ReplayDecoder(inner)
