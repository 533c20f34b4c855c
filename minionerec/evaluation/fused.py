"""A checkpoint's ranking united with those of rules: what ``evaluate.fusion`` writes beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.samples import Sample
from minionerec.errors import UserError
from minionerec.evaluation import prediction_files
from minionerec.experiment.manifest import Parent
from minionerec.rankers import crossfit, experts, fusion
from minionerec.rankers.experts import Expert
from minionerec.rankers.fusion import Lists, Union

TEMPERATURE = 0.1  # of text_knn, where evaluate.fusion names none


def weights_of(setting: dict[str, float]) -> dict[str, float]:
    """Model and rankers with a weight; ``temperature`` is none of them."""
    return {name: weight for name, weight in setting.items() if weight and name != "temperature"}


class Partners(NamedTuple):
    """What a model's lists are united with: rankers, the model's weight and theirs, directories."""

    rankers: list[Expert]
    weights: list[float]
    parents: list[Parent]


def partners_of(catalogue: Catalogue) -> Partners:
    """The rankers to which ``evaluate.fusion`` gives a weight; networks are trained on first use.

    Raises:
        UserError: a rule lacks what it reads.
    """
    s = catalogue.experiment.evaluate
    weights = weights_of(s.fusion)
    counting, networks = crossfit.parts(
        {name: weight for name, weight in weights.items() if name != "model"}
    )
    rankers = experts.build(
        counting,
        catalogue.samples,
        embeddings_file=catalogue.sids_stage.path / "embeddings.npy",
        temperature=s.fusion.get("temperature", TEMPERATURE),
        unwanted=catalogue.seen("valid") if s.exclude_history else None,
    )
    parents = []
    for name in networks:
        ranker, parent = crossfit.cross_fitted(catalogue, name)
        rankers.append(ranker)
        parents.append(parent)
    shares = [weights.get("model", 0.0), *(weights[ranker.name] for ranker in rankers)]
    return Partners(rankers, shares, parents)


def read_model_lists(file: Path, samples: Sequence[Sample], item_ids: Sequence[str]) -> Lists:
    """The model's lists as ``predictions.jsonl`` holds them.

    Args:
        file: written by ``evaluate.py``, one line per sample.
        samples: the rows that are ranked.
        item_ids: by item index.

    Raises:
        UserError: they rank other rows.
    """
    records = prediction_files.read(file)
    ranked = [(record["user_id"], record["target_item_id"]) for record in records]
    wanted = [(sample.user_id, item_ids[sample.target]) for sample in samples]
    if ranked != wanted:
        raise UserError(
            f"{file}: ranks other rows than the experiment has; delete {file.parent} and "
            "evaluate again"
        )
    return lists_of(records, item_ids)


def lists_of(records: Sequence[dict[str, Any]], item_ids: Sequence[str]) -> Lists:
    """Records of ``predictions.jsonl`` with log-probabilities as lists of item indexes."""
    index = {item_id: item for item, item_id in enumerate(item_ids)}
    width = max((len(record["item_ids"]) for record in records), default=0)
    items = np.full((len(records), width), fusion.NO_ITEM, dtype=np.int64)
    scores = np.full((len(records), width), -np.inf)
    for row, record in enumerate(records):
        named = [index[item_id] for item_id in record["item_ids"]]
        items[row, : len(named)] = named
        scores[row, : len(named)] = record["scores"]
    return fusion.from_log_probabilities(items, scores)


def unite(
    model: Lists,
    rankers: Sequence[Expert],
    samples: Sequence[Sample],
    unwanted: Sequence[Collection[int]] | None,
) -> Union:
    """The model's lists first, then as long ones of every expert as weights are chosen with."""
    histories = [sample.history for sample in samples]
    lists = []
    for ranker in rankers:
        length = min(experts.LENGTH, ranker.num_items)
        lists.append(fusion.from_expert(ranker, histories, length, unwanted))
    return fusion.union([model, *lists])


def records(
    items: np.ndarray,
    scores: np.ndarray,
    samples: Sequence[Sample],
    item_ids: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Rows of ``predictions.jsonl``; scores are mixed probabilities."""
    for sample, row, row_scores in zip(samples, items, scores, strict=True):
        there = row >= 0
        yield {
            "user_id": sample.user_id,
            "target_item_id": item_ids[sample.target],
            "item_ids": [item_ids[item] for item in row[there]],
            "scores": [round(float(score), 6) for score in row_scores[there]],
        }
