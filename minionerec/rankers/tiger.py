"""TIGER (Rajput et al., arXiv:2305.05065): a T5-style encoder-decoder over semantic IDs.

The encoder reads the SIDs of the history, the decoder writes the SID of the next item (section
3.2). Trained from scratch; ranked by the same constrained beam search as the language models, so no
invalid or repeated item comes out. Departures from the paper:

1. The SIDs are the experiment's, whatever ``sids.method``.
2. Loss and scores are taken over the codes that may follow, not over the whole vocabulary: the
   model need not learn which items exist.
3. The encoder lets an item see itself and earlier items only. All targets of a window then share
   one pass of the encoder, on the rows of the next-item networks.
4. No token for the user: the language models and networks beside it see none.
5. Weights start at a fifth of T5's size, the output layer so that the first logits are of size 1:
   embeddings of size 1, made for Adafactor, hardly move under AdamW's steps. Input and output have
   tables of their own.
6. AdamW, with a warm-up and a cosine to 0; the epoch and what else is open are chosen on
   validation NDCG@10.

Shapes: B windows or histories, M blocks (targets or beams), L codes of a SID, T = items * L encoder
tokens, D width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from minionerec.catalogue.samples import Sample, Samples, fixed_subset, windows
from minionerec.catalogue.sids import SidTable
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.settings import BaselineSettings
from minionerec.model.beam_search import constrained_beam_search
from minionerec.model.output_head import LogitsHead, children_logps, pick_child
from minionerec.rankers.baseline import Inputs, Ranking, parameters_of, printer
from minionerec.rankers.fitting import Log, Trained, cut_batches, fit, try_all
from minionerec.rankers.places import find_target, ndcg_at_k

PAD = 0  # starts the decoder, as in T5, and stands where a SID has fewer codes than L
HEAD_SIZE = 32  # width of an attention head
INITIAL = 0.2  # size of the weights at the start, in units of T5's
WARM_UP = 0.05  # share of the steps in which the step size rises
HIDDEN = torch.finfo(torch.float32).min  # added to an attention score that must not count
VALID_ROWS = 1000  # a fixed random sample of the validation rows decides about early stopping
RANKED_TOGETHER = 64  # histories per search

Lists = list[list[Any]]


class Vocabulary:
    """Token ids: PAD, then the codes of every level; and the trie of the catalogue over them.

    >>> Vocabulary(SidTable(["x", "y"], [(1, 0), (2,)], [3, 1], "digest")).sids.tolist()
    [[2, 4], [3, 0]]
    """

    def __init__(self, sids: SidTable):
        starts = 1 + np.concatenate([[0], np.cumsum(sids.codebook_sizes)])
        self.size = int(starts[-1])
        level_tokens = [list(range(a, b)) for a, b in zip(starts, starts[1:], strict=False)]
        self.trie = SidTrie(sids.codes, level_tokens)
        self.levels = self.trie.num_levels
        self.sids = torch.full((len(sids.codes), self.levels), PAD)  # (N, L)
        before = np.zeros((len(sids.codes), self.levels), dtype=np.int64)
        for item, codes in enumerate(sids.codes):
            for level, code in enumerate(codes):
                self.sids[item, level] = level_tokens[level][code]
            before[item, 1 : len(codes)] = self.trie.item_path(item)[:-1]
        self.nodes_before = before  # (N, L) trie node in which each code is chosen

    def prompt(self, history: Sequence[int]) -> list[int]:
        """The encoder's tokens, L for every item."""
        return self.sids[list(history)].flatten().tolist()


class SidHead(LogitsHead):
    """The output layer; only the columns that are asked for are computed."""

    def __init__(self, model: T5ForConditionalGeneration):
        super().__init__(model.lm_head)
        self.weight = model.lm_head.weight  # (V, D)

    def columns(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., len(tokens))``."""
        return (hidden @ self.weight[tokens].T).float()


class EncoderDecoder:
    """``prefill`` and ``extend`` of ``minionerec.model.beam_search`` for an encoder-decoder."""

    def __init__(self, model: T5ForConditionalGeneration, levels: int):
        self.model = model
        self.head = SidHead(model)
        self.levels = levels

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the histories once; the hidden state that chooses the first code, ``(B, D)``."""
        ids, real = pad(prompts, self.model.device)
        self._states = encode(self.model, ids, self.levels)
        self._seen = torch.where(real, 0.0, HIDDEN)[:, None, None]  # (B, 1, 1, T)
        self._paths = torch.full((len(prompts), 1, 1), PAD, device=ids.device)  # (B, W, codes)
        return self._last()[:, 0]

    def extend(self, tokens: Tensor, parents: Tensor, asked: Tensor | None = None) -> Tensor:
        """One more code per beam: ``(B, W)`` tokens and the beams they continue; ``(B, W, D)``.

        All beams are read, whether they were ``asked`` for or not: a network is never served.
        """
        before = self._paths.gather(1, parents[..., None].expand(-1, -1, self._paths.shape[-1]))
        self._paths = torch.cat([before, tokens[..., None]], dim=-1)
        return self._last()

    def _last(self) -> Tensor:
        return decode(self.model, self._paths, self._states, self._seen)[:, :, -1]


def encode(model: T5ForConditionalGeneration, ids: Tensor, levels: int) -> Tensor:
    """``(B, T)`` tokens of histories, padded on the right, to states ``(B, T, D)``."""
    mask = item_mask(ids.shape[1], levels, ids.device)
    return model.encoder(ids, attention_mask=mask.expand(len(ids), -1, -1, -1)).last_hidden_state


def decode(
    model: T5ForConditionalGeneration,
    blocks: Tensor,
    states: Tensor,
    seen: Tensor,
) -> Tensor:
    """Hidden states of the decoder for many blocks per history, which do not see each other.

    Args:
        model: the network.
        blocks: ``(B, M, l)`` tokens, each block PAD and the codes so far.
        states: ``(B, T, D)`` from ``encode``.
        seen: added to the attention scores on the states, ``(B or 1, 1, M * l or 1, T)``.

    Returns:
        ``(B, M, l, D)``.
    """
    batch, number, length = blocks.shape
    place = torch.arange(number * length, device=blocks.device)
    own = place[:, None] // length == place[None, :] // length
    earlier = place[None, :] <= place[:, None]
    mask = torch.where(own & earlier, 0.0, HIDDEN)[None, None]  # (1, 1, M * l, M * l)
    hidden = model.decoder(
        blocks.reshape(batch, -1),
        attention_mask=mask.expand(batch, -1, -1, -1),
        encoder_hidden_states=states,
        encoder_attention_mask=seen.expand(batch, 1, len(place), -1),
        use_cache=False,
    ).last_hidden_state
    return hidden.view(batch, number, length, -1)


def item_mask(length: int, levels: int, device: torch.device) -> Tensor:
    """``(1, 1, T, T)`` 0 where a token's item is not later than the row's, ``HIDDEN`` elsewhere."""
    item = torch.arange(length, device=device) // levels
    return torch.where(item[None, :] <= item[:, None], 0.0, HIDDEN)[None, None]


def rank_test(method: str, inputs: Inputs, directory: Path) -> Ranking:
    """Train the model, save it in ``directory``, rank the test rows."""
    sids = inputs.sids
    if sids is None:
        raise ValueError("the SIDs of stage 1 are not among these inputs")
    trained = train(
        inputs.samples,
        sids,
        inputs.experiment.seed,
        inputs.experiment.data.max_history,
        inputs.experiment.baselines,
        printer(method),
    )
    trained.model.save_pretrained(directory)
    ready = time.perf_counter()
    items, scores = rank(
        trained.model,
        inputs.samples.splits["test"],
        sids,
        inputs.depth,
        inputs.unwanted_of("test"),
    )
    return Ranking(
        items,
        scores,
        facts={
            "chosen": trained.chosen,
            "tried": trained.tried,
            "sids_sha256": sids.sha256,
        },
        parameters=parameters_of(trained.model),
        ready=ready,
        log=trained.log,
        sids_tie=True,
    )


def train(
    samples: Samples,
    sids: SidTable,
    seed: int,
    max_history: int,
    settings: BaselineSettings,
    show: Log = lambda row: None,
) -> Trained:
    """Train every combination of ``tiger_dropout`` and ``tiger_learning_rate``; keep the best.

    Only train sequences are learnt from and only validation samples decide. The caller's random
    state is left as it was.
    """
    vocabulary = Vocabulary(sids)

    def train_one(choice: dict[str, Any], log: Log) -> T5ForConditionalGeneration:
        """A model trained with one choice of the grid, its best epoch kept."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = new_model(vocabulary, settings, choice["dropout"])
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=choice["learning_rate"], weight_decay=settings.weight_decay
            )
            fit(
                "tiger",
                model,
                epoch_of(model, optimizer, vocabulary, samples, max_history, settings, seed),
                validator(model, samples, sids, seed),
                settings.tiger_epochs,
                settings.patience,
                log,
            )
        return model

    grid = {"dropout": settings.tiger_dropout, "learning_rate": settings.tiger_learning_rate}
    return try_all(grid, train_one, show)


def new_model(
    vocabulary: Vocabulary, settings: BaselineSettings, dropout: float
) -> T5ForConditionalGeneration:
    """Random weights, on the first GPU if there is one."""
    width = settings.tiger_hidden_size
    config = T5Config(
        vocab_size=vocabulary.size,
        d_model=width,
        d_kv=HEAD_SIZE,
        num_heads=max(1, width // HEAD_SIZE),
        d_ff=4 * width,
        num_layers=settings.tiger_layers,
        dropout_rate=dropout,
        pad_token_id=PAD,
        decoder_start_token_id=PAD,
        initializer_factor=INITIAL,
        tie_word_embeddings=False,
    )
    model = T5ForConditionalGeneration(config)
    torch.nn.init.normal_(model.lm_head.weight, std=width**-0.5)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def epoch_of(
    model: T5ForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    vocabulary: Vocabulary,
    samples: Samples,
    max_history: int,
    settings: BaselineSettings,
    seed: int,
) -> Callable[[], Iterator[float]]:
    """A function that trains one pass over the train sequences and yields its steps' losses."""
    rng = np.random.default_rng(seed)
    rows = len(windows(samples.train_sequences, max_history, np.random.default_rng(seed)))
    steps = settings.tiger_epochs * math.ceil(rows / settings.tiger_batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step_size(step, steps))

    def epoch() -> Iterator[float]:
        model.train()
        shuffled = windows(samples.train_sequences, max_history, rng)
        for batch in cut_batches(shuffled, settings.tiger_batch_size, rng):
            loss = train_step(model, optimizer, vocabulary, batch)
            schedule.step()
            yield loss

    return epoch


def step_size(step: int, steps: int) -> float:
    """Share of the largest step size: up in a line over ``WARM_UP``, then down a cosine to 0.

    >>> [round(step_size(step, 101), 2) for step in (0, 4, 53, 101)]
    [0.2, 1.0, 0.5, 0.0]
    """
    rising = max(1, int(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))


def train_step(
    model: T5ForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    vocabulary: Vocabulary,
    rows: Sequence[Sequence[int]],
) -> float:
    """One optimiser step on windows of items; every item after a window's first is a target.

    Returns:
        The loss, a mean over codes.
    """
    device = model.device
    longest = max(map(len, rows)) - 1
    items = torch.full((len(rows), longest + 1), -1)
    for place, row in enumerate(rows):
        items[place, : len(row)] = torch.tensor(row)
    tokens = vocabulary.sids[items.clamp(min=0)]
    tokens[items < 0] = PAD
    tokens = tokens.to(device)  # (B, M + 1, L)
    histories, targets = tokens[:, :-1], tokens[:, 1:]  # target m is chosen after history 0 ... m
    states = encode(model, histories.flatten(1), vocabulary.levels)
    blocks = torch.cat([torch.full_like(targets[..., :1], PAD), targets[..., :-1]], dim=-1)
    seen = item_mask(states.shape[1], vocabulary.levels, device)
    known = targets != PAD  # (B, M, L)
    hidden = decode(model, blocks, states, seen)[known]  # (J, D), a row per code
    wanted = targets[known]
    nodes = vocabulary.nodes_before[items[:, 1:].clamp(min=0).numpy()][known.cpu().numpy()]
    children = torch.from_numpy(vocabulary.trie.child_tokens(nodes)).to(device)  # (J, F)
    order = torch.arange(len(wanted), device=device)
    logps = children_logps(hidden, SidHead(model), order, children)
    loss = -pick_child(logps, children, wanted).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids ``(B, T)``, padded on the right, and which of them are real ``(B, T)``."""
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD
    )
    lengths = torch.tensor([len(row) for row in rows])
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


def validator(
    model: T5ForConditionalGeneration,
    samples: Samples,
    sids: SidTable,
    seed: int,
) -> Callable[[], float] | None:
    """NDCG@10 of ``VALID_ROWS`` validation samples, counted per item; None where there are none."""
    rows = fixed_subset(samples.splits["valid"], VALID_ROWS, seed)
    sid_of = dict(enumerate(sids.codes))

    def validate() -> float:
        lists, _ = rank(model, rows, sids, num_beams=10)
        values = []
        for items, sample in zip(lists, rows, strict=True):
            values.append(ndcg_at_k(find_target(items, sample.target, sid_of), 10))
        return float(np.mean(values))

    return validate if rows else None


@torch.inference_mode()
def rank(
    model: T5ForConditionalGeneration,
    rows: Sequence[Sample],
    sids: SidTable,
    num_beams: int,
    unwanted: Sequence[Collection[int]] | None = None,
) -> tuple[Lists, Lists]:
    """Item indexes, best first, and their log-probabilities, a list each per row.

    Items that share a SID all stand at its place.

    Args:
        model: evaluated without dropout, whatever mode it is in.
        rows: whose histories are read.
        sids: of the catalogue.
        num_beams: SIDs per row; a smaller catalogue is ranked whole.
        unwanted: per row, items that must not be ranked.
    """
    vocabulary = Vocabulary(sids)
    trie = vocabulary.trie.to(model.device)
    was_training = model.training
    decoder = EncoderDecoder(model.eval(), vocabulary.levels)
    # Histories of similar length share a search, which saves padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].history))
    items: Lists = [[] for _ in rows]
    scores: Lists = [[] for _ in rows]
    for start in range(0, len(rows), RANKED_TOGETHER):
        batch = order[start : start + RANKED_TOGETHER]
        excluded = None
        if unwanted:
            excluded = [trie.leaves_only_of(unwanted[i]) for i in batch]
        beams = constrained_beam_search(
            decoder,
            [vocabulary.prompt(rows[i].history) for i in batch],
            trie,
            min(num_beams, trie.num_leaves),
            normalize="trie",
            excluded=excluded,
        )
        found = zip(batch, beams.leaves.tolist(), beams.scores.tolist(), strict=True)
        for i, leaves, values in found:
            left_out = unwanted[i] if unwanted else ()
            items[i], scores[i] = trie.items_of_leaves(leaves, values, left_out)
    model.train(was_training)
    return items, scores
