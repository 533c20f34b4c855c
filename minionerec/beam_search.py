"""Constrained beam search: the W most likely items of the catalogue for every prompt, exactly scored.

Each prompt is read once. The beams of a prompt share its cache and see it through a mask, as they see their own earlier
tokens: nothing is copied or reordered per beam, so memory grows with beams x levels, and a search over L levels needs
L - 1 further forwards. What may follow a beam comes from the trie's integer tables; everything else has probability
zero, so every result is an item, results are distinct, and a catalogue smaller than the beam gives fewer results.

Two scores, both exact log-probabilities of the SID's tokens:

* ``vocab``: over the whole vocabulary, what ``model.generate(num_beams=W, prefix_allowed_tokens_fn=..., length_penalty=0)``
  ranks by (it also scores the forced end-of-sequence token: ``score_eos``).
* ``trie``: over the legal children of each step, the distribution that sampling in the trie follows.

The model's ``generation_config`` is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel

from minionerec.config import UserError
from minionerec.policy import LogitsHead, OutputHead, attention_mask, base_causal_lm
from minionerec.sids import SidTrie

Noise = torch.Generator | Sequence[torch.Generator] | None
SHARED_PREFIX_TOKENS = 16     # a common beginning shorter than this is not worth a forward of its own


class Beams(NamedTuple):
    """Search results, best first. Places beyond the catalogue hold leaf -1 and score -inf."""

    leaves: Tensor          # (B, W) leaf of the trie, i.e. distinct SID
    scores: Tensor          # (B, W) log-probability
    nodes: Tensor           # (B, W) trie node of the leaf
    token_logps: Tensor     # (B, W, L) per level; 0 behind SIDs with fewer levels


class TreeDecoder:
    """Reads prompts once, then any number of beams' tokens against the shared cache."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.head = model, OutputHead(model)
        self._shared: tuple[int, ...] = ()
        self._shared_cache: list[tuple[Tensor, Tensor]] = []

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts; ``(B, D)`` hidden state of each prompt's last token."""
        device = self.model.device
        shared = self._read_shared(prompts)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        self._width = int(lengths.max())
        own = self._width - shared
        ids = torch.zeros(len(prompts), own, dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt) - shared] = torch.tensor(prompt[shared:])
        self._cache = DynamicCache([(k.expand(len(prompts), -1, -1, -1), v.expand(len(prompts), -1, -1, -1))
                                    for k, v in self._shared_cache] if shared else None)
        positions = torch.arange(shared, self._width, device=device).expand(len(prompts), -1)
        mask = None
        if shared:      # queries are the last `own` of `width` positions; padding is to the right of every real token
            causal = torch.ones(own, self._width, dtype=torch.bool, device=device).tril(shared)
            mask = attention_mask(causal.expand(len(prompts), -1, -1), self.model)
        hidden = self._body(ids.to(device), positions, mask)
        self._lengths = lengths
        self._visible = (torch.arange(self._width, device=device) < lengths[:, None])[:, None]         # (B, 1, P)
        self._slots = torch.empty(len(prompts), 1, 0, dtype=torch.long, device=device)
        return hidden[torch.arange(len(prompts), device=device), lengths - 1 - shared]

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Read one more token per beam.

        Args:
            tokens: ``(B, W)``.
            parents: ``(B, W)`` which beam of the previous call (of the prompt, at first) each token continues.

        Returns:
            ``(B, W, D)`` hidden states.
        """
        batch, width = tokens.shape
        depth, used = self._slots.shape[-1], self._cache.get_seq_length()
        own = used + torch.arange(width, device=tokens.device).expand(batch, width)
        before = self._slots.gather(1, parents[..., None].expand(-1, -1, depth))
        self._slots = torch.cat([before, own[..., None]], dim=-1)                                       # (B, W, depth + 1)
        visible = torch.zeros(batch, width, used + width, dtype=torch.bool, device=tokens.device)
        visible[..., : self._width] = self._visible
        visible.scatter_(2, self._slots, True)
        positions = (self._lengths[:, None] + depth).expand(batch, width)
        return self._body(tokens, positions, attention_mask(visible, self.model))

    def _read_shared(self, prompts: Sequence[Sequence[int]]) -> int:
        """Length of the prompts' common beginning, read once and kept for the next batch; 0 if it is short."""
        first, last = min(prompts), max(prompts)
        length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
        length = min(length, min(map(len, prompts)) - 1)
        if length < SHARED_PREFIX_TOKENS or len(prompts) == 1:
            return 0
        beginning = tuple(first[:length])
        if beginning != self._shared:
            self._cache = DynamicCache()
            ids = torch.tensor([beginning], device=self.model.device)
            self._body(ids, torch.arange(length, device=self.model.device)[None], None)
            self._shared, self._shared_cache = beginning, [(layer.keys, layer.values) for layer in self._cache.layers]
        return length

    def _body(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        return self.model.base_model(input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=self._cache,
                                     use_cache=True).last_hidden_state


class ReplayDecoder:
    """The same answers from plain forwards only, for models that take no tree mask: every beam is read in full.

    Its "hidden states" are the logits themselves.
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.head = model, LogitsHead(model)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits behind each prompt, ``(B, V)``."""
        self._paths = [[list(prompt)] for prompt in prompts]
        return self._last_logits()[:, 0]

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Logits behind each beam, ``(B, W, V)``."""
        self._paths = [[paths[p] + [t] for t, p in zip(row, parent, strict=True)]
                       for paths, row, parent in zip(self._paths, tokens.tolist(), parents.tolist(), strict=True)]
        return self._last_logits()

    def _last_logits(self) -> Tensor:
        rows = [torch.stack([self.model(input_ids=torch.tensor([path], device=self.model.device)).logits[0, -1] for path in paths])
                for paths in self._paths]
        return torch.stack(rows)


def make_decoder(model: torch.nn.Module) -> TreeDecoder | ReplayDecoder:
    """The fast decoder where ``policy.enable_trees`` found that the model takes tree masks, else the plain one."""
    inner = base_causal_lm(model)
    return TreeDecoder(inner) if inner.takes_trees else ReplayDecoder(inner)


@torch.no_grad()
def constrained_beam_search(
    decoder: TreeDecoder | ReplayDecoder,
    prompts: Sequence[Sequence[int]],
    trie: SidTrie,
    num_beams: int,
    *,
    normalize: str = "vocab",
    excluded: Sequence[Sequence[int]] | None = None,
    score_eos: int | None = None,
    rollout: str = "beam",
    temperature: float = 1.0,
    generator: Noise = None,
) -> Beams:
    """Search one batch of prompts.

    Args:
        decoder: from ``make_decoder``; the model must be in eval mode.
        prompts: B lists of token ids, of any lengths.
        trie: the catalogue, on the model's device.
        num_beams: W, at least 1.
        normalize: ``vocab`` or ``trie``, see the module's docstring.
        excluded: per prompt, leaves that must not be returned.
        score_eos: also score this token behind every SID (parity with Hugging Face beam search); costs one more forward.
        rollout: ``beam``; ``gumbel``: a sample of W distinct leaves without replacement (stochastic beam search,
            arXiv:1903.06059, algorithm 1); ``sample``: W independent draws, which may repeat. Both draw from the trie's
            own distribution at ``temperature``; scores stay those of ``normalize``.
        generator: source of the noise; one for each prompt makes a prompt's results independent of its batch.
    """
    context = getattr(decoder.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts)) + trie.num_levels
    if context and longest > context:
        raise UserError(f"a prompt and its SID need {longest} tokens, the model's context is {context}; "
                        "lower data.max_history or sft.max_tokens")
    hidden = decoder.prefill(prompts)[:, None]                                                          # (B, 1, D)
    state = _start(len(prompts), num_beams if rollout == "sample" else 1, hidden.device)
    dead = _dead_nodes(trie, excluded, hidden.device) if excluded is not None and any(excluded) else None
    for level in range(trie.num_levels):
        child, logp, draw = _expand(decoder.head, hidden, state.nodes, trie, level, normalize, temperature, dead)
        state, parents = _choose(state, child, logp, draw, num_beams, rollout, generator)
        if level + 1 < trie.num_levels or score_eos is not None:
            codes = trie.code[state.nodes].long().clamp(min=0).clamp(max=len(trie.level_tokens[level]) - 1)
            hidden = decoder.extend(trie.level_tokens[level][codes], parents)
    scores, token_logps = state.scores, state.token_logps
    if score_eos is not None:
        end = decoder.head.columns(hidden, torch.tensor([score_eos], device=hidden.device))[..., 0] - decoder.head.logsumexp(hidden)
        scores, order = (scores + end).sort(dim=1, descending=True, stable=True)
        state = state._replace(nodes=state.nodes.gather(1, order))
        token_logps = token_logps.gather(1, order[..., None].expand_as(token_logps))
    alive = scores > -torch.inf
    leaves = torch.where(alive, trie.leaf[state.nodes].long(), -1)
    return Beams(leaves, scores, torch.where(alive, state.nodes, 0), token_logps)


class _State(NamedTuple):
    nodes: Tensor           # (B, W) trie node of each beam, 0 (the root) for beams that do not exist
    scores: Tensor          # (B, W)
    draws: Tensor           # (B, W) log-probability under the drawing distribution (gumbel)
    noise: Tensor           # (B, W) perturbed log-probability (gumbel)
    token_logps: Tensor     # (B, W, levels so far)


def _start(batch: int, width: int, device: torch.device) -> _State:
    zeros = torch.zeros(batch, width, device=device)
    return _State(zeros.long(), zeros, zeros, zeros, zeros[..., None][..., :0])


def _dead_nodes(trie: SidTrie, excluded: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """``(B, X)`` nodes under which nothing but excluded leaves is left, padded with -1."""
    parent, first_child = trie.parent.cpu().numpy(), trie.first_child.cpu().numpy()
    leaf_node = trie.leaf_node.cpu().numpy()
    rows = []
    for leaves in excluded:
        dead = {int(leaf_node[leaf]) for leaf in leaves}
        frontier = set(dead)
        while frontier:
            above = {int(parent[node]) for node in frontier} - {0, -1}
            frontier = {n for n in above if n not in dead and all(c in dead for c in range(first_child[n], first_child[n + 1]))}
            dead |= frontier
        rows.append(sorted(dead))
    table = torch.full((len(rows), max(map(len, rows))), -1, dtype=torch.long)
    for row, dead in zip(table, rows, strict=True):
        row[: len(dead)] = torch.tensor(dead, dtype=torch.long)
    return table.to(device)


def _expand(head: OutputHead, hidden: Tensor, nodes: Tensor, trie: SidTrie, level: int, normalize: str, temperature: float,
            dead: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Children of every beam with their log-probabilities.

    Returns:
        child nodes ``(B, W, F)``; their scores' increments and their drawing log-probabilities, both -inf where there is
        no child. A beam that has reached its leaf on an earlier level has itself as the only child, at increment 0.
    """
    start = trie.first_child[nodes].long()
    count = trie.first_child[nodes + 1].long() - start
    offsets = torch.arange(max(1, trie.fan_out[level]), device=nodes.device)
    legal = offsets < count[..., None]                                                                  # (B, W, F)
    child = torch.where(legal, start[..., None] + offsets, 0)
    logits = head.columns(hidden, trie.level_tokens[level])                                             # (B, 1 or W, K)
    codes = trie.code[child].long().clamp(0, logits.shape[-1] - 1)
    logits = logits.expand(*nodes.shape, -1).gather(2, codes).masked_fill(~legal, -torch.inf)
    if dead is not None:
        logits = logits.masked_fill((child[..., None] == dead[:, None, None, :]).any(-1), -torch.inf)
    within = torch.logsumexp(logits, dim=-1, keepdim=True)
    total = within if normalize == "trie" else head.logsumexp(hidden)[..., None]
    logp = (logits - total).masked_fill(logits == -torch.inf, -torch.inf)
    scaled = logits / temperature
    draw = (scaled - torch.logsumexp(scaled, dim=-1, keepdim=True)).masked_fill(logits == -torch.inf, -torch.inf)
    if trie.has_short_sids:
        finished = trie.leaf[nodes] >= 0
        child[..., 0] = torch.where(finished, nodes, child[..., 0])
        logp[..., 0] = torch.where(finished, 0.0, logp[..., 0])
        draw[..., 0] = torch.where(finished, 0.0, draw[..., 0])
    return child, logp, draw


def _choose(state: _State, child: Tensor, logp: Tensor, draw: Tensor, num_beams: int, rollout: str,
            generator: Noise) -> tuple[_State, Tensor]:
    """Keep the best (or the drawn) candidates; returns the new beams and which beam each one continues, ``(B, W)``."""
    batch, width, fan_out = child.shape
    score, drawn = state.scores[..., None] + logp, state.draws[..., None] + draw
    noise = _gumbel_top_down(drawn, state.noise, generator) if rollout == "gumbel" else drawn
    if rollout == "sample":
        picked = (draw - _exponential(draw, generator).log()).argmax(dim=-1)                                              # Gumbel-max
        flat = torch.arange(width, device=child.device) * fan_out + picked
    else:
        key = noise if rollout == "gumbel" else score
        flat = key.flatten(1).topk(min(num_beams, width * fan_out), dim=1).indices.sort(dim=1).values
        order = key.flatten(1).gather(1, flat).sort(dim=1, descending=True, stable=True).indices       # ties: catalogue order
        flat = flat.gather(1, order)
    parents = flat // fan_out
    take = lambda values: values.flatten(1).gather(1, flat)  # noqa: E731
    before = state.token_logps.gather(1, parents[..., None].expand(-1, -1, state.token_logps.shape[-1]))
    token_logps = torch.cat([before, take(logp)[..., None]], dim=-1)
    scores = take(score)
    nodes = torch.where(scores > -torch.inf, take(child), 0)
    return _State(nodes, scores, take(drawn), take(noise), token_logps), parents


def _gumbel_top_down(logp: Tensor, parent_noise: Tensor, generator: Noise) -> Tensor:
    """Gumbels of the children, conditioned on their maximum being the parent's (arXiv:1903.06059, appendix B.3).

    Args:
        logp: ``(B, W, F)`` log-probability of each child's partial sequence, -inf where there is none.
        parent_noise: ``(B, W)`` the parents' perturbed log-probabilities.
    """
    noise = logp - _exponential(logp, generator).log()
    top = noise.amax(dim=-1, keepdim=True)
    target = parent_noise[..., None]
    gap = target - noise + torch.log1p(-torch.exp((noise - top).clamp(max=-1e-7)))
    moved = target - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
    moved = torch.where(noise == top, target, moved)
    return moved.masked_fill(logp == -torch.inf, -torch.inf)


def _exponential(like: Tensor, generator: Noise) -> Tensor:
    """Exponential noise of the shape ``(B, ...)``; from a generator for each prompt, if there are several."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.empty_like(like).exponential_(generator=generator)
    return torch.stack([torch.empty_like(row).exponential_(generator=own) for row, own in zip(like, generator, strict=True)])


def search_all(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    trie: SidTrie,
    num_beams: int,
    *,
    batch_size: int,
    normalize: str = "vocab",
    excluded: Sequence[Sequence[int]] | None = None,
    progress: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Search any number of prompts in length-sorted batches, in eval mode.

    Returns:
        ``(n, W)`` leaves (-1 where there is no further item) and ``(n, W)`` scores, in the order of ``prompts``.
    """
    if num_beams < 1:
        raise UserError(f"num_beams: got {num_beams}, expected at least 1")
    width = min(num_beams, trie.num_leaves)
    leaves = np.full((len(prompts), width), -1, dtype=np.int64)
    scores = np.full((len(prompts), width), -np.inf, dtype=np.float32)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    was_training = model.training
    model.eval()
    decoder = make_decoder(model)
    with torch.inference_mode(), tqdm(total=len(prompts), desc=progress, unit="user", disable=None if progress else True) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start: start + batch_size]
            beams = constrained_beam_search(decoder, [prompts[i] for i in rows], trie, width, normalize=normalize,
                                            excluded=None if excluded is None else [excluded[i] for i in rows])
            leaves[rows, : beams.leaves.shape[1]] = beams.leaves.cpu().numpy()
            scores[rows, : beams.scores.shape[1]] = beams.scores.float().cpu().numpy()
            bar.update(len(rows))
    model.train(was_training)
    return leaves, scores


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
        for level, token in enumerate(input_ids[:, self.prompt_length:].T[: trie.num_levels]):
            child, legal, tokens = self._children(nodes, level)
            match = legal & (tokens == token[:, None])
            stay = trie.leaf[nodes] >= 0                                # a whole SID: whatever follows is the end
            lost |= ~match.any(1) & ~stay
            nodes = torch.where(stay, nodes, child.gather(1, match.int().argmax(1, keepdim=True))[:, 0])
        level = min(input_ids.shape[1] - self.prompt_length, trie.num_levels - 1)
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        child, legal, tokens = self._children(nodes, level)
        rows = torch.arange(len(nodes), device=scores.device)[:, None].expand_as(tokens)
        going = legal & (trie.leaf[nodes] < 0)[:, None] & ~lost[:, None]
        allowed[rows[going], tokens[going]] = True
        allowed[:, self.eos_token_id] |= (trie.leaf[nodes] >= 0) | lost
        return scores.masked_fill(~allowed, -torch.inf)

    def _children(self, nodes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        start = self.trie.first_child[nodes].long()
        offsets = torch.arange(max(1, self.trie.fan_out[level]), device=nodes.device)
        legal = offsets < (self.trie.first_child[nodes + 1].long() - start)[:, None]
        child = torch.where(legal, start[:, None] + offsets, 0)
        codes = self.trie.code[child].long().clamp(0, len(self.trie.level_tokens[level]) - 1)
        return child, legal, self.trie.level_tokens[level][codes]
