"""SID rows that start from meaning: a code's row is made from the words of its items.

A new token is usually drawn at random around the pretrained rows. Here the row of code k at level l
is the mean of the pretrained rows of the words that set its items apart from the items of the
level's other codes (TF-IDF, one document a code), rescaled to the table's mean norm. The idea is
the one of TS-Rec's semantic-aware initialisation; controls are ``random`` (the usual draw) and
``shuffled_words`` (the right words on the wrong codes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minionerec.catalogue.sids import SidTable

WORDS_PER_CODE = 20


def start_from_words(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sids: SidTable,
    texts: Sequence[str],
    new_ids: Sequence[int],
    pretrained_rows: int,
    shuffle_seed: int | None = None,
) -> None:
    """Give the new SID tokens rows made from words, on the input and the untied output side.

    Args:
        model: its tables hold drawn rows for the new tokens already; codes without words keep them.
        tokenizer: with the SID tokens.
        sids: of the catalogue.
        texts: of the items, in the order of ``sids``.
        new_ids: the token ids that may be changed; rows that were trained before stay.
        pretrained_rows: how many rows of the tables are pretrained; they come first.
        shuffle_seed: not None deals the words of a level to its codes at random (the control).
    """
    new = set(new_ids)
    tables = [model.get_input_embeddings().weight]
    if model.get_output_embeddings().weight is not tables[0]:  # not tied
        tables.append(model.get_output_embeddings().weight)
    for level, token_ids in enumerate(sids.level_token_ids(tokenizer)):
        words = words_of_codes(texts, sids.codes, level, len(token_ids))
        if shuffle_seed is not None:
            words = shuffled(words, shuffle_seed + level)
        ids = []
        own_words = []
        for token, own in zip(token_ids, words, strict=True):
            if token in new:
                ids.append(token)
                own_words.append(own)
        for table in tables:  # (V, D)
            with torch.no_grad():
                rows = rows_from_words(table[:pretrained_rows], tokenizer, own_words, table[ids])
                table[ids] = rows.to(table.dtype)


def words_of_codes(
    texts: Iterable[str], codes: Sequence[Sequence[int]], level: int, codebook_size: int
) -> list[list[str]]:
    """The words that set each code of one level apart from the others, best first.

    Args:
        texts: of each item, N of them.
        codes: of each item, N tuples; an item whose SID is shorter than ``level`` has no say.
        level: from 0.
        codebook_size: K.

    Returns:
        K lists of at most ``WORDS_PER_CODE`` words; a code without items has none.
    """
    documents: list[list[str]] = [[] for _ in range(codebook_size)]
    for text, sid in zip(texts, codes, strict=True):
        if level < len(sid):
            documents[sid[level]].append(text)
    joined = [" ".join(document) for document in documents]
    if not any(text.strip() for text in joined):
        return [[] for _ in joined]
    # Sublinear counts: a word that one long description repeats must not crowd out the others.
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w\w+\b")
    try:
        weights = vectorizer.fit_transform(joined)  # (K, words), sparse
    except ValueError:  # texts without a single word of two letters
        return [[] for _ in joined]
    vocabulary = vectorizer.get_feature_names_out()
    found = []
    for row in range(codebook_size):
        start, stop = weights.indptr[row], weights.indptr[row + 1]
        columns, values = weights.indices[start:stop], weights.data[start:stop]
        # Ties by the word itself, so that the order depends on nothing but the texts.
        order = np.lexsort((vocabulary[columns], -values))[:WORDS_PER_CODE]
        found.append(vocabulary[columns[order]].tolist())
    return found


def rows_from_words(
    table: Tensor, tokenizer: PreTrainedTokenizerBase, words: Sequence[Sequence[str]], drawn: Tensor
) -> Tensor:
    """One row per code: the mean of its words' pretrained rows, rescaled to the table's mean norm.

    Args:
        table: pretrained rows in use, ``(V, D)``.
        tokenizer: of that table; a word counts as its first position in running text, with a
            space before it.
        words: of each code, K lists.
        drawn: what a code without words gets, ``(K, D)``.

    Returns:
        ``(K, D)`` float32.
    """
    table = table.detach().float()
    mean_norm = table.norm(dim=1).mean()
    rows = drawn.float().clone()
    for code, own in enumerate(words):
        ids = []
        for word in own:
            pieces = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            ids += [token for token in pieces if token < len(table)]
        if ids:
            mean = table[torch.tensor(ids, device=table.device)].mean(dim=0)  # (D,)
            rows[code] = mean * (mean_norm / mean.norm().clamp_min(1e-12))
    return rows


def shuffled(words: list[list[str]], seed: int) -> list[list[str]]:
    """The same lists of words on other codes.

    The control for "words help because they are the right ones".
    """
    order = np.random.default_rng(seed).permutation(len(words))
    return [words[i] for i in order]
