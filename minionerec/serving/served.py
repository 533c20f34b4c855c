"""What the server answers from: one object that is never changed, only replaced as a whole."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.masks import Mask
from minionerec.errors import UserError
from minionerec.experiment.files import sha256_json
from minionerec.experiment.settings import Experiment
from minionerec.model.beam_search import constrained_beam_search
from minionerec.model.decoders import ReplayDecoder, TreeDecoder, make_decoder
from minionerec.model.ranking import TASK
from minionerec.serving.bodies import RecommendBody
from minionerec.serving.fuser import Fuser, Ranked
from minionerec.serving.item_filters import ItemFilters, read_attributes
from minionerec.serving.opening import open_run
from minionerec.serving.recommender import Recommender

KEPT_MASKS = 64  # filters that were asked for last
FEW = 200  # denied items that are looked up one by one; more are a mask


@dataclass(frozen=True, eq=False)
class Question:
    """One history, ready for the search."""

    served: Served  # what it was asked of, and is answered from
    history: list[int]
    prompt: list[int]
    unwanted: frozenset[int]
    mask: Mask | None
    k: int  # items that are wanted


@dataclass(frozen=True, eq=False)
class Served:
    """Model, catalogue, filters and fusion of one version."""

    version: int
    recommender: Recommender
    _masks: OrderedDict[str, Mask] = field(default_factory=OrderedDict)
    _masks_lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def digest(self) -> str:
        """Of all that an answer depends on."""
        catalogue = self.recommender.catalogue
        return sha256_json(
            [
                catalogue.data.digest,
                catalogue.sids.sha256,
                self.recommender.policy.checkpoint.digest,
                self.recommender.filters.digest,
            ]
        )

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids in the order of the item indexes."""
        return self.recommender.catalogue.item_ids

    @cached_property
    def titles(self) -> list[str]:
        """Titles in the order of the item indexes."""
        return self.recommender.catalogue.items["title"].tolist()

    @cached_property
    def _decoder(self) -> TreeDecoder | ReplayDecoder:
        """Only for the thread that searches: it keeps the beginning that all prompts share."""
        policy = self.recommender.policy
        policy.model.eval()
        decoder = make_decoder(policy.model)
        # The prompts of two items with different first codes share the wording and nothing else
        codes = policy.catalogue.sids.codes
        other = next((item for item, sid in enumerate(codes) if sid[0] != codes[0][0]), None)
        if other is not None:
            prompts = [policy.renderer.prompt(TASK, [item]) for item in (0, other)]
            with torch.inference_mode():
                decoder.read_beginning(prompts)
        return decoder

    def questions(self, body: RecommendBody) -> list[Question]:
        """What a request asks, history by history.

        Raises:
            UserError: an id, a column or a value is unknown.
        """
        recommender = self.recommender
        experiment = recommender.catalogue.experiment
        exclude = body.exclude_history
        if exclude is None:
            exclude = experiment.evaluate.exclude_history
        mask = None
        denied: frozenset[int] = frozenset()
        if body.allow is None and not body.where and len(body.deny or ()) <= FEW:
            denied = frozenset(recommender.filters.positions("deny", body.deny or ()).tolist())
        else:
            mask = self._mask(body)
        questions = []
        for item_ids in body.histories:
            history = recommender.history(item_ids)
            unwanted = denied.union(history) if exclude else denied
            latest = history[-experiment.data.max_history :]
            prompt = recommender.policy.renderer.prompt(TASK, latest)
            questions.append(Question(self, latest, prompt, unwanted, mask, body.k))
        return questions

    def search(self, questions: Sequence[Question]) -> list[Ranked]:
        """Answer questions of this version with one search; only one thread may do that."""
        recommender = self.recommender
        policy = recommender.policy
        excluded = []
        for question in questions:
            allowed = None if question.mask is None else question.mask.items
            excluded.append(policy.trie.leaves_only_of(question.unwanted, allowed))
        width = min(recommender.num_beams, policy.trie.num_leaves)
        # A fusion reads the whole lists; else what nobody sees need not be found
        wanted = max(question.k for question in questions)
        if recommender.fuser is not None:
            wanted = width
        with torch.inference_mode():
            beams = constrained_beam_search(
                self._decoder,
                [question.prompt for question in questions],
                policy.trie,
                width,
                wanted=min(wanted, width),
                normalize=policy.normalize,
                excluded=excluded,
                masks=[question.mask for question in questions],
            )
        leaves = beams.leaves.tolist()
        scores = beams.scores.float().tolist()
        lists = []
        for row, question in enumerate(questions):
            allowed = None if question.mask is None else question.mask.items
            lists.append(
                policy.trie.items_of_leaves(leaves[row], scores[row], question.unwanted, allowed)
            )
        if recommender.fuser is None:
            return lists
        return self._fused(recommender.fuser, questions, lists)

    def _fused(
        self, fuser: Fuser, questions: Sequence[Question], lists: list[Ranked]
    ) -> list[Ranked]:
        """Lists united with those of the rules; questions with the same filter go together."""
        found: dict[int, Ranked] = {}
        for mask in dict.fromkeys(question.mask for question in questions):
            rows = [row for row, question in enumerate(questions) if question.mask is mask]
            fused = fuser.fuse(
                [lists[row] for row in rows],
                [questions[row].history for row in rows],
                self.recommender.num_beams,
                [questions[row].unwanted for row in rows],
                None if mask is None else mask.items,
            )
            found |= zip(rows, fused, strict=True)
        return [found[row] for row in range(len(questions))]

    def _mask(self, body: RecommendBody) -> Mask | None:
        """The filter of a request; those that were asked for last are kept."""
        key = json.dumps([body.allow, body.deny, body.where])
        with self._masks_lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key]
        mask = self.recommender.mask(body.allow, body.deny, body.where)
        if mask is not None:
            with self._masks_lock:
                self._masks[key] = mask
                while len(self._masks) > KEPT_MASKS:
                    self._masks.popitem(last=False)
        return mask


class Versions:
    """The version that is served and the one before it, swapped by reference.

    A request takes ``current`` once and is answered from it to the end, whatever comes after.

    Args:
        run: folder of the run.
        checkpoint: ``sft``, ``rl`` or a folder; None: the newest.
        attributes: file with further columns to filter by; read again with every reload.
        fusion: unite lists with those of rules, if the run was evaluated so.
    """

    def __init__(
        self,
        run: Path,
        checkpoint: str | None = None,
        attributes: Path | None = None,
        fusion: bool = True,
    ):
        self._run = run
        self._checkpoint = checkpoint
        self._attributes = attributes
        self._fusion = fusion
        self._loading = threading.Lock()
        self._before: Served | None = None
        experiment = open_run(run, checkpoint)
        self.current = Served(1, Recommender.open(self._chosen(experiment), attributes))
        self._newest = 1
        prepare(self.current)

    def reload(self, name: str | None) -> Served:
        """Load the run again, or the one called ``name`` beside it, then serve that.

        Raises:
            UserError: it cannot be served; what was served stays.
        """
        with self._one_at_a_time():
            run = self._run
            if name is not None:
                if not name or Path(name).name != name or name.startswith("."):
                    raise UserError(f"name: got '{name[:60]}', expected a plain folder name")
                run = self._run.parent / name
            recommender = self._open(run)
            served = Served(self._newest + 1, recommender)
            prepare(served)
            self._newest = served.version
            self._run = run
            self._before = self.current
            self.current = served
            return served

    def rollback(self) -> Served:
        """Serve the version before again; once more undoes that.

        Raises:
            UserError: there is none.
        """
        with self._one_at_a_time():
            if self._before is None:
                raise UserError("there is no version before this one")
            self.current, self._before = self._before, self.current
            return self.current

    def _open(self, run: Path) -> Recommender:
        """A run with the model that is served already, if it is the same checkpoint."""
        experiment = self._chosen(open_run(run, self._checkpoint))
        policy = self.current.recommender.policy
        catalogue = Catalogue.open(experiment)
        if not policy.is_of(experiment.evaluate.checkpoint, catalogue):
            return Recommender.open(experiment, self._attributes)
        table = None if self._attributes is None else read_attributes(self._attributes)
        filters = ItemFilters(catalogue.items, table)
        return Recommender(policy.over(catalogue), filters, Fuser.of(catalogue))

    def _chosen(self, experiment: Experiment) -> Experiment:
        """The experiment, without its fusion if none is wanted."""
        if self._fusion:
            return experiment
        return experiment.changed({"evaluate.fusion": {}})

    def _one_at_a_time(self) -> threading.Lock:
        if self._loading.locked():
            raise UserError("another reload is on its way; wait for it")
        return self._loading


def prepare(served: Served) -> None:
    """Make what the first request would wait for, all but what the searching thread makes."""
    served.digest  # noqa: B018, it is kept
    served.titles  # noqa: B018
    everything = np.ones(len(served.item_ids), dtype=bool)
    served.recommender.policy.masks.build(everything)
    first = served.item_ids[:1]
    served.questions(RecommendBody(histories=[first]))
