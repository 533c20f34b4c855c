"""TIGER (Rajput et al., arXiv:2305.05065): a T5-style encoder-decoder from scratch over the experiment's own semantic IDs.

The encoder reads a token for the user and the SIDs of the history, the decoder writes the SID of the next item. Trained on
every train sample with cross-entropy over the whole vocabulary; ranked by the same constrained beam search as the language
models, so no invalid or repeated item comes out. Departures from the paper: the SIDs are the experiment's (whatever
``sids.method``), input and output embeddings are separate (tied ones learn far slower at this size), the optimiser is
AdamW, and the epoch and dropout are chosen on validation NDCG@10.
Shapes: B histories, T encoder tokens, W beams, D width, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from minionerec.catalogue.samples import Sample, Samples, fixed_subset
from minionerec.catalogue.sids import SidTable
from minionerec.catalogue.trie import SidTrie
from minionerec.evaluation.metrics import find_target, ndcg_at_k
from minionerec.evaluation.ranking import excluded_leaves
from minionerec.experiment.settings import BaselineSettings
from minionerec.model.beam_search import constrained_beam_search
from minionerec.model.output_head import LogitsHead
from minionerec.rankers.fitting import Log, Trained, cut_batches, fit, try_all
from minionerec.rankers.sequential import IGNORED

PAD, END = 0, 1  # PAD also starts the decoder, as in T5
USER_TOKENS = 2000  # user ids are hashed to so many tokens (section 4 of the paper)
HEAD_SIZE = 32  # width of an attention head
VALID_ROWS = 1000  # a fixed random sample of the validation rows decides about early stopping
RANKED_TOGETHER = 64  # histories per search


class Vocabulary:
    """Token ids: PAD, END, user tokens, then the codes of every level."""

    def __init__(self, sids: SidTable):
        starts = 2 + USER_TOKENS + np.concatenate([[0], np.cumsum(sids.codebook_sizes)])
        self.size = int(starts[-1])
        self.level_tokens = [
            list(range(start, end)) for start, end in zip(starts, starts[1:], strict=False)
        ]
        self.sids = [
            [self.level_tokens[level][code] for level, code in enumerate(codes)]
            for codes in sids.codes
        ]

    def prompt(self, sample: Sample) -> list[int]:
        """The encoder's tokens."""
        user = 2 + zlib.crc32(sample.user_id.encode()) % USER_TOKENS
        return [user, *(token for item in sample.history for token in self.sids[item]), END]


class EncoderDecoder:
    """``prefill`` and ``extend`` of ``minionerec.beam_search`` for an encoder-decoder; its "hidden states" are logits."""

    def __init__(self, model: T5ForConditionalGeneration):
        self.model, self.head = model, LogitsHead()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the histories once; logits of the first code, ``(B, V)``."""
        ids, self._mask = pad(prompts, self.model.device)
        self._states = self.model.encoder(
            input_ids=ids, attention_mask=self._mask
        ).last_hidden_state  # (B, T, D)
        self._paths = torch.full(
            (len(prompts), 1, 1), PAD, device=ids.device
        )  # (B, W, codes so far)
        return self._last_logits()[:, 0]

    def extend(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """One more code per beam: ``(B, W)`` tokens and the beams they continue -> logits ``(B, W, V)``."""
        before = self._paths.gather(1, parents[..., None].expand(-1, -1, self._paths.shape[-1]))
        self._paths = torch.cat([before, tokens[..., None]], dim=-1)
        return self._last_logits()

    def _last_logits(self) -> Tensor:
        batch, width, length = self._paths.shape
        states, mask = (
            value.repeat_interleave(width, dim=0) for value in (self._states, self._mask)
        )
        logits = self.model(
            encoder_outputs=BaseModelOutput(states),
            attention_mask=mask,
            decoder_input_ids=self._paths.view(-1, length),
            use_cache=False,
        ).logits[:, -1]
        return logits.view(batch, width, -1)


def train(
    samples: Samples,
    sids: SidTable,
    seed: int,
    settings: BaselineSettings,
    show: Log = lambda row: None,
) -> Trained:
    """Train every combination of ``tiger_dropout`` and ``tiger_learning_rate``; keep the best on validation NDCG@10.

    Only train samples are learnt from and only validation samples decide. The caller's random state is left as it was.
    """
    vocabulary = Vocabulary(sids)

    def train_one(choice: dict[str, float], log: Log) -> T5ForConditionalGeneration:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = new_model(vocabulary, settings, choice["dropout"])
            optimizer = torch.optim.AdamW(
                model.parameters(), lr=choice["learning_rate"], weight_decay=settings.weight_decay
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

    return try_all(
        {"dropout": settings.tiger_dropout, "learning_rate": settings.tiger_learning_rate},
        train_one,
        show,
    )


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
    model.lm_head.weight.data.mul_(
        width**-0.5
    )  # its standard deviation is 1: the first logits would be of size sqrt(D)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def epoch_of(
    model: T5ForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    vocabulary: Vocabulary,
    samples: Samples,
    batch_size: int,
    seed: int,
) -> Callable[[], list[float]]:
    """A function that trains one pass over the train samples and returns the losses of its steps."""
    rows = [
        (vocabulary.prompt(sample), vocabulary.sids[sample.target])
        for sample in samples.splits["train"]
    ]
    rng = np.random.default_rng(seed)

    def epoch() -> list[float]:
        model.train()
        shuffled = [rows[i] for i in rng.permutation(len(rows))]
        return [
            train_step(model, optimizer, batch)
            for batch in cut_batches(shuffled, batch_size, rng, length=lambda row: len(row[0]))
        ]

    return epoch


def train_step(
    model: T5ForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> float:
    """One optimiser step on (encoder tokens, SID) rows; returns the loss, a mean over codes."""
    ids, mask = pad([prompt for prompt, _ in rows], model.device)
    labels, known = pad([target for _, target in rows], model.device)
    loss = model(
        input_ids=ids, attention_mask=mask, labels=labels.masked_fill(known == 0, IGNORED)
    ).loss
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
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)


def validator(
    model: T5ForConditionalGeneration, samples: Samples, sids: SidTable, seed: int
) -> Callable[[], float] | None:
    """NDCG@10 of ``VALID_ROWS`` validation samples, counted per item; None where there are none."""
    rows = fixed_subset(samples.splits["valid"], VALID_ROWS, seed)
    sid_of = dict(enumerate(sids.codes))

    def validate() -> float:
        lists = rank(model, rows, sids, num_beams=10)[0]
        return float(
            np.mean(
                [
                    ndcg_at_k(find_target(items, sample.target, sid_of), 10)
                    for items, sample in zip(lists, rows, strict=True)
                ]
            )
        )

    return validate if rows else None


@torch.inference_mode()
def rank(
    model: T5ForConditionalGeneration,
    rows: Sequence[Sample],
    sids: SidTable,
    num_beams: int,
    unwanted: Sequence[Collection[int]] | None = None,
) -> tuple[list[list[int]], list[list[float]]]:
    """Item indexes, best first, and their log-probabilities: items that share a SID all stand at its place.

    Args:
        unwanted: per row, items that must not be ranked.
    """
    vocabulary, was_training = Vocabulary(sids), model.training
    trie, decoder = (
        SidTrie(sids.codes, vocabulary.level_tokens).to(model.device),
        EncoderDecoder(model.eval()),
    )
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].history))
    items: list[list[int]] = [[] for _ in rows]
    scores: list[list[float]] = [[] for _ in rows]
    for start in range(0, len(rows), RANKED_TOGETHER):
        batch = order[start : start + RANKED_TOGETHER]
        beams = constrained_beam_search(
            decoder,
            [vocabulary.prompt(rows[i]) for i in batch],
            trie,
            min(num_beams, trie.num_leaves),
            excluded=[excluded_leaves(trie, unwanted[i]) for i in batch] if unwanted else None,
        )
        for i, leaves, values in zip(
            batch, beams.leaves.tolist(), beams.scores.tolist(), strict=True
        ):
            found = [
                (item, value)
                for leaf, value in zip(leaves, values, strict=True)
                if leaf >= 0
                for item in trie.items_of_leaf(leaf)
                if not unwanted or item not in unwanted[i]
            ]
            items[i], scores[i] = [item for item, _ in found], [value for _, value in found]
    model.train(was_training)
    return items, scores
