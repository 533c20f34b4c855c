"""Constrained beam search: the W most likely items for every prompt, exactly scored.

Each prompt is read once. The beams of a prompt share its cache and see it through a mask, as they
see their own earlier tokens: nothing is copied or reordered per beam, so memory grows with beams x
levels, and a search over L levels needs L - 1 further forwards. What may follow a beam comes from
the trie's integer tables; everything else has probability zero, so every result is an item, results
are distinct, and a catalogue smaller than the beam gives fewer results.

Two scores, both exact log-probabilities of the SID's tokens:

* ``vocab``: over the whole vocabulary, what ``model.generate(num_beams=W,
  prefix_allowed_tokens_fn=..., length_penalty=0)`` ranks by (it also scores the forced
  end-of-sequence token: ``score_eos``).
* ``trie``: over the legal children of each step, the distribution that sampling in the trie
follows.

The model's ``generation_config`` is never read.

Shapes: B prompts, W beams, F children of a trie node, K codes of a level, L levels, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from minionerec.catalogue.masks import Mask
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import UserError
from minionerec.experiment.progress import Progress
from minionerec.model.decoders import ReplayDecoder, TreeDecoder, make_decoder
from minionerec.model.narrowing import Narrowing
from minionerec.model.output_head import LogitsHead, OutputHead

Noise: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


class Beams(NamedTuple):
    """Search results, best first. Places beyond the catalogue hold leaf -1 and score -inf."""

    leaves: Tensor  # (B, W) leaf of the trie, i.e. distinct SID
    scores: Tensor  # (B, W) log-probability
    nodes: Tensor  # (B, W) trie node of the leaf
    token_logps: Tensor  # (B, W, L) per level; 0 behind SIDs with fewer levels


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
    masks: Sequence[Mask | None] | None = None,
    given: Tensor | None = None,
    score_eos: int | None = None,
    rollout: str = "beam",
    temperature: float = 1.0,
    generator: Noise = None,
    wanted: int | None = None,
) -> Beams:
    """Search one batch of prompts.

    Args:
        decoder: from ``make_decoder``; the model must be in eval mode.
        prompts: B lists of token ids, of any lengths.
        trie: the catalogue, on the model's device.
        num_beams: W, at least 1.
        normalize: ``vocab`` or ``trie``, see the module's docstring.
        excluded: per prompt, leaves that must not be returned; the others keep their scores. Meant
            for a few hundred at most, as a user's history; more are faster as a mask.
        masks: per prompt, what may be returned; None: everything. The others keep their scores.
        given: ``(B, L)`` trie nodes that every beam of a prompt must pass, level by level, as if
            their codes stood in the prompt; -1 where the search is free. Scores hold theirs too.
        score_eos: also score this token behind every SID (parity with Hugging Face beam search);
            costs one more forward.
        rollout: ``beam``; ``gumbel``: a sample of W distinct leaves without replacement (stochastic
            beam search, arXiv:1903.06059, algorithm 1); ``sample``: W independent draws, which may
            repeat. Both draw from the trie's own distribution at ``temperature``; scores stay those
            of ``normalize``.
        generator: source of the noise; one for each prompt makes a prompt's results independent of
            its batch.
        wanted: return only so many of the W places, found without reading beams that have no say in
            them (``_still_open``). The model computes in other shapes then: the last bits of scores
            may differ. Not with ``score_eos`` or another rollout than ``beam``.

    Raises:
        UserError: a prompt is longer than the model's context.
        NotFinite: the model's scores are not numbers.
    """
    # Positions beyond the context give scores that look like any others
    context = getattr(decoder.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts)) + trie.num_levels
    if context and longest > context:
        raise UserError(
            f"a prompt and its SID need {longest} tokens, the model's context is {context}; "
            "lower data.max_history or model.max_tokens"
        )
    hidden = decoder.prefill(prompts)[:, None]  # (B, 1, D)
    device = hidden.device
    # In a model of lower precision the normaliser takes these tokens' logits exactly, as scores do
    sid_tokens = torch.cat(trie.level_tokens)
    # Draws with replacement are W independent walks; all others start as one beam that branches
    state = _start(len(prompts), num_beams if rollout == "sample" else 1, device)
    narrowing = Narrowing.of(trie, excluded, masks)
    for level in range(trie.num_levels):
        child, logp, draw = _expand(
            decoder.head,
            hidden,
            state.nodes,
            trie,
            level,
            normalize,
            None if rollout == "beam" else temperature,
            narrowing,
            sid_tokens,
        )
        if given is not None:
            logp, draw = _only_given(given[:, level], child, logp, draw)
        state, parents = _choose(state, child, logp, draw, num_beams, rollout, generator)
        if level + 1 < trie.num_levels or score_eos is not None:
            # A beam that ended on an earlier level, or that is none, reads some token of this one:
            # nothing that follows it counts
            tokens = trie.level_tokens[level]
            codes = trie.code[state.nodes].long().clamp(0, len(tokens) - 1)
            asked = None
            if wanted is not None and normalize == "trie":
                asked = _still_open(state, trie, wanted)
            hidden = decoder.extend(tokens[codes], parents, asked)  # (B, W, D)

    scores, token_logps = state.scores, state.token_logps
    if score_eos is not None:
        # The forced end token changes scores, hence the order, but not which items are listed
        end_token = torch.tensor([score_eos], device=device)
        end = decoder.head.columns(hidden, end_token)[..., 0]
        end = end - decoder.head.logsumexp(hidden, sid_tokens)  # (B, W)
        scores, order = (scores + end).sort(dim=1, descending=True, stable=True)
        state = state._replace(nodes=state.nodes.gather(1, order))
        token_logps = token_logps.gather(1, order[..., None].expand_as(token_logps))
    if scores.isnan().any():
        raise NotFinite(
            "the model's scores are not numbers: one of its weights is NaN or infinite; "
            "use an earlier checkpoint"
        )
    if wanted is not None:
        scores = scores[:, :wanted]
        state = state._replace(nodes=state.nodes[:, :wanted])
        token_logps = token_logps[:, :wanted]
    # Places without an item have score -inf, and nothing else has
    alive = scores > -torch.inf
    leaves = torch.where(alive, trie.leaf[state.nodes].long(), -1)
    return Beams(leaves, scores, torch.where(alive, state.nodes, 0), token_logps)


def _still_open(state: _State, trie: SidTrie, wanted: int) -> Tensor:
    """``(B, W)`` bool: the beams whose next step decides about the first ``wanted`` places.

    Scores are over the trie's children, so an only child has probability 1, whatever the model
    says: a beam with one SID below it has that SID's score already. And a score only falls along a
    path: what is below the ``wanted``-th of these SIDs, and all that follows it, stays below it.
    """
    has_choice = trie.has_choice[state.nodes]
    known = state.scores.masked_fill(has_choice, -torch.inf)
    count = min(wanted, known.shape[1])
    bar = known.topk(count, dim=1).values[:, -1:]  # (B, 1)
    is_beam = state.scores > -torch.inf
    return has_choice & is_beam & (state.scores >= bar)


def _only_given(given: Tensor, child: Tensor, logp: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """Leave only the given child of every beam, where one is given.

    Args:
        given: ``(B,)`` node, -1 where the level is free.
        child: ``(B, W, F)`` nodes.
        logp: ``(B, W, F)``, of every child.
        draw: ``(B, W, F)``, likewise; a single child is drawn with certainty.
    """
    wanted = given[:, None, None]
    is_other = (wanted >= 0) & (child != wanted)
    is_given = (wanted >= 0) & (child == wanted)
    logp = logp.masked_fill(is_other, -torch.inf)
    draw = draw.masked_fill(is_other, -torch.inf).masked_fill(is_given, 0.0)
    return logp, draw


class _State(NamedTuple):
    nodes: Tensor  # (B, W) trie node of each beam, 0 (the root) for beams that do not exist
    scores: Tensor  # (B, W)
    draws: Tensor  # (B, W) log-probability under the drawing distribution (gumbel)
    noise: Tensor  # (B, W) perturbed log-probability (gumbel)
    token_logps: Tensor  # (B, W, levels so far)


def _start(batch: int, width: int, device: torch.device) -> _State:
    # All beams stand at the root with probability 1
    zeros = torch.zeros(batch, width, device=device)
    return _State(zeros.long(), zeros, zeros, zeros, zeros[..., None][..., :0])


def _expand(
    head: OutputHead | LogitsHead,
    hidden: Tensor,
    nodes: Tensor,
    trie: SidTrie,
    level: int,
    normalize: str,
    temperature: float | None,
    narrowing: Narrowing | None,
    sid_tokens: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Children of every beam with their log-probabilities.

    Returns:
        child nodes ``(B, W, F)``; their scores' increments and their drawing log-probabilities
        (only with a temperature), both -inf where there is no child. A beam that has reached its
        leaf on an earlier level has itself as the only child, at increment 0.
    """
    # One matrix product for the whole level, then each beam picks the columns of its own children
    child, legal, codes = trie.expand(nodes, level)  # (B, W, F)
    logits = head.columns(hidden, trie.level_tokens[level])  # (B, 1 or W, K)
    logits = logits.expand(*nodes.shape, -1).gather(2, codes.long())  # (B, W, F)
    logits = logits.masked_fill(~legal, -torch.inf)
    if normalize == "trie":
        total = torch.logsumexp(logits, dim=-1, keepdim=True)  # (B, W, 1)
    else:
        total = head.logsumexp(hidden, sid_tokens)[..., None]
    if narrowing is not None:
        # After the total: what is left out must not lend its probability to what shares its prefix
        logits = logits.masked_fill(narrowing.forbidden(nodes, level), -torch.inf)
    # -inf - (-inf) is NaN: what has no child is masked again after every subtraction
    dead_end = logits == -torch.inf
    logp = draw = (logits - total).masked_fill(dead_end, -torch.inf)
    # Drawing has a distribution of its own, over the children and at a temperature; scores do not
    if temperature is not None:
        scaled = logits / temperature
        draw = scaled - torch.logsumexp(scaled, dim=-1, keepdim=True)
        draw = draw.masked_fill(dead_end, -torch.inf)
    if trie.has_short_sids:
        # A beam that is whole already competes on, unchanged, with those that still grow
        finished = trie.leaf[nodes] >= 0  # (B, W)
        child[..., 0] = torch.where(finished, nodes, child[..., 0])
        logp[..., 0] = torch.where(finished, 0.0, logp[..., 0])
        draw[..., 0] = torch.where(finished, 0.0, draw[..., 0])
    return child, logp, draw


def _choose(
    state: _State,
    child: Tensor,
    logp: Tensor,
    draw: Tensor,
    num_beams: int,
    rollout: str,
    generator: Noise,
) -> tuple[_State, Tensor]:
    """Keep the best (or the drawn) candidates.

    Returns:
        The new beams, and which beam each one continues, ``(B, W)``.
    """
    _, width, fan_out = child.shape
    # Log-probabilities add up along the path
    score = state.scores[..., None] + logp  # (B, W, F)
    drawn = state.draws[..., None] + draw
    noise = drawn
    if rollout == "gumbel":
        noise = _gumbel_top_down(drawn, state.noise, generator)
    if rollout == "sample":
        # Gumbel-max: every walk draws one child of its own node
        picked = (draw - _exponential(draw, generator).log()).argmax(dim=-1)  # (B, W)
        chosen = torch.arange(width, device=child.device) * fan_out + picked
    else:
        key = noise if rollout == "gumbel" else score
        chosen = _best(key.flatten(1), min(num_beams, width * fan_out))

    # ``chosen`` numbers the candidates beam by beam
    parents = chosen // fan_out  # (B, W)
    scores = score.flatten(1).gather(1, chosen)
    nodes = child.flatten(1).gather(1, chosen).long()
    levels = state.token_logps.shape[-1]
    before = state.token_logps.gather(1, parents[..., None].expand(-1, -1, levels))
    now = logp.flatten(1).gather(1, chosen)
    kept = _State(
        nodes=torch.where(scores > -torch.inf, nodes, 0),
        scores=scores,
        draws=drawn.flatten(1).gather(1, chosen),
        noise=noise.flatten(1).gather(1, chosen),
        token_logps=torch.cat([before, now[..., None]], dim=-1),
    )
    return kept, parents


def _best(key: Tensor, count: int) -> Tensor:
    """Places of the highest values, best first, ties in the order of the candidates.

    ``topk`` alone lets in any of the candidates that are tied for the last places, and lists them
    in any order.

    Returns:
        ``(B, count)``.
    """
    key = torch.where(key.isnan(), torch.inf, key)  # in sight: the search ends with an error
    lowest = key.topk(count, dim=1).values[:, -1:]  # (B, 1) the value that is just good enough
    better = key > lowest
    tied = key == lowest
    places_left = count - better.sum(1, keepdim=True)
    is_in = better | (tied & (tied.cumsum(1) <= places_left))  # (B, candidates), count of them

    # Their places in ascending order, then by value; the second sort keeps the order of ties
    candidates = key.shape[1]
    places = torch.arange(candidates, device=key.device).expand_as(key)
    places = torch.where(is_in, places, candidates)
    places = places.topk(count, dim=1, largest=False).values.sort(dim=1).values
    order = key.gather(1, places).sort(dim=1, descending=True, stable=True).indices
    return places.gather(1, order)


def _gumbel_top_down(logp: Tensor, parent_noise: Tensor, generator: Noise) -> Tensor:
    """Gumbels of the children, given that their maximum is the parent's.

    Source: arXiv:1903.06059, appendix B.3.

    Args:
        logp: ``(B, W, F)`` log-probability of each child's partial sequence, -inf where there is
            none.
        parent_noise: ``(B, W)`` the parents' perturbed log-probabilities.
    """
    noise = logp - _exponential(logp, generator).log()  # (B, W, F), unconditioned
    # Shift all children so that their largest is the parent's: a parent's luck passes on to one
    # child
    top = noise.amax(dim=-1, keepdim=True)
    target = parent_noise[..., None]
    # The paper's numerically stable form; the largest child takes its parent's value exactly
    gap = target - noise + torch.log1p(-torch.exp((noise - top).clamp(max=-1e-7)))
    moved = target - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
    moved = torch.where(noise == top, target, moved)
    return moved.masked_fill(logp == -torch.inf, -torch.inf)


def _exponential(like: Tensor, generator: Noise) -> Tensor:
    """Exponential noise ``(B, ...)``, from a generator for each prompt if there are several."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.empty_like(like).exponential_(generator=generator)
    noise = torch.empty_like(like)
    for row, own in zip(noise, generator, strict=True):
        row.copy_(torch.empty_like(row).exponential_(generator=own))
    return noise


def length_sorted(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Numbers of the prompts in batches of similar length, longest first."""
    # Longest first: if memory runs out, then at the beginning
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def search_batches(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    trie: SidTrie,
    num_beams: int,
    batches: Sequence[Sequence[int]],
    *,
    normalize: str = "vocab",
    excluded: Mapping[int, Sequence[int]] | None = None,
    mask: Mask | None = None,
    progress: str = "",
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Search some batches of the prompts, in eval mode.

    A batch has the same results whichever others are searched: what it shares with them is the
    beginning of all ``prompts``.

    Args:
        model: whose scores rank.
        prompts: token ids of all samples.
        trie: the catalogue, on the model's device.
        num_beams: at least 1.
        batches: numbers of the prompts to search together.
        normalize: as for ``constrained_beam_search``.
        excluded: by number of a prompt, leaves that must not be returned.
        mask: what may be returned at all.
        progress: what it is called where it takes long; "" shows nothing.

    Yields:
        ``(B, W)`` leaves (-1 where there is no further item) and ``(B, W)`` scores of one batch
        after the other.
    """
    if num_beams < 1:
        raise UserError(f"num_beams: got {num_beams}, expected at least 1")
    # A catalogue with fewer SIDs than beams has that many places
    width = min(num_beams, trie.num_leaves)
    # Validation comes in the middle of training, whose mode is given back
    was_training = model.training
    model.eval()
    try:
        # The common beginning is that of all prompts, so that it does not depend on who takes which
        # batch
        decoder = make_decoder(model)
        if batches:
            with torch.inference_mode():
                decoder.read_beginning(prompts)
        with Progress(progress, sum(map(len, batches)), "users") as bar:
            for batch in batches:
                # Exclusion may leave fewer items than places
                leaves = np.full((len(batch), width), -1, dtype=np.int64)
                scores = np.full((len(batch), width), -np.inf, dtype=np.float32)
                with torch.inference_mode():
                    beams = constrained_beam_search(
                        decoder,
                        [prompts[i] for i in batch],
                        trie,
                        width,
                        normalize=normalize,
                        excluded=None if excluded is None else [excluded[i] for i in batch],
                        masks=None if mask is None else [mask] * len(batch),
                    )
                leaves[:, : beams.leaves.shape[1]] = beams.leaves.cpu().numpy()
                scores[:, : beams.scores.shape[1]] = beams.scores.float().cpu().numpy()
                bar.update(len(batch))
                yield leaves, scores
    finally:
        model.train(was_training)
