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

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel

from minionerec.config import UserError
from minionerec.output_head import LogitsHead, OutputHead, output_head
from minionerec.sids import SidTrie
from minionerec.trees import Blocks, attention_over_blocks, base_causal_lm, common_prefix, pack_trees

Noise = torch.Generator | Sequence[torch.Generator] | None
BEGINNING_TOKENS = 16     # a common beginning shorter than this is not worth a forward of its own


class Beams(NamedTuple):
    """Search results, best first. Places beyond the catalogue hold leaf -1 and score -inf."""

    leaves: Tensor          # (B, W) leaf of the trie, i.e. distinct SID
    scores: Tensor          # (B, W) log-probability
    nodes: Tensor           # (B, W) trie node of the leaf
    token_logps: Tensor     # (B, W, L) per level; 0 behind SIDs with fewer levels


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
        if not all(len(prompt) > done and list(prompt[:done]) == self._beginning for prompt in prompts):
            done = 0
        tree = pack_trees([prompt[done:] for prompt in prompts]).to(device)
        self._cache = DynamicCache([(layer.keys, layer.values) for layer in self._beginning_cache.layers] if done else None)
        hidden = self._body(tree.input_ids, done + tree.position_ids, tree.blocks.behind(done))

        lengths = torch.tensor([len(prompt) for prompt in prompts])
        slots = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)                         # (B, P) places in the cache
        slots[:, :done] = torch.arange(done)
        for row, nodes in zip(slots, tree.nodes, strict=True):
            row[done: done + len(nodes)] = torch.from_numpy(done + nodes)
        self._lengths, self._keys = lengths.to(device)[:, None], slots.to(device)                       # (B, 1), (B, K)
        self._key_positions = torch.arange(slots.shape[1], device=device).expand_as(self._keys)
        self._prompt = (self._key_positions < self._lengths)[:, None]                                   # (B, 1, P) real tokens
        self._columns = torch.empty(len(prompts), 1, 0, dtype=torch.long, device=device)                # (B, W, depth) among the keys
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
            return self.model.base_model(input_ids=ids[None], position_ids=positions[None], blocks=blocks, past_key_values=self._cache,
                                         use_cache=True).last_hidden_state[0]


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
        self._paths = [torch.tensor([prompt], device=self.model.device) for prompt in prompts]          # each (W, length)
        return self._last_logits()[:, 0]

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Logits behind each beam, ``(B, W, V)``."""
        self._paths = [torch.cat([path[parent], token[:, None]], dim=1)
                       for path, parent, token in zip(self._paths, parents, tokens, strict=True)]
        return self._last_logits()

    def _last_logits(self) -> Tensor:
        return torch.stack([self.model(input_ids=path, use_cache=False, logits_to_keep=1).logits[:, -1] for path in self._paths])


def make_decoder(model: torch.nn.Module) -> TreeDecoder | ReplayDecoder:
    """The fast decoder where ``trees.enable_trees`` found that the model takes token trees, else the plain one."""
    inner = base_causal_lm(model)
    return TreeDecoder(inner) if inner.takes_trees else ReplayDecoder(inner)


class NotFinite(UserError):
    """A model whose scores are NaN: every list would be empty, and every metric a plausible 0."""


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
        excluded: per prompt, leaves that must not be returned; the others keep their scores.
        score_eos: also score this token behind every SID (parity with Hugging Face beam search); costs one more forward.
        rollout: ``beam``; ``gumbel``: a sample of W distinct leaves without replacement (stochastic beam search,
            arXiv:1903.06059, algorithm 1); ``sample``: W independent draws, which may repeat. Both draw from the trie's
            own distribution at ``temperature``; scores stay those of ``normalize``.
        generator: source of the noise; one for each prompt makes a prompt's results independent of its batch.

    Raises:
        UserError: a prompt is longer than the model's context.
        NotFinite: the model's scores are not numbers.
    """
    context = getattr(decoder.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts)) + trie.num_levels
    if context and longest > context:
        raise UserError(f"a prompt and its SID need {longest} tokens, the model's context is {context}; "
                        "lower data.max_history or sft.max_tokens")
    hidden = decoder.prefill(prompts)[:, None]                                                          # (B, 1, D)
    sid_tokens = torch.cat(trie.level_tokens)
    state = _start(len(prompts), num_beams if rollout == "sample" else 1, hidden.device)
    dead = _dead_nodes(trie, excluded, hidden.device) if excluded is not None and any(excluded) else None
    for level in range(trie.num_levels):
        child, logp, draw = _expand(decoder.head, hidden, state.nodes, trie, level, normalize, None if rollout == "beam" else temperature,
                                    dead, sid_tokens)
        state, parents = _choose(state, child, logp, draw, num_beams, rollout, generator)
        if level + 1 < trie.num_levels or score_eos is not None:
            codes = trie.code[state.nodes].long().clamp(min=0).clamp(max=len(trie.level_tokens[level]) - 1)
            hidden = decoder.extend(trie.level_tokens[level][codes], parents)
    scores, token_logps = state.scores, state.token_logps
    if score_eos is not None:
        end = decoder.head.columns(hidden, torch.tensor([score_eos], device=hidden.device))[..., 0]
        end = end - decoder.head.logsumexp(hidden, sid_tokens)
        scores, order = (scores + end).sort(dim=1, descending=True, stable=True)
        state = state._replace(nodes=state.nodes.gather(1, order))
        token_logps = token_logps.gather(1, order[..., None].expand_as(token_logps))
    if scores.isnan().any():
        raise NotFinite("the model's scores are not numbers: one of its weights is NaN or infinite; use an earlier checkpoint")
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


def _expand(head: OutputHead, hidden: Tensor, nodes: Tensor, trie: SidTrie, level: int, normalize: str,
            temperature: float | None, dead: Tensor | None, sid_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Children of every beam with their log-probabilities.

    Returns:
        child nodes ``(B, W, F)``; their scores' increments and their drawing log-probabilities (only with a temperature),
        both -inf where there is no child. A beam that has reached its leaf on an earlier level has itself as the only child,
        at increment 0.
    """
    child, legal, codes = trie.expand(nodes, level)                                                     # (B, W, F)
    logits = head.columns(hidden, trie.level_tokens[level])                                             # (B, 1 or W, K)
    logits = logits.expand(*nodes.shape, -1).gather(2, codes.long()).masked_fill(~legal, -torch.inf)
    total = torch.logsumexp(logits, dim=-1, keepdim=True) if normalize == "trie" else head.logsumexp(hidden, sid_tokens)[..., None]
    if dead is not None:        # after the total: what is left out must not lend its probability to what shares its prefix
        logits = logits.masked_fill((child[..., None] == dead[:, None, None, :]).any(-1), -torch.inf)
    dead_end = logits == -torch.inf
    logp = draw = (logits - total).masked_fill(dead_end, -torch.inf)
    if temperature is not None:
        scaled = logits / temperature
        draw = (scaled - torch.logsumexp(scaled, dim=-1, keepdim=True)).masked_fill(dead_end, -torch.inf)
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
        picked = (draw - _exponential(draw, generator).log()).argmax(dim=-1)               # Gumbel-max
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
    nodes = torch.where(scores > -torch.inf, take(child).long(), 0)
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


def length_sorted(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Numbers of the prompts in batches of similar length, longest first."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return [order[start: start + batch_size] for start in range(0, len(order), batch_size)]


def search_batches(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    trie: SidTrie,
    num_beams: int,
    batches: Sequence[Sequence[int]],
    *,
    normalize: str = "vocab",
    excluded: Mapping[int, Sequence[int]] | None = None,
    progress: str | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Search some batches of the prompts, in eval mode.

    A batch has the same results whichever others are searched: what it shares with them is the beginning of all ``prompts``.

    Yields:
        ``(B, W)`` leaves (-1 where there is no further item) and ``(B, W)`` scores of one batch after the other.
    """
    if num_beams < 1:
        raise UserError(f"num_beams: got {num_beams}, expected at least 1")
    width = min(num_beams, trie.num_leaves)
    was_training = model.training
    model.eval()
    try:
        decoder = make_decoder(model)
        if batches:
            with torch.inference_mode():
                decoder.read_beginning(prompts)
        with tqdm(total=sum(map(len, batches)), desc=progress, unit="user", disable=None if progress else True) as bar:
            for batch in batches:
                leaves, scores = np.full((len(batch), width), -1, dtype=np.int64), np.full((len(batch), width), -np.inf, dtype=np.float32)
                with torch.inference_mode():
                    beams = constrained_beam_search(decoder, [prompts[i] for i in batch], trie, width, normalize=normalize,
                                                    excluded=None if excluded is None else [excluded[i] for i in batch])
                leaves[:, : beams.leaves.shape[1]] = beams.leaves.cpu().numpy()
                scores[:, : beams.scores.shape[1]] = beams.scores.float().cpu().numpy()
                bar.update(len(batch))
                yield leaves, scores
    finally:
        model.train(was_training)


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
        child, legal, codes = self.trie.expand(nodes, level)
        return child.long(), legal, self.trie.level_tokens[level][codes.long()]
