"""TIGER (Rajput et al., arXiv:2305.05065): a T5-style encoder-decoder over semantic IDs.

The encoder reads a token for the user and the SIDs of the history, the decoder writes the SID of
the next item. Trained from scratch on every train sample with cross-entropy over the whole
vocabulary; ranked by the same constrained beam search as the language models, so no invalid or
repeated item comes out. Departures from the paper:

1. The SIDs are the experiment's, whatever ``sids.method``.
2. Input and output embeddings are separate: tied ones learn far slower at this size.
3. The optimiser is AdamW, and the epoch and dropout are chosen on validation NDCG@10.

Shapes: B histories, T encoder tokens, W beams, D width, V vocabulary.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from minionerec.catalogue.samples import Sample, Samples, fixed_subset
from minionerec.catalogue.sids import SidTable
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.settings import BaselineSettings
from minionerec.model.beam_search import constrained_beam_search
from minionerec.model.output_head import LogitsHead
from minionerec.rankers.baseline import Inputs, Ranking, parameters_of, printer
from minionerec.rankers.fitting import Log, Trained, cut_batches, fit, try_all
from minionerec.rankers.places import find_target, ndcg_at_k
from minionerec.rankers.sequential import IGNORED

PAD = 0  # also starts the decoder, as in T5
END = 1
USER_TOKENS = 2000  # user ids are hashed to so many tokens (section 4 of the paper)
HEAD_SIZE = 32  # width of an attention head
VALID_ROWS = 1000  # a fixed random sample of the validation rows decides about early stopping
RANKED_TOGETHER = 64  # histories per search

Lists = list[list[Any]]


class Vocabulary:
    """Token ids: PAD, END, user tokens, then the codes of every level."""

    def __init__(self, sids: SidTable):
        first_code = 2 + USER_TOKENS
        starts = first_code + np.concatenate([[0], np.cumsum(sids.codebook_sizes)])
        self.size = int(starts[-1])
        self.level_tokens = []
        for start, end in zip(starts, starts[1:], strict=False):
            self.level_tokens.append(list(range(start, end)))
        self.sids = [self.written(codes) for codes in sids.codes]

    def written(self, codes: Sequence[int]) -> list[int]:
        """The tokens of a SID."""
        return [self.level_tokens[level][code] for level, code in enumerate(codes)]

    def prompt(self, sample: Sample) -> list[int]:
        """The encoder's tokens."""
        tokens = [2 + zlib.crc32(sample.user_id.encode()) % USER_TOKENS]
        for item in sample.history:
            tokens += self.sids[item]
        return [*tokens, END]


class EncoderDecoder:
    """What beam search asks of a decoder (``prefill``, ``extend``), for an encoder-decoder.

    Its "hidden states" are logits already.
    """

    def __init__(self, model: T5ForConditionalGeneration):
        self.model = model
        self.head = LogitsHead()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the histories once; logits of the first code, ``(B, V)``."""
        ids, self._mask = pad(prompts, self.model.device)
        encoded = self.model.encoder(input_ids=ids, attention_mask=self._mask)
        self._states = encoded.last_hidden_state  # (B, T, D)
        # (B, W, codes so far), one beam with the start token
        self._paths = torch.full((len(prompts), 1, 1), PAD, device=ids.device)
        return self._last_logits()[:, 0]

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """One more code per beam: ``(B, W)`` tokens and the beams they continue; ``(B, W, V)``."""
        length = self._paths.shape[-1]
        before = self._paths.gather(1, parents[..., None].expand(-1, -1, length))
        self._paths = torch.cat([before, tokens[..., None]], dim=-1)
        return self._last_logits()

    def _last_logits(self) -> Tensor:
        """Logits after the last code of every beam, ``(B, W, V)``."""
        batch, width, length = self._paths.shape
        states = self._states.repeat_interleave(width, dim=0)  # (B * W, T, D)
        mask = self._mask.repeat_interleave(width, dim=0)
        output = self.model(
            encoder_outputs=BaseModelOutput(states),
            attention_mask=mask,
            decoder_input_ids=self._paths.view(-1, length),
            use_cache=False,
        )
        return output.logits[:, -1].view(batch, width, -1)


def rank_test(method: str, inputs: Inputs, directory: Path) -> Ranking:
    """Train the model, save it in ``directory``, rank the test rows."""
    sids = inputs.sids
    if sids is None:
        raise ValueError("the SIDs of stage 1 are not among these inputs")
    trained = train(
        inputs.samples,
        sids,
        inputs.experiment.seed,
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
    settings: BaselineSettings,
    show: Log = lambda row: None,
) -> Trained:
    """Train every combination of ``tiger_dropout`` and ``tiger_learning_rate``; keep the best.

    Only train samples are learnt from and only validation samples decide. The caller's random state
    is left as it was.
    """
    vocabulary = Vocabulary(sids)

    def train_one(choice: dict[str, Any], log: Log) -> T5ForConditionalGeneration:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = new_model(vocabulary, settings, choice["dropout"])
            optimizer = torch.optim.AdamW(
                model.parameters(),
                lr=choice["learning_rate"],
                weight_decay=settings.weight_decay,
            )
            fit(
                "tiger",
                model,
                epoch_of(model, optimizer, vocabulary, samples, settings.tiger_batch_size, seed),
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
        eos_token_id=END,
        decoder_start_token_id=PAD,
        tie_word_embeddings=False,
    )
    model = T5ForConditionalGeneration(config)
    # Its standard deviation is 1, so the first logits would be of size sqrt(D).
    model.lm_head.weight.data.mul_(width**-0.5)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def epoch_of(
    model: T5ForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    vocabulary: Vocabulary,
    samples: Samples,
    batch_size: int,
    seed: int,
) -> Callable[[], list[float]]:
    """A function that trains one pass over the train samples and returns its steps' losses."""
    rows = []
    for sample in samples.splits["train"]:
        rows.append((vocabulary.prompt(sample), vocabulary.sids[sample.target]))
    rng = np.random.default_rng(seed)

    def epoch() -> list[float]:
        model.train()
        shuffled = [rows[i] for i in rng.permutation(len(rows))]
        batches = cut_batches(shuffled, batch_size, rng, length=lambda row: len(row[0]))
        return [train_step(model, optimizer, batch) for batch in batches]

    return epoch


def train_step(
    model: T5ForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> float:
    """One optimiser step on histories and the SIDs that follow them; returns the loss."""
    ids, mask = pad([prompt for prompt, _ in rows], model.device)
    labels, known = pad([target for _, target in rows], model.device)
    labels = labels.masked_fill(known == 0, IGNORED)
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids ``(B, T)``, padded on the right, and which of them are real ``(B, T)``."""
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows],
        batch_first=True,
        padding_value=PAD,
    )
    lengths = torch.tensor([len(row) for row in rows])  # (B,)
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids.to(device), real.long().to(device)


def validator(
    model: T5ForConditionalGeneration, samples: Samples, sids: SidTable, seed: int
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
    trie = SidTrie(sids.codes, vocabulary.level_tokens).to(model.device)
    was_training = model.training
    decoder = EncoderDecoder(model.eval())
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
            [vocabulary.prompt(rows[i]) for i in batch],
            trie,
            min(num_beams, trie.num_leaves),
            excluded=excluded,
        )
        found = zip(batch, beams.leaves.tolist(), beams.scores.tolist(), strict=True)
        for i, leaves, values in found:
            left_out = unwanted[i] if unwanted else ()
            items[i], scores[i] = trie.items_of_leaves(leaves, values, left_out)
    model.train(was_training)
    return items, scores
