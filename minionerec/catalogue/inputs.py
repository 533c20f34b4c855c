"""The catalogue of an experiment, opened once: items, samples, SIDs, and what follows from them."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from minionerec.catalogue.compact import IntLists
from minionerec.catalogue.item_text import item_texts, shown_parts
from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.samples import (
    Sample,
    Samples,
    load_samples,
    seen_items,
    window_samples,
)
from minionerec.catalogue.sids import SIDS_FILE, SidTable, load_sids
from minionerec.catalogue.templates import Template
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import UserError
from minionerec.experiment.files import load_array
from minionerec.experiment.lineage import open_stage
from minionerec.experiment.manifest import Parent
from minionerec.experiment.settings import Experiment


@dataclass(frozen=True)
class Catalogue:
    """What stages 2 to 4 read of the stages before them.

    Example:
        >>> catalogue = Catalogue.open(read_experiment("configs/quickstart.yaml"))  # doctest: +SKIP
        >>> catalogue.sids.codes[catalogue.positions(["E0001"])[0]]  # doctest: +SKIP
        (3, 14, 15)
    """

    experiment: Experiment
    data: Parent  # runs/<name>/data and runs/<name>/sids, as they were when they were opened
    sids_stage: Parent
    samples: Samples
    sids: SidTable

    @classmethod
    def open(cls, experiment: Experiment) -> Catalogue:
        """Read ``runs/<name>/data`` and ``runs/<name>/sids``.

        Raises:
            UserError: one of them is missing, damaged, or was made with other settings than the
                experiment's; they do not belong together; or a split has no sample.
        """
        data = open_stage(experiment, "data")
        sids_stage = open_stage(experiment, "sids")
        samples, sids = load_catalogue(experiment, data.path, sids_stage.path)
        return cls(experiment, data, sids_stage, samples, sids)

    @property
    def items(self) -> pd.DataFrame:
        """item_id, title, description, brand, categories; the row is the item index."""
        return self.samples.items

    @property
    def item_ids(self) -> list[str]:
        """Item ids in the order of the item indexes."""
        return self.sids.item_ids

    @property
    def parents(self) -> list[Parent]:
        """What a stage that reads the catalogue is made from."""
        return [self.data, self.sids_stage]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    def positions(self, item_ids: Sequence[str]) -> list[int]:
        """The item indexes of some ids.

        Raises:
            UserError: an id is unknown; the nearest known one is named.
        """
        unknown = [item_id for item_id in item_ids if item_id not in self._index]
        if unknown:
            near = difflib.get_close_matches(unknown[0], self.item_ids, n=1)
            hint = f"ids look like '{self.item_ids[0]}'"
            if near:
                hint = f"did you mean '{near[0]}'?"
            raise UserError(
                f"{len(unknown)} of {len(item_ids)} ids are not in "
                f"{self.data.path / 'items.parquet'}: {', '.join(unknown[:5])}; {hint}"
            )
        return [self._index[item_id] for item_id in item_ids]

    def texts(self) -> Iterator[str]:
        """All that prompts may show of every item: what a scratch tokenizer learns from."""
        return texts(self.items, self.experiment.sids.text)

    def embeddings(self) -> np.ndarray:
        """``(N, D)`` float32 text embeddings of the items, from stage 1."""
        return load_array(self.sids_stage.path / "embeddings.npy").astype(np.float32)

    def train_targets(self) -> Sequence[Sample]:
        """The rows that SFT learns to complete: every train target, or those of ``sft.rows``."""
        experiment = self.experiment
        if experiment.sft.rows == "per_user":
            longest = experiment.data.max_history
            return window_samples(self.samples.train_sequences, longest, experiment.seed)
        return self.samples.splits["train"]

    def seen(self, split: str) -> IntLists:
        """For every sample of a split the items that its user had before, all of them."""
        return seen_items(self.samples.splits[split])

    def trie(self, tokenizer: PreTrainedTokenizerBase) -> SidTrie:
        """The SIDs as a tokenizer's tokens."""
        return trie(self.sids, tokenizer)

    def renderer(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, max_tokens: int
    ) -> Renderer:
        """The one renderer of all stages."""
        shown = shown_parts(self.experiment.sids.text)
        return renderer(tokenizer, template, self.sids, self.samples, max_tokens, shown)


def load_catalogue(
    experiment: Experiment, data_dir: Path, sids_dir: Path
) -> tuple[Samples, SidTable]:
    """Samples and SIDs of the same items.

    Raises:
        UserError: they do not belong together, or a split has no sample.
    """
    samples = load_samples(data_dir, experiment.data.max_history)
    for split, rows in samples.splits.items():
        if not rows:
            raise UserError(
                f"{data_dir}: the {split} split has no sample; prepare the data with another "
                "data.split or more users"
            )
    return samples, load_sids(sids_dir / SIDS_FILE, samples.item_ids)


def texts(items: pd.DataFrame, parts: Sequence[str] = ("title", "description")) -> Iterator[str]:
    """What a scratch tokenizer learns from; ``parts`` is ``sids.text``."""
    added = [part for part in shown_parts(parts) if part != "title"]
    further = item_texts(items, added) if added else itertools.repeat("", len(items))
    columns = (items["title"], items["description"], further)
    for title, description, more in zip(*columns, strict=True):
        text = f"{title}\n{description}"
        yield f"{text}\n{more}" if more else text


def renderer(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    sids: SidTable,
    samples: Samples,
    max_tokens: int,
    shown: Sequence[str] = ("title",),
) -> Renderer:
    """The one renderer of all stages."""
    token_ids = sids.token_ids(tokenizer)
    return Renderer(tokenizer, template, token_ids, samples.items, max_tokens, shown)


def trie(sids: SidTable, tokenizer: PreTrainedTokenizerBase) -> SidTrie:
    """The catalogue as token tables."""
    return SidTrie(sids.table, sids.level_token_ids(tokenizer))
