"""The tokens of a model: a tokenizer for a catalogue, and SID tokens added to one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minionerec.catalogue.sids import SidTable
from minionerec.experiment.shared import made_once

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the catalogue's text; every string can be encoded and decoded back.

    All processes of a launch ask together; one of each machine reads the texts.
    """
    (written,) = made_once(lambda: [_learnt(texts, vocab_size)])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(written.tobytes().decode()),
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _learnt(texts: Iterable[str], vocab_size: int) -> np.ndarray:
    """The tokenizer as the bytes of its file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return np.frombuffer(tokenizer.to_str().encode(), np.uint8)


def extend_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sids: SidTable, seed: int
) -> list[int]:
    """Add the SID tokens and give each a row of its own, on the input and on the output side.

    New rows are drawn around the mean of the rows in use with their spread, also where a checkpoint
    has spare padding rows that would otherwise be taken over as they are. Tokens of the tokenizer
    for which the checkpoint has no row get one in the same way. The matrices grow if needed and
    never shrink.

    Returns:
        The token ids whose rows were initialised; empty when the tokenizer knows all tokens
        already.
    """
    # Some checkpoints have more rows than tokens (padding), a few have fewer
    rows = model.get_input_embeddings().weight.shape[0]
    used = min(len(tokenizer), rows)
    without_row = list(range(rows, len(tokenizer)))
    # Tokens that the tokenizer knows keep their rows, whatever they meant to the backbone
    known = tokenizer.get_vocab()
    new = [token for token in sids.tokens() if token not in known]
    tokenizer.add_tokens(new, special_tokens=True)
    new_ids = without_row + tokenizer.convert_tokens_to_ids(new)
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if not new_ids:
        return []

    # A generator of its own: the rows depend on the seed alone, not on what was drawn before
    generator = torch.Generator().manual_seed(seed)
    sides = [model.get_input_embeddings().weight]
    if model.get_output_embeddings().weight is not sides[0]:  # not tied
        sides.append(model.get_output_embeddings().weight)
    for weight in sides:  # (V, D)
        with torch.no_grad():
            # Rows of 0 or of one value would make all new tokens equally likely, and equal in the
            # input
            old = weight[:used].float()
            noise = torch.randn(len(new_ids), weight.shape[1], generator=generator)
            drawn = old.mean(0) + noise.to(weight.device) * old.std(0)
            weight[new_ids] = drawn.to(weight.dtype)
    return new_ids
