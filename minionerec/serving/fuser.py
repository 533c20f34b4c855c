"""``evaluate.fusion`` for whoever asks: the rules are counted once, then united with any lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.samples import Sample
from minionerec.evaluation import fused
from minionerec.rankers import fusion
from minionerec.rankers.experts import Expert

Ranked = tuple[list[int], list[float]]  # items of a list, best first, and their scores


@dataclass(frozen=True)
class Fuser:
    """Rules, and the weights of a mix, the model's first."""

    rankers: list[Expert]
    weights: list[float]

    @classmethod
    def of(cls, catalogue: Catalogue) -> Fuser | None:
        """The fusion that ``evaluate.fusion`` asks for; None where it asks for none.

        Raises:
            UserError: a rule lacks what it reads.
        """
        if not catalogue.experiment.evaluate.fusion:
            return None
        partners = fused.partners_of(catalogue)
        return cls(partners.rankers, partners.weights)

    def fuse(
        self,
        lists: Sequence[Ranked],
        histories: Sequence[Sequence[int]],
        k: int,
        unwanted: Sequence[Collection[int]] | None,
        allowed: np.ndarray | None,
    ) -> list[Ranked]:
        """The k best items of each history by all rankers; scores are mixed probabilities.

        Args:
            lists: of the model, with log-probabilities, as long as those that were evaluated.
            histories: item indexes, oldest first, as the model was shown them.
            k: items of a list.
            unwanted: per history, items that must not be recommended.
            allowed: ``(N,)`` bool, items that may be; None: all.
        """
        width = max(len(items) for items, _ in lists)
        items = np.full((len(lists), width), fusion.NO_ITEM, dtype=np.int64)
        scores = np.full((len(lists), width), -np.inf)
        for row, (row_items, row_scores) in enumerate(lists):
            length = len(row_items)
            items[row, :length] = row_items
            # As predictions.jsonl holds them, so that an evaluation's fusion is this one
            scores[row, :length] = [round(score, 5) for score in row_scores]
        rankers = self.rankers
        if allowed is not None:
            rankers = [_only(ranker, allowed) for ranker in rankers]
        samples = [Sample("", tuple(history), 0, 0) for history in histories]
        model = fusion.from_log_probabilities(items, scores)
        united = fused.unite(model, rankers, samples, unwanted)
        found = []
        for row_items, row_scores in zip(*fusion.fuse(united, self.weights, k), strict=True):
            there = row_items >= 0
            found.append((row_items[there].tolist(), row_scores[there].tolist()))
        return found


def _only(ranker: Expert, allowed: np.ndarray) -> Expert:
    """The same ranker, to which other items do not exist."""

    def probabilities(
        histories: Sequence[Sequence[int]],
        targets: Sequence[int] | None = None,
        folds: Sequence[int] | None = None,
    ) -> np.ndarray:
        return ranker.probabilities(histories, targets, folds) * allowed

    return ranker._replace(probabilities=probabilities)
