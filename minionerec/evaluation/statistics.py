"""Uncertainty: bootstrap intervals, paired tests, Holm's correction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minionerec.errors import UserError
from minionerec.evaluation.metrics import Prediction, SidOf, _mean, row_metrics

BOOTSTRAP_CHUNK = 2_000_000  # numbers drawn at a time: bounds memory at about 50 MB


def bootstrap_intervals(
    values: Mapping[str, np.ndarray], users: Sequence[str], samples: int, seed: int
) -> dict[str, list[float]]:
    """95 % percentile intervals of row means when users are drawn anew with replacement, each with all its rows.

    Args:
        values: key -> ``(rows,)``.
        users: whose row it is, ``(rows,)``.
        samples: number of resamples; 0 gives an empty dict.
        seed: of the draws.
    """
    if not samples:
        return {}
    sums, sizes = user_sums(np.stack(list(values.values()), axis=1), users)  # (U, M), (U,)
    means = np.concatenate(
        [
            weights @ sums / (weights @ sizes)[:, None]  # (samples, M)
            for weights in _resamples(len(sizes), samples, seed)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return {key: [float(low[i]), float(high[i])] for i, key in enumerate(values)}


def compare(
    predictions_a: Sequence[Prediction],
    predictions_b: Sequence[Prediction],
    sid_of_a: SidOf | None = None,
    sid_of_b: SidOf | None = None,
    keys: Sequence[str] = ("HR@10", "NDCG@10"),
    samples: int = 10_000,
    seed: int = 42,
) -> dict[str, dict[str, Any]]:
    """Is b better than a on the same test rows? Paired by row; per key what ``paired_difference`` says.

    Raises:
        UserError: the two rank different test rows.
    """
    a, b = _paired(predictions_a, predictions_b)
    values_a, values_b = row_metrics(a, sid_of_a)[0], row_metrics(b, sid_of_b)[0]
    users = [row["user_id"] for row in a]
    return paired_difference(
        {key: values_a[key] for key in keys},
        {key: values_b[key] for key in keys},
        users,
        samples,
        seed,
    )


def paired_difference(
    values_a: Mapping[str, np.ndarray],
    values_b: Mapping[str, np.ndarray],
    users: Sequence[str],
    samples: int = 10_000,
    seed: int = 42,
) -> dict[str, dict[str, Any]]:
    """Is b better than a? Users are the independent units.

    Args:
        values_a, values_b: key -> ``(rows,)`` of the same rows.
        users: whose row it is, ``(rows,)``.
        samples: resamples and random sign patterns.
        seed: of both.

    Returns:
        Per key: ``a``, ``b`` and their ``difference`` b - a, its 95 % bootstrap ``interval``, and the two-sided ``p_value`` of
        the paired randomisation test (under the null a user's two rankings are exchangeable: signs of the users'
        differences are flipped at random; the observed outcome is counted in, so p is at least 1 / (samples + 1)).
    """
    differences = {key: values_b[key] - values_a[key] for key in values_a}
    intervals = bootstrap_intervals(differences, users, samples, seed)
    return {
        key: {
            "a": _mean(values_a[key]),
            "b": _mean(values_b[key]),
            "difference": _mean(differences[key]),
            "interval": intervals[key],
            "p_value": randomisation_p_value(
                user_sums(differences[key][:, None], users)[0][:, 0], samples, seed
            ),
        }
        for key in values_a
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down rule (1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def randomisation_p_value(differences: np.ndarray, samples: int, seed: int) -> float:
    """Two-sided p-value of ``|sum of differences|`` when each sign is a fair coin.

    Args:
        differences: ``(U,)``, one per independent unit. Zeros change nothing and are left out.
        samples: random sign patterns tried.
        seed: of the coins.
    """
    moved = differences[differences != 0]
    observed = (
        abs(math.fsum(moved)) - 1e-9
    )  # sums of equal size must count as equal though added in another order
    rng, extreme = np.random.default_rng(seed), 0
    for start in range(0, samples, step := max(1, BOOTSTRAP_CHUNK // max(1, len(moved)))):
        signs = (
            rng.integers(0, 2, size=(min(step, samples - start), len(moved)), dtype=np.int8) * 2.0
            - 1.0
        )
        extreme += int(np.count_nonzero(np.abs(signs @ moved) >= observed))
    return (extreme + 1) / (samples + 1)


def user_sums(values: np.ndarray, users: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``(rows, M)`` added up per user: ``(U, M)`` and the number of rows of each user ``(U,)``, users sorted."""
    _, owner = np.unique(np.array(users), return_inverse=True)
    sums = np.zeros((owner.max() + 1, values.shape[1]))
    np.add.at(sums, owner, values)
    return sums, np.bincount(owner).astype(float)


def _resamples(users: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each user is drawn, ``(chunk, U)`` at a time, lazily."""
    rng = np.random.default_rng(seed)
    step = max(1, BOOTSTRAP_CHUNK // users)
    return (
        np.stack(
            [
                np.bincount(rng.integers(users, size=users), minlength=users)
                for _ in range(min(step, samples - start))
            ]
        ).astype(float)
        for start in range(0, samples, step)
    )


def row_keys(predictions: Sequence[Prediction]) -> list[tuple[str, str, int]]:
    """What tells a row apart: user, target, and how often the two came together before."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for row in predictions:
        pair = (row["user_id"], row["target_item_id"])
        keys.append((*pair, seen[pair]))
        seen[pair] += 1
    return keys


def _paired(
    a: Sequence[Prediction], b: Sequence[Prediction]
) -> tuple[list[Prediction], list[Prediction]]:
    """The rows of both in one order; a user's repeated target is paired by its order of appearance."""
    keyed = [dict(zip(row_keys(rows), rows, strict=True)) for rows in (a, b)]
    odd = sorted(keyed[0].keys() ^ keyed[1].keys())
    if odd or not keyed[0]:
        what = (
            f"user '{odd[0][0]}' with target '{odd[0][1]}' is in one only"
            if odd
            else "both are empty"
        )
        raise UserError(
            f"compare: the two predictions hold different test rows ({len(a)} and {len(b)}; {what}); "
            "rank the same split of the same data with both"
        )
    return [keyed[0][key] for key in sorted(keyed[0])], [keyed[1][key] for key in sorted(keyed[0])]
