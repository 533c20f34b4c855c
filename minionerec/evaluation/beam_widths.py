"""What a beam search misses: the same rows ranked at several widths, and with every item scored.

A beam as wide as the catalogue prunes nothing, so it is the exact ranking by the model's own
probabilities (width 0 stands for it). Each width ranks the same fixed sample of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minionerec.catalogue.samples import Sample
from minionerec.evaluation.metrics import KS, Prediction, Values, mean, row_metrics
from minionerec.evaluation.ranking import predictions, sid_of
from minionerec.evaluation.statistics import bootstrap_intervals
from minionerec.model.beam_search import length_sorted
from minionerec.model.policy import Policy
from minionerec.model.ranking import Unwanted, rank

ALL = "all"  # items: the name of width 0
SHOWN = ("HR@1", "HR@10", "HR@50", "NDCG@10")
COMPARED = 10  # items of a list that are held against the widest one
BEAMS_PER_FORWARD = 1600  # of all users together: bounds memory, as 32 users with 50 beams do


def by_width(
    policy: Policy,
    samples: Sequence[Sample],
    widths: Sequence[int],
    unwanted: Unwanted | None,
    *,
    bootstrap_samples: int,
    seed: int,
) -> dict[str, Any]:
    """What ``metrics.json`` says under ``beam_widths``.

    Args:
        policy: that ranks.
        samples: to rank for.
        widths: beams; 0 for as many as the catalogue has SIDs.
        unwanted: per sample, items that are never ranked.
        bootstrap_samples: resamples of the intervals.
        seed: of the resampling.

    Returns:
        ``rows``, and under ``widths`` for every width, ascending, HR@1, HR@10, HR@50 and NDCG@10
        (where the width answers for them), their ``intervals``, and ``same_first_10``: the mean
        share of the widest search's first ten items that are among its own first ten.
    """
    everything = policy.trie.num_leaves
    users = [sample.user_id for sample in samples]
    measured: dict[str, Values] = {}
    records: dict[str, list[dict[str, Any]]] = {}
    for width in sorted(widths, key=lambda width: width or everything):
        name = str(width or ALL)
        beams = min(width or everything, everything)
        ranker = policy.ranker(samples, beams, unwanted)
        together = max(1, BEAMS_PER_FORWARD // beams)
        ranker.batches = length_sorted(ranker.prompts, together)
        leaves, scores = rank(ranker)
        found = predictions(
            samples, leaves, scores, policy.trie, policy.catalogue.item_ids, unwanted
        )
        values, _ = row_metrics(found, sid_of(policy.catalogue.sids))
        records[name] = found
        measured[name] = {}
        for key in SHOWN:
            k = int(key.partition("@")[2])
            if k in KS and (k <= beams or beams == everything):
                measured[name][key] = values[key]
    widest = records[name]
    table = {}
    for name, values in measured.items():
        table[name] = {
            **{key: mean(rows) for key, rows in values.items()},
            "same_first_10": same_items(records[name], widest),
            "intervals": bootstrap_intervals(values, users, bootstrap_samples, seed),
        }
    return {"rows": len(samples), "widths": table}


def same_items(lists: Sequence[Prediction], others: Sequence[Prediction]) -> float:
    """Mean share of the others' first ten items that are among a list's own first ten.

    >>> same_items([{"item_ids": ["a", "b"]}], [{"item_ids": ["b", "c"]}])
    0.5
    """
    shares = []
    for own, other in zip(lists, others, strict=True):
        wanted = set(other["item_ids"][:COMPARED])
        if wanted:
            shares.append(len(wanted & set(own["item_ids"][:COMPARED])) / len(wanted))
    return mean(np.array(shares)) if shares else 1.0
