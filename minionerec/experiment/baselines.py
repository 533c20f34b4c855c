"""The baselines: one table, from which settings, stages and ``baselines/run.py`` take them.

A new baseline is a module in ``minionerec/rankers`` with a function ``rank_test``, and a row here.
"""

from __future__ import annotations

from typing import NamedTuple


class Baseline(NamedTuple):
    """What there is to know about a baseline without running it."""

    module: str  # in minionerec/rankers; its rank_test(method, inputs, directory) does all
    stage: str  # the row of the stage table with the settings that it reads


BASELINES = {
    "popularity": Baseline("rules", "baselines"),
    "recent_popularity": Baseline("rules", "baselines"),
    "repeat_last": Baseline("rules", "baselines"),
    "markov": Baseline("rules", "baselines"),
    "item_knn": Baseline("rules", "baselines"),
    "text_knn": Baseline("rules", "baselines"),
    "sasrec": Baseline("sequential", "baseline_networks"),
    "gru4rec": Baseline("sequential", "baseline_networks"),
    "hstu": Baseline("sequential", "baseline_networks"),
    "tiger": Baseline("tiger", "baseline_tiger"),
}
