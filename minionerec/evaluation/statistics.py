"""Uncertainty: bootstrap intervals, paired tests, Holm's correction. Users are the units.

Resampling is our own (tests compare it with ``scipy.stats``): scipy takes 3 to 10 times as long, as
it gathers the rows of every resample where one product with the draws' counts serves all metrics.

Shapes: U users, M metrics.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minionerec.errors import UserError
from minionerec.evaluation.metrics import Prediction, SidOf, mean, row_metrics

BOOTSTRAP_CHUNK = 2_000_000  # numbers drawn at a time: bounds memory at about 50 MB
FEWEST = 16  # resamples at a time, also of very many users: sums are read once for all of them
COLUMNS_AT_ONCE = 8  # of a table that is filled
USERS_AT_ONCE = 2**17  # of very many users: bounds what is a float at a time

RowKey = tuple[str, str, int]
Users = Sequence[str] | np.ndarray  # whose row it is: names, or numbers in the order of the names


def bootstrap_intervals(
    values: Mapping[str, np.ndarray],
    users: Users,
    samples: int,
    seed: int,
) -> dict[str, list[float]]:
    """95 % percentile intervals of row means when users are drawn anew, each with all its rows.

    A resample's mean is over its rows, not over its users' means: a user with many rows counts for
    many, as in the metric itself.

    Args:
        values: key -> ``(rows,)``.
        users: whose row it is, ``(rows,)``.
        samples: number of resamples; 0 gives an empty dict.
        seed: of the draws.
    """
    if not samples:
        return {}
    sums, sizes = user_sums(
        values.values(),
        users,
        len(values),
    )  # (U, M), (U,)
    return intervals_by(
        values,
        *resampled_sums(
            [sums, sizes],
            samples,
            seed,
        ),
    )


def intervals_by(
    keys: Iterable[str],
    sums: np.ndarray,
    rows: np.ndarray,
) -> dict[str, list[float]]:
    """95 % percentile intervals of ``(samples, M)`` sums over ``(samples,)`` rows, by key."""
    low, high = np.percentile(
        sums / rows[:, None],
        [2.5, 97.5],
        axis=0,
    )  # (M,), (M,)
    intervals = {}
    for place, key in enumerate(keys):
        intervals[key] = [float(low[place]), float(high[place])]
    return intervals


def compare(
    predictions_a: Sequence[Prediction],
    predictions_b: Sequence[Prediction],
    sid_of_a: SidOf | None = None,
    sid_of_b: SidOf | None = None,
    keys: Sequence[str] = ("HR@10", "NDCG@10"),
    samples: int = 10_000,
    seed: int = 42,
) -> dict[str, dict[str, Any]]:
    """Is b better than a on the same test rows? Paired by row; see ``paired_difference``.

    Raises:
        UserError: the two rank different test rows.
    """
    of_a, of_b = paired(predictions_a, predictions_b)
    all_a, _ = row_metrics(predictions_a, sid_of_a)
    all_b, _ = row_metrics(predictions_b, sid_of_b)
    values_a = {}
    values_b = {}
    for key in keys:
        values_a[key] = all_a[key][of_a]
        values_b[key] = all_b[key][of_b]
    names = [row["user_id"] for row in predictions_a]
    users = [names[row] for row in of_a]
    return paired_difference(
        values_a,
        values_b,
        users,
        samples,
        seed,
    )


def paired_difference(
    values_a: Mapping[str, np.ndarray],
    values_b: Mapping[str, np.ndarray],
    users: Users,
    samples: int = 10_000,
    seed: int = 42,
) -> dict[str, dict[str, Any]]:
    """Is b better than a? Users are the independent units.

    Args:
        values_a: key -> ``(rows,)``.
        values_b: the same of the same rows.
        users: whose row it is, ``(rows,)``.
        samples: resamples and random sign patterns.
        seed: of both.

    Returns:
        Per key: ``a``, ``b`` and their ``difference`` b - a, its 95 % bootstrap ``interval``, and
        the two-sided ``p_value`` of the paired randomisation test (under the null a user's two
        rankings are exchangeable: signs of the users' differences are flipped at random; the
        observed outcome is counted in, so p is at least 1 / (samples + 1)).
    """
    differences = {key: values_b[key] - values_a[key] for key in values_a}
    intervals = bootstrap_intervals(
        differences,
        users,
        samples,
        seed,
    )
    found = {}
    for key, rows in differences.items():
        of_users, _ = user_sums(
            [rows],
            users,
            1,
        )  # (U, 1)
        found[key] = {
            "a": mean(values_a[key]),
            "b": mean(values_b[key]),
            "difference": mean(rows),
            "interval": intervals[key],
            "p_value": randomisation_p_value(
                of_users[:, 0],
                samples,
                seed,
            ),
        }
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down rule (1979), in the order given.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may come out below one
    that was smaller before.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    ascending = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(ascending):
        scaled = min(1.0, (len(p_values) - rank) * p_values[i])
        largest = max(largest, scaled)
        corrected[i] = largest
    return corrected


def randomisation_p_value(
    differences: np.ndarray,
    samples: int,
    seed: int,
) -> float:
    """Two-sided p-value of ``|sum of differences|`` when each sign is a fair coin.

    Args:
        differences: ``(U,)``, one per independent unit. Zeros change nothing and are left out.
        samples: random sign patterns tried.
        seed: of the coins.
    """
    moved = differences[differences != 0]
    # Sums of equal size must count as equal though they are added in another order.
    observed = abs(math.fsum(moved)) - 1e-9
    rng = np.random.default_rng(seed)
    extreme = 0
    step = max(1, BOOTSTRAP_CHUNK // max(1, len(moved)))
    for start in range(
        0,
        samples,
        step,
    ):
        count = min(step, samples - start)
        coins = rng.integers(
            0,
            2,
            size=(count, len(moved)),
            dtype=np.int8,
        )
        signs = coins * 2.0 - 1.0  # (count, U)
        extreme += int(np.count_nonzero(np.abs(signs @ moved) >= observed))
    return (extreme + 1) / (samples + 1)


def user_sums(
    values: Iterable[np.ndarray],
    users: Users,
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """So many arrays of ``(rows,)`` added up per user, users sorted.

    Returns:
        ``(U, count)`` sums, and the number of rows of each user ``(U,)``.
    """
    _, owner = np.unique(np.asarray(users), return_inverse=True)  # (rows,)
    sizes = np.bincount(owner).astype(float)
    sums = np.empty((len(sizes), count))
    columns = iter(values)
    # A few columns at a time: one by one, each number of a large table is a cache line of its own
    for first in range(
        0,
        count,
        COLUMNS_AT_ONCE,
    ):
        added = []
        for rows in itertools.islice(columns, COLUMNS_AT_ONCE):
            added.append(np.bincount(owner, weights=rows))  # in the order of the rows
        sums[:, first : first + len(added)] = np.stack(added, axis=1)
    return sums, sizes


def resampled_sums(
    tables: Sequence[np.ndarray],
    samples: int,
    seed: int,
) -> list[np.ndarray]:
    """Tables ``(U, ...)`` added up over users that are drawn anew, ``(samples, ...)`` each."""
    blocks: list[list[np.ndarray]] = [[] for _ in tables]
    for weights in resamples(
        len(tables[0]),
        samples,
        seed,
    ):  # (chunk, U) how often each is drawn
        for table, sums in zip(
            tables,
            blocks,
            strict=True,
        ):
            sums.append(weighted_sums(weights, table))
    return [np.concatenate(sums) for sums in blocks]


def resamples(
    num_users: int,
    samples: int,
    seed: int,
) -> Iterator[np.ndarray]:
    """How often each user is drawn, ``(chunk, U)`` at a time."""
    rng = np.random.default_rng(seed)
    step = max(FEWEST, BOOTSTRAP_CHUNK // num_users)
    for start in range(
        0,
        samples,
        step,
    ):
        drawn = np.empty((min(step, samples - start), num_users), dtype=np.int32)
        for row in drawn:
            users = rng.integers(num_users, size=num_users)
            row[:] = np.bincount(users, minlength=num_users)
        yield drawn


def weighted_sums(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``weights @ values`` of whole numbers ``(chunk, U)`` and ``(U, M)`` or ``(U,)``."""
    total = np.zeros((len(weights), *values.shape[1:]))
    for start in range(
        0,
        len(values),
        USERS_AT_ONCE,
    ):
        block = slice(start, start + USERS_AT_ONCE)
        total += weights[:, block].astype(float) @ values[block]
    return total


def row_keys(predictions: Sequence[Prediction]) -> list[RowKey]:
    """What tells a row apart: user, target, and how often the two came together before."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for row in predictions:
        pair = (row["user_id"], row["target_item_id"])
        keys.append((*pair, seen[pair]))
        seen[pair] += 1
    return keys


def paired(a: Sequence[Prediction], b: Sequence[Prediction]) -> tuple[list[int], list[int]]:
    """Numbers of the rows of both in one order.

    A user's repeated target is paired by order of appearance.

    Raises:
        UserError: a row is in one of them only, or both are empty.
    """
    rows_a = {key: row for row, key in enumerate(row_keys(a))}
    rows_b = {key: row for row, key in enumerate(row_keys(b))}
    odd = sorted(rows_a.keys() ^ rows_b.keys())
    if odd or not rows_a:
        what = "both are empty"
        if odd:
            what = f"user '{odd[0][0]}' with target '{odd[0][1]}' is in one only"
        raise UserError(
            f"compare: the two predictions hold different test rows ({len(a)} and {len(b)}; "
            f"{what}); rank the same split of the same data with both"
        )
    order = sorted(rows_a)
    return [rows_a[key] for key in order], [rows_b[key] for key in order]
