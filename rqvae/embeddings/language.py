"""Does the encoder know the language of the catalogue? The share of tokens unknown to it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minionerec.catalogue.sources.cells import shorten
from rqvae.embeddings.texts import TextStore

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SAMPLE = 5000  # texts looked at, spread evenly over the catalogue
MOST_UNKNOWN = 0.05  # share of tokens; above it texts lose what sets them apart
MULTILINGUAL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"


class Unknown(NamedTuple):
    """How much of the texts an encoder cannot read."""

    share: float  # of the tokens
    example: str  # the text with most of them; "" without any


def unknown_tokens(model: SentenceTransformer, store: TextStore) -> Unknown:
    """The share of the texts' tokens that the encoder's vocabulary lacks.

    Encoders whose tokens are bytes know everything: 0.
    """
    tokenizer = model.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return Unknown(0.0, "")
    count = min(len(store.first), SAMPLE)
    numbers = np.linspace(0, len(store.first) - 1, count).astype(int)
    texts = store.read(numbers)
    encoded = tokenizer(
        texts, truncation=True, max_length=model.max_seq_length, add_special_tokens=False
    )["input_ids"]
    total = 0
    missed = []
    for ids in encoded:
        total += len(ids)
        missed.append(ids.count(unknown))
    worst = int(np.argmax(missed))
    example = texts[worst] if missed[worst] else ""
    return Unknown(sum(missed) / max(total, 1), example)


def language_warning(encoder: str, unknown: Unknown) -> str:
    """One line if too much is unknown, else ""."""
    if unknown.share <= MOST_UNKNOWN:
        return ""
    return (
        f"warning: {unknown.share:.0%} of the tokens of the item texts are unknown to sids.encoder "
        f"'{encoder}', e.g. in {shorten(unknown.example)}: it was made for another language, and "
        "such items look alike to it. Name a multilingual encoder, e.g. --sids.encoder "
        f"{MULTILINGUAL}, or give vectors of your own with sids.embeddings"
    )
