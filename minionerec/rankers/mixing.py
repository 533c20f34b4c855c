"""Weights for a mix of rankers, tried on validation rows: multiples of a tenth, some temperatures.

``sft.py`` chooses its teacher this way unless ``sft.teacher`` names weights, and
``baselines/mix.py`` prints the whole table. All rankers are read as lists of ``LENGTH`` items, as
a fusion reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minionerec.catalogue.samples import Sample, Samples
from minionerec.rankers import experts, fusion
from minionerec.rankers.experts import Expert
from minionerec.rankers.fusion import Lists

RANKERS = ("markov", "item_knn", "text_knn")
TEMPERATURES = (0.05, 0.07, 0.1, 0.15)  # of text_knn
STEPS = 10  # weights are multiples of 1 / STEPS
COARSE = 5  # of more than four rankers, whose mixes would be too many
LENGTH = experts.LENGTH


class Mix(NamedTuple):
    """Weights by the name of the ranker, the temperature of the texts, and what they measured."""

    weights: dict[str, float]
    temperature: float
    metrics: dict[str, float]


def rankers_lists(
    samples: Samples,
    valid: Sequence[Sample],
    embeddings_file: Path,
    unwanted: Sequence[Collection[int]] | None,
    networks: Sequence[Expert] = (),
) -> dict[float, dict[str, Lists]]:
    """Temperature -> ranker -> its lists of the rows ``valid``.

    Args:
        samples: of the experiment.
        valid: its validation rows.
        embeddings_file: of the items' texts; without such a file there is no ``text_knn``.
        unwanted: per row, items that are not ranked.
        networks: trained ones that are tried too.
    """
    histories = [sample.history for sample in valid]
    length = min(LENGTH, len(samples.items))
    names = [name for name in RANKERS if name != "text_knn" or embeddings_file.is_file()]
    rules: dict[str, Lists] = {}
    for network in networks:
        rules[network.name] = fusion.from_expert(network, histories, length, unwanted)
    made = experts.build(
        names,
        samples,
        embeddings_file=embeddings_file,
        temperature=TEMPERATURES[0],
        unwanted=unwanted,
    )
    # Only the texts have a temperature
    texts = [expert for expert in made if expert.name == "text_knn"]
    for expert in made:
        if expert not in texts:
            rules[expert.name] = fusion.from_expert(expert, histories, length, unwanted)
    found: dict[float, dict[str, Lists]] = {}
    for temperature in TEMPERATURES:
        found[temperature] = dict(rules)
        for text in texts:
            warmed = experts.at_temperature(text, embeddings_file, temperature)
            lists = fusion.from_expert(warmed, histories, length, unwanted)
            found[temperature][text.name] = lists
    return found


def tried(
    model: dict[str, Lists],
    lists: dict[float, dict[str, Lists]],
    valid: Sequence[Sample],
    *,
    num_items: int,
    by: str,
) -> list[Mix]:
    """Every mix, the best first; of equals the one with more of the first ranker.

    Args:
        model: the lists of a model under its name; empty for mixes of rankers alone.
        lists: as ``rankers_lists`` gives them.
        valid: the rows that all of them rank.
        num_items: N.
        by: what the best has most of: ``NDCG@10`` where the mix is to rank, ``log p`` where its
            probabilities are to be learned from.
    """
    targets = np.array([sample.target for sample in valid])
    found = []
    for temperature, rankers in lists.items():
        together = model | rankers
        united = fusion.union(list(together.values()))
        steps = STEPS if len(together) <= 4 else COARSE
        for weights in fusion.weight_grid(len(together), steps):
            ranks = fusion.ranks(united, weights, targets)
            metrics = measured(ranks)
            shares = fusion.shares_of(united, weights, targets)
            # a tenth for all items alike: one row without its target must not decide
            metrics["log p"] = float(np.log(0.9 * shares + 0.1 / num_items).mean())
            named = dict(zip(together, weights, strict=True))
            found.append(Mix(named, temperature, metrics))
    return sorted(found, key=lambda mix: -mix.metrics[by])


def measured(ranks: np.ndarray) -> dict[str, float]:
    """HR@K and NDCG@10 of ``(n,)`` places of the targets, counted from 0.

    >>> measured(np.array([0, 1, 60]))["HR@10"]
    0.6666666666666666
    """
    found = {f"HR@{k}": float((ranks < k).mean()) for k in (1, 10, 50)}
    gains = np.where(ranks < 10, 1.0 / np.log2(np.minimum(ranks, 10) + 2.0), 0.0)
    return found | {"NDCG@10": float(gains.mean())}


def in_yaml(weights: dict[str, float]) -> str:
    """``{markov: 0.7, text_knn: 0.3}``: what has a weight."""
    shown = [f"{name}: {weight:g}" for name, weight in weights.items() if weight]
    return "{" + ", ".join(shown) + "}"
