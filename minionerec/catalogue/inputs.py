"""What every stage after the first two opens: samples, SIDs, trie, and the prompts' renderer."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase

from minionerec.catalogue.prompts import TEMPLATES, Renderer, Template
from minionerec.catalogue.samples import Samples, load_samples
from minionerec.catalogue.sids import SIDS_FILE, SidTable, load_sids
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import UserError
from minionerec.experiment.settings import Experiment, ModelSettings


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
                f"{data_dir}: the {split} split has no sample; prepare the data with another data.split or more users"
            )
    return samples, load_sids(sids_dir / SIDS_FILE, samples.item_ids)


def texts(items: pd.DataFrame) -> list[str]:
    """What a scratch tokenizer learns from."""
    return [
        f"{title}\n{description}"
        for title, description in zip(items["title"], items["description"], strict=True)
    ]


def template_of(settings: ModelSettings) -> Template:
    """The built-in wording that the settings name."""
    return TEMPLATES[settings.template]


def renderer(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    sids: SidTable,
    samples: Samples,
    max_tokens: int,
) -> Renderer:
    """The one renderer of all stages."""
    return Renderer(tokenizer, template, sids.token_ids(tokenizer), samples.items, max_tokens)


def trie(sids: SidTable, tokenizer: PreTrainedTokenizerBase) -> SidTrie:
    """The catalogue as token tables."""
    return SidTrie(sids.codes, sids.level_token_ids(tokenizer))
