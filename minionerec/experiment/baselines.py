"""The baselines: one table, from which settings, stages and ``baselines/run.py`` take them.

A new baseline is a module in ``minionerec/rankers`` with a function ``rank_test``, and a row here.
"""

from __future__ import annotations

from typing import NamedTuple


class Baseline(NamedTuple):
    """What there is to know about a baseline without running it."""

    module: str  # in minionerec/rankers; its rank_test(method, inputs, directory) does all
    stage: str = "baselines"  # the row of the stage table with the settings that it reads
    reads_sids: bool = False  # whether it needs stage 1: its SIDs, or the embeddings beside them


BASELINES = {
    "popularity": Baseline("rules"),
    "recent_popularity": Baseline("rules"),
    "repeat_last": Baseline("rules"),
    "markov": Baseline("rules"),
    "item_knn": Baseline("rules"),
    "text_knn": Baseline("rules", reads_sids=True),
    "tgh": Baseline("tgh", reads_sids=True),
    "sasrec": Baseline("sequential", "baseline_networks"),
    "gru4rec": Baseline("sequential", "baseline_networks"),
    "hstu": Baseline("sequential", "baseline_networks"),
    "tiger": Baseline("tiger", "baseline_tiger", reads_sids=True),
}
