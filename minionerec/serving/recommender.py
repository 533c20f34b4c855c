"""Recommendations from a notebook or a program.

    from minionerec import Recommender

    recommender = Recommender.load("runs/quickstart")
    lists = recommender.recommend([["E0001", "E0002"]], k=5, where={"brand": ["Acme"]})
    for item in lists[0]:
        print(item.rank, item.item_id, item.title, item.explanation)

Lists are those that ``evaluate.py`` writes for the same histories. Filters narrow the search
itself, so that k items come back whenever k items are left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.masks import Mask
from minionerec.catalogue.samples import Sample
from minionerec.errors import UserError
from minionerec.experiment import processes
from minionerec.experiment.settings import Experiment
from minionerec.model.policy import Policy
from minionerec.model.ranking import Ranker
from minionerec.serving.explanations import Explainer, Explanation
from minionerec.serving.fuser import Fuser, Ranked
from minionerec.serving.item_filters import ItemFilters, Where, read_attributes
from minionerec.serving.opening import open_run


@dataclass(frozen=True)
class Recommended:
    """One place of a list."""

    rank: int  # from 1
    item_id: str
    title: str
    score: float  # log-probability of its SID; with a fusion its mixed probability
    explanation: Explanation | None = None  # None where none was asked for


class Recommender:
    """A trained model, its catalogue, and the filters that it takes.

    Make one with ``load`` (from a run's folder) or ``open`` (from settings).

    Attributes:
        policy: the model with its catalogue.
        filters: what items may be filtered by.
        fuser: the fusion that the run has chosen; None where it has none.
    """

    def __init__(self, policy: Policy, filters: ItemFilters, fuser: Fuser | None):
        self.policy = policy
        self.filters = filters
        self.fuser = fuser

    @classmethod
    def load(
        cls,
        folder: str | Path,
        checkpoint: str | Path | None = None,
        attributes: str | Path | pd.DataFrame | None = None,
    ) -> Recommender:
        """From what is on the disk, with the settings that it was made with.

        Args:
            folder: ``runs/<name>``, or a checkpoint's folder such as ``runs/<name>/rl``.
            checkpoint: ``sft``, ``rl`` or a folder; None: the newest of the run. A run that
                ``rqvae/add_items.py`` made uses the model of the run that it extends.
            attributes: see ``ItemFilters``; a file (.csv, .tsv, .jsonl, .parquet) or a table.

        Raises:
            UserError: something is missing, damaged, or does not belong together.
        """
        return cls.open(open_run(folder, checkpoint), attributes)

    @classmethod
    def open(
        cls, experiment: Experiment, attributes: str | Path | pd.DataFrame | None = None
    ) -> Recommender:
        """The model of ``evaluate.checkpoint``, on the best device of this process.

        Args:
            experiment: whose run is opened.
            attributes: as for ``load``.

        Raises:
            UserError: as ``load``.
        """
        processes.quiet_libraries()
        if isinstance(attributes, str | Path):
            attributes = read_attributes(Path(attributes))
        catalogue = Catalogue.open(experiment)
        policy = Policy.load(experiment.evaluate.checkpoint, catalogue)
        policy = policy.to(processes.processes().device)
        filters = ItemFilters(catalogue.items, attributes)
        return cls(policy, filters, Fuser.of(catalogue))

    @property
    def catalogue(self) -> Catalogue:
        """What is recommended from."""
        return self.policy.catalogue

    @cached_property
    def explainer(self) -> Explainer:
        """What explains items; made when it is first needed."""
        return Explainer(self.catalogue)

    @property
    def num_beams(self) -> int:
        """Items that the search finds, as it was evaluated: lists of k are the first k of them."""
        return self.catalogue.experiment.evaluate.num_beams

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude_history: bool | None = None,
        allow: Collection[str] | None = None,
        deny: Collection[str] | None = None,
        where: Where | None = None,
        explain: bool = True,
    ) -> list[list[Recommended]]:
        """The k next items for each history, best first; fewer where fewer may be recommended.

        Args:
            histories: of each user the item ids, oldest first; at least one. What is longer than
                ``data.max_history`` loses its oldest items.
            k: items per history, at least 1.
            exclude_history: leave out what a history holds, however long it is; None: as the run
                was evaluated (``evaluate.exclude_history``).
            allow: the only item ids that may be recommended, say those in stock.
            deny: item ids that may not be.
            where: column -> values, or (low, high) of a number; items must meet all of them.
            explain: with ``Explanation``.

        Raises:
            UserError: an id, a column or a value is unknown.
        """
        if k < 1:
            raise UserError(f"k: got {k}, expected a whole number from 1")
        shown = [self.history(history) for history in histories]
        mask = self.mask(allow, deny, where)
        lists: list[list[Recommended]] = [[] for _ in shown]
        for number, ranked in self.rank(shown, k, exclude_history, mask):
            lists[number] = self.listed(ranked, shown[number], explain)
        return lists

    def history(self, item_ids: Sequence[str]) -> list[int]:
        """A history as item indexes.

        Raises:
            UserError: it is empty or holds an unknown id.
        """
        if isinstance(item_ids, str):
            raise UserError(
                f"histories: got the text '{item_ids[:60]}' for a history, expected a list of ids "
                "for each user"
            )
        if not item_ids:
            raise UserError("histories: a history is empty, expected at least one item id")
        return self.filters.positions("history", item_ids).tolist()

    def mask(
        self,
        allow: Collection[str] | None = None,
        deny: Collection[str] | None = None,
        where: Where | None = None,
    ) -> Mask | None:
        """A filter as the search takes it; None where everything may be recommended."""
        allowed = self.filters.allowed(allow, deny, where)
        return None if allowed is None else self.policy.masks.build(allowed)

    def ranker(
        self,
        histories: Sequence[Sequence[int]],
        k: int,
        exclude_history: bool | None = None,
        mask: Mask | None = None,
    ) -> Ranker:
        """What ranks the catalogue for some histories, as item indexes."""
        experiment = self.catalogue.experiment
        if exclude_history is None:
            exclude_history = experiment.evaluate.exclude_history
        unwanted = None
        if exclude_history:
            unwanted = [frozenset(history) for history in histories]
        samples = []
        for history in histories:
            latest = history[-experiment.data.max_history :]
            samples.append(Sample("", tuple(latest), 0, 0))
        return self.policy.ranker(samples, max(k, self.num_beams), unwanted, mask)

    def rank(
        self,
        histories: Sequence[Sequence[int]],
        k: int,
        exclude_history: bool | None = None,
        mask: Mask | None = None,
    ) -> Iterator[tuple[int, Ranked]]:
        """Rank batch by batch, in the order of the forwards.

        Yields:
            The number of a history, and its k best items with their scores.
        """
        if not histories:
            return
        ranker = self.ranker(histories, k, exclude_history, mask)
        found = ranker.rank(ranker.batches)
        for batch, (leaves, scores) in zip(ranker.batches, found, strict=True):
            yield from zip(batch, self.lists(ranker, batch, leaves, scores, k), strict=True)

    def lists(
        self,
        ranker: Ranker,
        batch: Sequence[int],
        leaves: np.ndarray,
        scores: np.ndarray,
        k: int,
    ) -> list[Ranked]:
        """What one forward has found as lists of k items, fused if the run has chosen that."""
        found = []
        for row, number in enumerate(batch):
            found.append(ranker.items(number, leaves[row], scores[row]))
        if self.fuser is not None:
            found = self.fuser.fuse(
                found,
                [ranker.samples[number].history for number in batch],
                k,
                ranker.unwanted and [ranker.unwanted[number] for number in batch],
                None if ranker.mask is None else ranker.mask.items,
            )
        return [(items[:k], item_scores[:k]) for items, item_scores in found]

    def listed(
        self, ranked: Ranked, history: Sequence[int], explain: bool = False
    ) -> list[Recommended]:
        """A ranked list as people read it."""
        titles = self.catalogue.items["title"]
        recommended = []
        for rank, (item, score) in enumerate(zip(*ranked, strict=True), 1):
            explanation = self.explainer.explain(item, history) if explain else None
            item_id = self.catalogue.item_ids[item]
            title = titles.iloc[item]
            recommended.append(Recommended(rank, item_id, title, score, explanation))
        return recommended
