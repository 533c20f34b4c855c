"""A language model that recommends: weights, tokenizer, prompt and search of one checkpoint.

    catalogue = Catalogue.open(read_experiment("configs/quickstart.yaml"))
    policy = Policy.load("rl", catalogue)
    policy.recommend([["E0001", "E0002"]], k=5)

A checkpoint says itself how it wants to be asked: the wording of its prompts, the longest prompt,
and the distribution that its scores come from lie beside its weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.masks import Mask, MaskBuilder
from minionerec.catalogue.prompts import Renderer
from minionerec.catalogue.samples import Sample
from minionerec.catalogue.sids import SIDS_FILE
from minionerec.catalogue.templates import (
    TEMPLATE_FILE,
    TEMPLATES,
    Template,
    load_template,
    save_template,
)
from minionerec.catalogue.trie import SidTrie
from minionerec.errors import UserError
from minionerec.experiment.files import read_json, sha256_json, write_json
from minionerec.experiment.lineage import Checkpoint, open_checkpoint, require_unchanged
from minionerec.experiment.manifest import Parent
from minionerec.experiment.run import say
from minionerec.experiment.settings import ModelSettings
from minionerec.model import backbone
from minionerec.model.ranking import Ranker, Unwanted

POLICY_FILE = "policy.json"
VOCABULARY = "vocabulary_sha256"  # in it: of {token: id}
NEW = Checkpoint(Path(), "", [], {})  # of a model that is no checkpoint yet


class Recommendation(NamedTuple):
    """An item and how likely the model holds it to be the next one."""

    item_id: str
    title: str
    score: float  # log-probability of its SID


@dataclass(frozen=True)
class Policy:
    """A model and all that is needed to ask it for items of a catalogue.

    Make one with ``load`` or ``create``.
    """

    catalogue: Catalogue
    checkpoint: Checkpoint  # where it was loaded from
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    normalize: str  # the distribution of its scores: vocab or trie
    max_tokens: int  # prompt and completion together
    renderer: Renderer
    trie: SidTrie

    @classmethod
    def create(cls, catalogue: Catalogue, dropout: float = 0.0) -> Policy:
        """The model that SFT starts from: the backbone of the settings, with tokens for the SIDs.

        Args:
            catalogue: whose SIDs it will write.
            dropout: models from scratch only.

        Raises:
            UserError: the backbone cannot be loaded or built.
        """
        experiment = catalogue.experiment
        settings = experiment.model
        model, tokenizer = backbone.build(
            settings, catalogue.sids, catalogue.texts(), experiment.seed, dropout
        )
        template = TEMPLATES[settings.template]
        asked = {"normalize": settings.normalize, "max_tokens": settings.max_tokens}
        return cls._with_tables(catalogue, NEW, model, tokenizer, template, asked)

    @classmethod
    def load(
        cls, checkpoint: str | Path, catalogue: Catalogue, dtype: torch.dtype | None = None
    ) -> Policy:
        """A trained checkpoint, on the CPU; ``to`` moves it.

        Args:
            checkpoint: ``sft``, ``rl``, or the folder of any checkpoint with these SID tokens.
            catalogue: what it is to recommend from.
            dtype: of the weights; by default what ``model.dtype`` says.

        Raises:
            UserError: there is no such checkpoint, it was made with other settings than the
                experiment's or for other SIDs, or it cannot be loaded.
        """
        settings = catalogue.experiment.model
        found = open_checkpoint(catalogue.experiment, str(checkpoint))
        backbone.check_sids(found.path, catalogue.sids)
        if dtype is None:
            dtype = backbone.precision(settings.dtype)[0]
        model, tokenizer = backbone.load(found.path, dtype, settings.trust_remote_code)
        template = load_template(found.path, settings.template)
        catalogue.sids.level_token_ids(tokenizer)  # a tokenizer without them says so first
        asked = how_it_is_asked(found.path, settings, tokenizer)
        say_what_is_trusted(found.path)
        require_unchanged(found.sources)
        return cls._with_tables(catalogue, found, model, tokenizer, template, asked)

    @classmethod
    def _with_tables(
        cls,
        catalogue: Catalogue,
        checkpoint: Checkpoint,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        asked: dict[str, Any],
    ) -> Policy:
        renderer = catalogue.renderer(tokenizer, template, asked["max_tokens"])
        return cls(
            catalogue=catalogue,
            checkpoint=checkpoint,
            model=model,
            tokenizer=tokenizer,
            template=template,
            normalize=asked["normalize"],
            max_tokens=asked["max_tokens"],
            renderer=renderer,
            trie=catalogue.trie(tokenizer),
        )

    def is_of(self, checkpoint: str, catalogue: Catalogue) -> bool:
        """Whether ``load`` would find the checkpoint that this policy was loaded from.

        Raises:
            UserError: as ``load``.
        """
        found = open_checkpoint(catalogue.experiment, checkpoint)
        return found.digest == self.checkpoint.digest

    def over(self, catalogue: Catalogue) -> Policy:
        """The same model, not loaded again, over another catalogue with these SID tokens.

        Raises:
            UserError: the model was trained for other SIDs.
        """
        backbone.check_sids(self.checkpoint.path, catalogue.sids)
        asked = {"normalize": self.normalize, "max_tokens": self.max_tokens}
        policy = self._with_tables(
            catalogue, self.checkpoint, self.model, self.tokenizer, self.template, asked
        )
        return policy.to(self.model.device)

    @property
    def parents(self) -> list[Parent]:
        """What a stage that reads this policy and its catalogue is made from."""
        return [*self.catalogue.parents, *self.checkpoint.parents]

    def to(self, device: torch.device | str) -> Policy:
        """The same policy with its model and its search tables on a device."""
        return dataclasses.replace(self, model=self.model.to(device), trie=self.trie.to(device))

    def model_again(self, dtype: torch.dtype) -> PreTrainedModel:
        """The checkpoint's model once more, e.g. as a reference that stays as it is."""
        settings = self.catalogue.experiment.model
        return backbone.load(self.checkpoint.path, dtype, settings.trust_remote_code)[0]

    def sid_token_ids(self) -> list[int]:
        """Token ids of all SID tokens, level by level."""
        levels = self.catalogue.sids.level_token_ids(self.tokenizer)
        return [token for level in levels for token in level]

    @cached_property
    def masks(self) -> MaskBuilder:
        """What turns sets of items into filters of the search."""
        return MaskBuilder(self.trie)

    def ranker(
        self,
        samples: Sequence[Sample],
        num_beams: int,
        unwanted: Unwanted | None = None,
        mask: Mask | None = None,
    ) -> Ranker:
        """What ranks the catalogue for some samples.

        Args:
            samples: of which the histories count.
            num_beams: items to rank.
            unwanted: per sample the items that must not be recommended.
            mask: what may be recommended at all.
        """
        return Ranker(
            self.model,
            samples,
            self.renderer,
            self.trie,
            num_beams,
            normalize=self.normalize,
            unwanted=unwanted,
            mask=mask,
        )

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int,
        exclude: Sequence[Collection[str]] | None = None,
        allow: Collection[str] | None = None,
    ) -> list[list[Recommendation]]:
        """The k next items for each history, best first; fewer where fewer may be recommended.

        The lists are the first k of those that an evaluation writes for the same histories.

        Args:
            histories: item ids, oldest first; what is longer than ``data.max_history`` loses its
                oldest items.
            k: items per history, at least 1.
            exclude: for each history the item ids that must not be recommended, e.g. ``histories``.
            allow: the only item ids that may be recommended; None: the whole catalogue.

        Raises:
            UserError: an id is not in the catalogue.
        """
        if not histories:
            return []
        experiment = self.catalogue.experiment
        samples = []
        for history in histories:
            items = self.catalogue.positions(history)
            samples.append(Sample("", tuple(items[-experiment.data.max_history :]), 0, 0))
        unwanted = None
        if exclude is not None:
            unwanted = [frozenset(self.catalogue.positions(list(ids))) for ids in exclude]
        mask = None
        if allow is not None:
            allowed = np.zeros(len(self.catalogue.item_ids), dtype=bool)
            allowed[self.catalogue.positions(list(allow))] = True
            mask = self.masks.build(allowed)
        width = max(k, experiment.evaluate.num_beams)
        ranker = self.ranker(samples, width, unwanted, mask)
        lists: list[list[Recommendation]] = [[] for _ in samples]
        for batch, (leaves, scores) in zip(
            ranker.batches, ranker.rank(ranker.batches), strict=True
        ):
            for row, number in enumerate(batch):
                items, item_scores = ranker.items(number, leaves[row], scores[row])
                ranked = zip(items[:k], item_scores[:k], strict=True)
                lists[number] = [self._recommendation(item, score) for item, score in ranked]
        return lists

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write a complete checkpoint.

        Args:
            model: whose weights to write: this policy's own after training, adapters merged.
            directory: there already, without a checkpoint.
        """
        self.save_companions(directory)
        sids_file = directory / SIDS_FILE
        backbone.save(model, self.tokenizer, sids_file, self.template, directory)

    def save_companions(self, directory: Path) -> None:
        """Write what belongs beside the weights: the SIDs as they were read, and how to ask."""
        (directory / SIDS_FILE).write_bytes(self.catalogue.sids.raw)
        save_template(self.template, directory)
        asked = {"normalize": self.normalize, "max_tokens": self.max_tokens}
        tokens = {VOCABULARY: sha256_json(self.tokenizer.get_vocab())}
        write_json(directory / POLICY_FILE, asked | tokens)

    def _recommendation(self, item: int, score: float) -> Recommendation:
        title = self.catalogue.items["title"].iloc[item]
        return Recommendation(self.catalogue.item_ids[item], title, score)


def say_what_is_trusted(checkpoint: Path) -> None:
    """Tell which of its companions a foreign checkpoint lacks, and what nothing shows therefore."""
    wanted = (SIDS_FILE, TEMPLATE_FILE, POLICY_FILE)
    lacking = [name for name in wanted if not (checkpoint / name).is_file()]
    if lacking:
        say(
            f"note: {checkpoint}: has no {', '.join(lacking)}: that it was trained with this "
            "experiment's SIDs, model.template and model.normalize is taken on trust"
        )


def how_it_is_asked(
    checkpoint: Path, settings: ModelSettings, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """``normalize`` and ``max_tokens`` of a checkpoint; a foreign one takes them from the settings.

    Raises:
        UserError: the checkpoint's file says something else, or names another tokenizer.
    """
    file = checkpoint / POLICY_FILE
    if not file.is_file():
        return {"normalize": settings.normalize, "max_tokens": settings.max_tokens}
    try:
        content = read_json(file.read_text(encoding="utf-8"))
        asked = {name: content[name] for name in ("normalize", "max_tokens")}
        settings.changed(asked)
        vocabulary = content.get(VOCABULARY)  # the first versions did not note it
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(
            f"{file}: does not say how the model is asked ({type(error).__name__}: {error}); "
            "expected normalize and max_tokens; train this checkpoint again"
        ) from None
    if vocabulary not in (None, sha256_json(tokenizer.get_vocab())):
        raise UserError(
            f"{checkpoint}: its tokenizer is not the one that it was trained with (other tokens, "
            f"or others for the same ids, than {POLICY_FILE} notes); copy the tokenizer's files "
            "from where the model was trained"
        )
    return asked
