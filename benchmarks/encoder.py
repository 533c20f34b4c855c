"""A small text encoder with random weights, for benchmarks and tests of stage 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast


def save_encoder(folder: Path, words: Sequence[str], width: int = 16) -> Path:
    """A sentence-transformers folder: one-layer BERT with random weights and mean pooling.

    Its vocabulary is word-level: ``words``, a few more and the numbers below 60.
    """
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *words,
        "for",
        "more",
        "&",
        *map(str, range(60)),
    ]
    torch.manual_seed(0)
    size = {
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
    }
    BertModel(
        BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **size)
    ).save_pretrained(folder / "hf")
    BertTokenizerFast(
        vocab={word: number for number, word in enumerate(vocabulary)}
    ).save_pretrained(folder / "hf")
    transformer = Transformer(str(folder / "hf"), max_seq_length=32)
    SentenceTransformer(
        modules=[transformer, Pooling(width, pooling_mode="mean")], device="cpu"
    ).save(str(folder / "model"))
    return folder / "model"
