"""Networks that are asked about rows which they have not learned: cross-fitting.

A network that has seen a row's target says it again, so that as a teacher of that row it teaches
nothing. Leave-one-out counts have no equal for networks, but cross-fitting (Chernozhukov et al.,
arXiv:1608.00060, section 3) does: users, or windows where ``sft.rows`` are windows, are dealt into
``FOLDS`` parts, one network learns from all parts but one, and a row of train is asked of the
network that has not seen its part. Rows that are held out, or have no target, get the mean of all
networks' probabilities.

The first network tries every combination of the settings that ``baselines`` lists; the others take
what it chose on validation rows. They are trained once, on first use, and lie in
``runs/<name>/<kind>_folds``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.samples import Sample, Samples
from minionerec.experiment.commit import committed
from minionerec.experiment.lineage import is_done, open_stage
from minionerec.experiment.manifest import Parent
from minionerec.experiment.processes import processes
from minionerec.experiment.run import say
from minionerec.experiment.settings import BaselineSettings
from minionerec.experiment.stages import settings_of, stage_path
from minionerec.rankers import sequential
from minionerec.rankers.experts import Expert
from minionerec.rankers.fitting import Log
from minionerec.rankers.networks import NETWORKS, NextItemModel

FOLDS = 4


class Trained(NamedTuple):
    """The network of every fold, which has not seen it, and the settings that all share."""

    models: list[NextItemModel]
    chosen: dict[str, float]


def folds_of(targets: Sequence[Sample]) -> dict[str, int]:
    """The fold of every user, or window, in the order of their first target.

    >>> row = Sample("a", (0,), 1, 0)
    >>> folds_of([row, row, row._replace(user_id="b")])
    {'a': 0, 'b': 1}
    """
    names = dict.fromkeys(sample.user_id for sample in targets)
    return {name: number % FOLDS for number, name in enumerate(names)}


def sequences_of(targets: Sequence[Sample]) -> dict[str, list[int]]:
    """The sequence of every user, or window: what its first target shows, then its targets.

    >>> sequences_of([Sample("a", (0,), 1, 0), Sample("a", (0, 1), 5, 0)])
    {'a': [0, 1, 5]}
    """
    found: dict[str, list[int]] = {}
    for sample in targets:
        found.setdefault(sample.user_id, list(sample.history)).append(sample.target)
    return found


def train_folds(
    kind: str,
    samples: Samples,
    targets: Sequence[Sample],
    seed: int,
    max_history: int,
    settings: BaselineSettings,
    show: Log = lambda row: None,
) -> Trained:
    """One network per fold, each trained on the sequences of all other folds.

    Args:
        kind: a key of ``NETWORKS``.
        samples: whose validation rows decide when to stop.
        targets: the rows of train that the networks will be asked about.
        seed: of the first network; every other one has the next.
        max_history: longest history, in items.
        settings: as for ``sequential.train``.
        show: called once per epoch.
    """
    folds = folds_of(targets)
    sequences = sequences_of(targets)
    models = []
    for fold in range(FOLDS):
        others = [sequence for name, sequence in sequences.items() if folds[name] != fold]
        seen = replace(samples, train_sequences=others)
        trained = sequential.train(kind, seen, seed + fold, max_history, settings, show)
        models.append(trained.model)
        chosen = {key: trained.chosen[key] for key in sequential.TRIED}
        settings = settings.changed({key: [value] for key, value in chosen.items()})
    return Trained(models, chosen)


def cross_fitted(catalogue: Catalogue, kind: str) -> tuple[Expert, Parent]:
    """A kind of network as an expert; its networks are trained if they are not there yet.

    Returns:
        The expert, and the directory that a stage that reads it is made from.
    """
    experiment = catalogue.experiment
    stage = folds_stage(kind)
    path = stage_path(experiment, stage)
    with processes().main_process_first():  # the others find it finished
        if not is_done(experiment, stage):
            say(f"training {FOLDS} {kind} networks, each without a part of the rows (once)")
            with committed(
                path, stage, settings_of(experiment, stage), [catalogue.data]
            ) as staging:
                trained = train_folds(
                    kind,
                    catalogue.samples,
                    catalogue.train_targets(),
                    experiment.seed,
                    experiment.data.max_history,
                    experiment.baselines,
                )
                for fold, model in enumerate(trained.models):
                    folder = staging / f"fold-{fold}"
                    folder.mkdir()
                    sequential.save(kind, model, folder)
    parent = open_stage(experiment, stage)
    models = [sequential.load(kind, path / f"fold-{fold}") for fold in range(FOLDS)]
    return network(kind, models), parent


def folds_stage(kind: str) -> str:
    """The row of ``STAGES`` that makes a kind of network for every fold."""
    return f"{kind}_folds"


def is_network(name: str) -> bool:
    """Whether a ranker of a mix is a network of these."""
    return name in NETWORKS


def network(kind: str, models: Sequence[NextItemModel]) -> Expert:
    """The networks of all folds as one expert."""
    num_items = len(models[0].bias)

    def probabilities(
        histories: Sequence[Sequence[int]],
        targets: Sequence[int] | None = None,
        folds: Sequence[int] | None = None,
    ) -> np.ndarray:
        """``(B, N)``; of rows of train by the network that has not learned them."""
        table = np.zeros((len(histories), num_items))
        shown = np.array([bool(history) for history in histories])
        for fold, model in enumerate(models):
            asked = shown
            share = 1.0 / len(models)
            # A row of train is asked of the one network that has not learned it
            if folds is not None:
                asked = shown & (np.asarray(folds) == fold)
                share = 1.0
            rows = np.flatnonzero(asked).tolist()
            if rows:
                logps = sequential.score(model, [histories[row] for row in rows])
                table[rows] += share * np.exp(logps.double().cpu().numpy())
        return table

    return Expert(kind, num_items, probabilities, {"folds": len(models)})


def parts(weights: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """The rankers of a mix that have a weight: those that count, and the networks.

    >>> parts({"markov": 0.5, "gru4rec": 0.2, "item_knn": 0.0})
    (['markov'], ['gru4rec'])
    """
    named = [name for name, weight in weights.items() if weight]
    networks = [name for name in named if is_network(name)]
    return [name for name in named if name not in networks], networks
