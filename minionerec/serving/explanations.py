"""Why an item: what its codes stand for, and which items of the history it is nearest to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from minionerec.catalogue.inputs import Catalogue
from minionerec.experiment.files import load_array

WORD = re.compile(r"[^\W\d_]{3,}")
MOST_TITLES = 2_000  # of a prefix, and of the catalogue to compare with: words do not need more
WORDS = 3  # of a prefix
NEAREST = 2  # items of a history


class Explanation(NamedTuple):
    """Why an item stands in a list."""

    codes: tuple[int, ...]  # its SID
    words: tuple[tuple[str, ...], ...]  # per prefix of the SID, what its items' titles have
    nearest: tuple[tuple[str, float], ...]  # items of the history, with their texts' cosine


class Explainer:
    """Explains items of a catalogue; what it finds out about a prefix is kept."""

    def __init__(self, catalogue: Catalogue):
        self._catalogue = catalogue
        self._titles = catalogue.items["title"]
        self._codes = catalogue.sids.table  # (N, L), -1 behind shorter SIDs
        everything = np.arange(len(self._titles))
        self._usual = self._shares(everything)
        self._words_of = lru_cache(maxsize=100_000)(self._find_words)
        self._embeddings = None
        file = catalogue.sids_stage.path / "embeddings.npy"
        if file.is_file():
            self._embeddings = load_array(file)

    def explain(self, item: int, history: Sequence[int]) -> Explanation:
        """Why an item may be next after a history, both as item indexes."""
        codes = self._catalogue.sids.codes[item]
        words = []
        for depth in range(1, len(codes) + 1):
            words.append(self._words_of(codes[:depth]))
        return Explanation(codes, tuple(words), self._nearest(item, history))

    def _nearest(self, item: int, history: Sequence[int]) -> tuple[tuple[str, float], ...]:
        if self._embeddings is None:
            return ()
        shown = list(dict.fromkeys(history))
        vectors = self._embeddings[shown].astype(np.float32)  # (H, D)
        own = self._embeddings[item].astype(np.float32)  # (D,)
        lengths = np.linalg.norm(vectors, axis=1)
        lengths *= np.linalg.norm(own)
        cosine = vectors @ own
        cosine /= np.maximum(lengths, 1e-12)
        order = np.argsort(-cosine, kind="stable")
        found = []
        for place in order[:NEAREST].tolist():
            item_id = self._catalogue.item_ids[shown[place]]
            similarity = round(float(cosine[place]), 3)
            found.append((item_id, similarity))
        return tuple(found)

    def _find_words(self, prefix: tuple[int, ...]) -> tuple[str, ...]:
        """Words that titles below a prefix have and others have not."""
        depth = len(prefix)
        is_below = (self._codes[:, :depth] == prefix).all(axis=1)
        items = np.flatnonzero(is_below)
        least = 1.0 / MOST_TITLES
        gain = {}
        for word, share in self._shares(items).items():
            usual = self._usual.get(word, least)
            # How much knowing the prefix says about a title having the word
            gain[word] = share * np.log(share / usual)
        best = sorted(gain, key=lambda word: (-gain[word], word))
        return tuple(best[:WORDS])

    def _shares(self, items: np.ndarray) -> dict[str, float]:
        """Word -> share of these items' titles that have it."""
        if len(items) > MOST_TITLES:
            rng = np.random.default_rng(0)
            items = rng.choice(items, MOST_TITLES, replace=False)
        counts: Counter[str] = Counter()
        for title in self._titles.iloc[items]:
            words = WORD.findall(title.lower())
            counts.update(set(words))
        return {word: count / len(items) for word, count in counts.items()}
