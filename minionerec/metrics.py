"""HR@K, NDCG@K, MRR@K and Recall@K over the full catalogue, counted per item, with their uncertainty and what lies behind them.

One test row has one relevant item, its target, so Recall@K is HR@K. HR@K and NDCG@K as in the MiniOneRec report
(arXiv:2510.24431, section 4) and its predecessors, with four deliberate departures:

1. They are counted per *item*. Items that share one semantic ID (SID) cannot be told apart by the model, so they are tied
   and the metric is its expectation over a random order inside the tie group. The number that other papers print, where
   any item with the target's SID counts as a hit, stands beside it as ``sid_level``; ``inflation`` is their difference.
2. Every number carries a 95 % bootstrap interval. Users are resampled, not rows: rows of one user are not independent.
3. Results do not depend on the order of the rows, to the last bit: rows are sorted first, sums are exact (``math.fsum``).
4. Nothing is reported at a K beyond the length of the lists, unless they hold the whole catalogue: what was cut off may be hits.

Resampling is our own (tests compare it with ``scipy.stats``): scipy takes 3 to 10 times as long, as it gathers the rows of every
resample where one product with the draws' counts serves all metrics.

Everything here is pure: predictions in, numbers out. A prediction is one line of ``predictions.jsonl``:
``{"user_id", "target_item_id", "item_ids": [best first], "scores": [...]}``.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minionerec.config import UserError

KS = (1, 3, 5, 10, 20, 50)
KEYS = (*(f"{name}@{k}" for k in KS for name in ("HR", "NDCG", "MRR", "Recall")), "MRR")
HISTORY_BUCKETS = ((1, 1), (2, 4), (5, 9), (10, math.inf))  # items in the history, inclusive bounds
BOOTSTRAP_CHUNK = 2_000_000  # numbers drawn at a time: bounds memory at about 50 MB

Prediction = Mapping[str, Any]
SidOf = Mapping[str, Sequence[int]]


class Place(NamedTuple):
    """Where a ranked list holds the target.

    ``first`` counts from 0 and is the position of the best item of the target's tie group: the target is equally likely
    at ``first .. first + size - 1``; both are None where the list does not hold the target. ``sid_rank`` counts the
    distinct SIDs before the target's, None where no item of the list has it.
    """

    first: int | None
    size: int | None
    sid_rank: int | None


NOWHERE = Place(None, None, None)


def find_target(item_ids: Sequence[str], target: str, sid_of: SidOf | None = None) -> Place:
    """Position of the target, size of its tie group, and its rank in distinct SIDs.

    The tie group is the run of adjacent items around the target that share its SID. A list must hold such a group whole,
    as ``evaluate.py`` writes it: where a list was cut inside a group, the items that were cut off are misses.

        >>> find_target(["a", "b", "c"], "b")
        Place(first=1, size=1, sid_rank=1)
        >>> find_target(["a", "b", "c"], "c", {"a": (0,), "b": (1,), "c": (1,)})
        Place(first=1, size=2, sid_rank=1)
        >>> find_target(["a", "b"], "c", {"a": (0,), "b": (1,), "c": (1,)})  # only its SID is there
        Place(first=None, size=None, sid_rank=1)

    Args:
        item_ids: ranked, best first. An id that is repeated counts where it stands first.
        target: item id.
        sid_of: item -> SID; an item without one, or None, is a group of its own.
    """
    ranked = list(dict.fromkeys(item_ids))
    groups = ranked if sid_of is None else [_group(item, sid_of) for item in ranked]
    wanted = target if sid_of is None else _group(target, sid_of)
    if wanted not in groups:
        return NOWHERE
    sid_rank = len(set(groups[: groups.index(wanted)]))
    if target not in ranked:
        return Place(None, None, sid_rank)
    first = last = ranked.index(target)
    while first > 0 and groups[first - 1] == wanted:
        first -= 1
    while last + 1 < len(groups) and groups[last + 1] == wanted:
        last += 1
    return Place(first, last - first + 1, sid_rank)


def hr_at_k(place: Place, k: int) -> float:
    """Probability that the target is among the first k.

        >>> hr_at_k(Place(first=0, size=3, sid_rank=0), 1), hr_at_k(NOWHERE, 10)
        (0.3333333333333333, 0.0)
    """
    return 0.0 if place.first is None else max(0, min(place.size, k - place.first)) / place.size


def ndcg_at_k(place: Place, k: int) -> float:
    """Expected NDCG@k of one row. With one relevant item the ideal DCG is 1, so it is the discount at the target's rank:
    ``1 / log2(rank + 2)``, ranks from 0, averaged over the tie group.

        >>> ndcg_at_k(Place(0, 1, 0), 10), round(ndcg_at_k(Place(1, 1, 1), 10), 4), ndcg_at_k(Place(10, 1, 10), 10)
        (1.0, 0.6309, 0.0)
    """
    return _expectation(place, k, lambda rank: 1.0 / math.log2(rank + 2))


def mrr_at_k(place: Place, k: int | None) -> float:
    """Expected ``1 / rank``, ranks from 1 here; 0 where the first k (None: the whole list) do not hold the target.

        >>> mrr_at_k(Place(first=1, size=2, sid_rank=1), None) == (1 / 2 + 1 / 3) / 2, mrr_at_k(Place(1, 2, 1), 2)
        (True, 0.25)
    """
    return _expectation(place, k, lambda rank: 1.0 / (rank + 1))


@cache
def place_metrics(place: Place) -> tuple[float, ...]:
    """The values of ``KEYS`` for one row. Rows have few different places, hence the cache."""
    at_k = [(hr_at_k(place, k), ndcg_at_k(place, k), mrr_at_k(place, k), hr_at_k(place, k)) for k in KS]
    return (*(value for values in at_k for value in values), mrr_at_k(place, None))


def measured_ks(depth: int, num_items: int) -> tuple[int, ...]:
    """The K that lists of ``depth`` items answer for: all of them when the lists hold the whole catalogue.

        >>> measured_ks(10, 3686), measured_ks(36, 36)
        ((1, 3, 5, 10), (1, 3, 5, 10, 20, 50))
    """
    return tuple(k for k in KS if k <= depth or depth >= num_items)


def row_metrics(
    predictions: Sequence[Prediction], sid_of: SidOf | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Item-level and SID-level metrics of every row, in the order given: two dicts key -> ``(rows,)``."""
    places = [find_target(row["item_ids"], row["target_item_id"], sid_of) for row in predictions]
    strings = [NOWHERE if place.sid_rank is None else Place(place.sid_rank, 1, place.sid_rank) for place in places]
    item_rows, sid_rows = (np.array([place_metrics(place) for place in level]).reshape(-1, len(KEYS)) for level in (places, strings))
    return dict(zip(KEYS, item_rows.T, strict=True)), dict(zip(KEYS, sid_rows.T, strict=True))


def score_predictions(
    predictions: Sequence[Prediction],
    sid_of: SidOf | None,
    catalogue: Sequence[str],
    train_counts: Mapping[str, int],
    histories: Sequence[Sequence[str]] | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 42,
    depth: int | None = None,
) -> dict[str, Any]:
    """What ``metrics.json`` says about a ranking.

    Args:
        predictions: one per test row, in any order.
        sid_of: item -> SID, None for a ranker that knows items apart.
        catalogue: every item id that may be recommended.
        train_counts: item -> train interactions; absent is 0.
        histories: item ids before the target, oldest first, parallel to ``predictions``; None: no slices that need them.
        bootstrap_samples: resamples of the intervals; 0 leaves ``intervals`` empty.
        seed: of the resampling.
        depth: how many items a list was asked for; by default the longest list counts.

    Returns:
        ``HR@K``, ``NDCG@K``, ``MRR@K``, ``Recall@K`` for the K of ``measured_ks`` and, with the last of ``KS`` among them,
        ``MRR`` over the whole list; the same under ``sid_level`` and, as difference to the item level, ``inflation``;
        ``num_users``, ``num_rows``; what ``exposure`` says of each K; ``invalid`` and ``duplicates``; ``intervals`` key ->
        [low, high]; ``slices`` kind -> name -> HR@10, NDCG@10, count.

    Raises:
        UserError: a row lacks a key, names a target outside the catalogue, or there is no row.
    """
    known = set(catalogue)
    check_predictions(predictions, known)
    predictions, histories = _sorted_rows(predictions, histories)
    ks = measured_ks(depth if depth is not None else max(len(row["item_ids"]) for row in predictions), len(known))
    item_level, sid_level = ({key: values for key, values in level.items() if int(key.partition("@")[2] or KS[-1]) in ks}
                             for level in row_metrics(predictions, sid_of))
    means, sid_means = ({key: _mean(values) for key, values in level.items()} for level in (item_level, sid_level))
    users = [row["user_id"] for row in predictions]
    return {
        **means,
        "sid_level": sid_means,
        "inflation": {key: sid_means[key] - means[key] for key in means},
        "num_users": len(set(users)),
        "num_rows": len(predictions),
        **exposure([row["item_ids"] for row in predictions], catalogue, train_counts, ks),
        "invalid": sum(item not in known for row in predictions for item in row["item_ids"]),
        "duplicates": sum(len(row["item_ids"]) - len(set(row["item_ids"])) for row in predictions),
        "intervals": bootstrap_intervals(item_level, users, bootstrap_samples, seed),
        "slices": sliced(item_level, slice_names(predictions, histories, train_counts)),
    }


def check_predictions(predictions: Sequence[Prediction], catalogue: set[str]) -> None:
    """Refuse rows that cannot be scored.

    Raises:
        UserError: naming the first such row, counted from 1.
    """
    if not predictions:
        raise UserError("predictions: there is no row to score; the split that was ranked is empty")
    for number, row in enumerate(predictions, start=1):
        missing = [key for key in ("user_id", "target_item_id", "item_ids", "scores") if key not in row]
        if missing:
            raise UserError(f"predictions, row {number}: has no '{missing[0]}'; "
                            "expected user_id, target_item_id, item_ids, scores")
        if len(row["item_ids"]) != len(row["scores"]):
            raise UserError(f"predictions, row {number}: {len(row['item_ids'])} item_ids but {len(row['scores'])} scores; "
                            "expected one score per item")
        if row["target_item_id"] not in catalogue:
            raise UserError(f"predictions, row {number}: target '{row['target_item_id']}' is not in the catalogue; "
                            "these predictions belong to other data, make them again")


def exposure(
    lists: Sequence[Sequence[str]], catalogue: Sequence[str], train_counts: Mapping[str, int], ks: Sequence[int] = KS
) -> dict[str, float]:
    """How the recommendations are spread over the catalogue; ids that are not in it do not count.

    For every K: ``coverage@K``, the share of the catalogue that is in some top K; ``gini@K`` of how often each item is in one
    (0 is even, near 1 is all on one item); ``mean_popularity@K``, train interactions of a recommended item; ``novelty@K``, mean
    self-information of a recommended item in bits (Zhou et al. 2010, doi:10.1073/pnas.1000488107), ``-log2 p`` with p its share
    of the train interactions. One is added to every item's count there, so that an item without any has
    p = 1 / (interactions + items).
    """
    n, index = len(catalogue), {item: i for i, item in enumerate(catalogue)}
    popularity = np.array([train_counts.get(item, 0) for item in catalogue])
    bits = -np.log2((popularity + 1) / (popularity.sum() + n))
    spread: dict[str, float] = {}
    for k in ks:
        shown = np.bincount([index[item] for items in lists for item in items[:k] if item in index], minlength=n)
        slots = max(int(shown.sum()), 1)
        spread |= {f"coverage@{k}": np.count_nonzero(shown) / n, f"gini@{k}": gini(shown) if shown.any() else 0.0,
                   f"mean_popularity@{k}": int(popularity @ shown) / slots, f"novelty@{k}": math.fsum(bits * shown) / slots}
    return spread


def gini(counts: np.ndarray) -> float:
    """Mean absolute difference of two draws over twice the mean: ``sum_i (2i - n - 1) x_(i) / (n sum x)``, x sorted."""
    x, n = np.sort(counts), len(counts)
    return float(((2 * np.arange(1, n + 1) - n - 1) * x).sum() / (n * x.sum()))


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
    sums, sizes = user_sums(np.stack(list(values.values()), axis=1), users)                 # (U, M), (U,)
    means = np.concatenate([weights @ sums / (weights @ sizes)[:, None]                    # (samples, M)
                            for weights in _resamples(len(sizes), samples, seed)])
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return {key: [float(low[i]), float(high[i])] for i, key in enumerate(values)}


def slice_names(
    predictions: Sequence[Prediction], histories: Sequence[Sequence[str]] | None, train_counts: Mapping[str, int]
) -> dict[str, list[str]]:
    """For every kind of slice the slice each row belongs to: kind -> ``(rows,)`` names.

    ``target_popularity`` splits by train interactions: items are ordered by count, and a third of all interactions each
    makes head, mid and tail (items with equal counts stay together); cold items have none.
    """
    targets = [row["target_item_id"] for row in predictions]
    kind_of = popularity_thirds(train_counts)
    names = {"target_popularity": [kind_of.get(target, "cold") for target in targets]}
    if histories is None:
        return names
    yes_no = {True: "yes", False: "no"}
    return names | {
        "history_length": [_bucket(len(history)) for history in histories],
        "target_in_history": [yes_no[target in history] for target, history in zip(targets, histories, strict=True)],
        "target_repeats_last": [yes_no[history[-1:] == [target]] for target, history in
                                zip(targets, map(list, histories), strict=True)],
    }


def popularity_thirds(train_counts: Mapping[str, int]) -> dict[str, str]:
    """head, mid or tail for every item with a train interaction: the third of all interactions in which its count lies.

        >>> popularity_thirds({"a": 5, "b": 2, "c": 2, "d": 1, "e": 0})  # more popular: 0, 5, 5, 9 of 10
        {'a': 'head', 'b': 'mid', 'c': 'mid', 'd': 'tail'}
    """
    total = sum(train_counts.values())
    per_count = Counter(count for count in train_counts.values() if count > 0)
    third, above = {}, 0
    for count in sorted(per_count, reverse=True):
        third[count] = ("head", "mid", "tail")[3 * above // total]
        above += count * per_count[count]
    return {item: third[count] for item, count in train_counts.items() if count > 0}


def sliced(values: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, dict[str, float]]]:
    """HR@10, NDCG@10 (where they are measured) and the number of rows of every slice that has rows."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for kind, of_row in names.items():
        rows = defaultdict(list)
        for index, name in enumerate(of_row):
            rows[name].append(index)
        shown = [key for key in ("HR@10", "NDCG@10") if key in values]
        table[kind] = {name: {**{key: _mean(values[key][rows[name]]) for key in shown}, "count": len(rows[name])} for name in sorted(rows)}
    return table


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
    return paired_difference({key: values_a[key] for key in keys}, {key: values_b[key] for key in keys}, users, samples, seed)


def paired_difference(
    values_a: Mapping[str, np.ndarray], values_b: Mapping[str, np.ndarray], users: Sequence[str], samples: int = 10_000, seed: int = 42
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
        key: {"a": _mean(values_a[key]), "b": _mean(values_b[key]), "difference": _mean(differences[key]),
              "interval": intervals[key],
              "p_value": randomisation_p_value(user_sums(differences[key][:, None], users)[0][:, 0], samples, seed)}
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
    observed = abs(math.fsum(moved)) - 1e-9  # sums of equal size must count as equal though added in another order
    rng, extreme = np.random.default_rng(seed), 0
    for start in range(0, samples, step := max(1, BOOTSTRAP_CHUNK // max(1, len(moved)))):
        signs = rng.integers(0, 2, size=(min(step, samples - start), len(moved)), dtype=np.int8) * 2.0 - 1.0
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
    return (np.stack([np.bincount(rng.integers(users, size=users), minlength=users) for _ in range(min(step, samples - start))])
            .astype(float) for start in range(0, samples, step))


def _sorted_rows(
    predictions: Sequence[Prediction], histories: Sequence[Sequence[str]] | None
) -> tuple[list[Prediction], list[list[str]] | None]:
    """Rows in an order that depends on their content alone."""
    if histories is not None and len(histories) != len(predictions):
        raise UserError(f"histories: got {len(histories)} for {len(predictions)} predictions; expected one per row")
    pairs = zip(predictions, histories if histories is not None else [()] * len(predictions), strict=True)
    ordered = sorted(((row, list(history)) for row, history in pairs),
                     key=lambda pair: (pair[0]["user_id"], pair[0]["target_item_id"], pair[0]["item_ids"], pair[1]))
    return [row for row, _ in ordered], None if histories is None else [history for _, history in ordered]


def row_keys(predictions: Sequence[Prediction]) -> list[tuple[str, str, int]]:
    """What tells a row apart: user, target, and how often the two came together before."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for row in predictions:
        pair = (row["user_id"], row["target_item_id"])
        keys.append((*pair, seen[pair]))
        seen[pair] += 1
    return keys


def _paired(a: Sequence[Prediction], b: Sequence[Prediction]) -> tuple[list[Prediction], list[Prediction]]:
    """The rows of both in one order; a user's repeated target is paired by its order of appearance."""
    keyed = [dict(zip(row_keys(rows), rows, strict=True)) for rows in (a, b)]
    odd = sorted(keyed[0].keys() ^ keyed[1].keys())
    if odd or not keyed[0]:
        what = f"user '{odd[0][0]}' with target '{odd[0][1]}' is in one only" if odd else "both are empty"
        raise UserError(f"compare: the two predictions hold different test rows ({len(a)} and {len(b)}; {what}); "
                        "rank the same split of the same data with both")
    return [keyed[0][key] for key in sorted(keyed[0])], [keyed[1][key] for key in sorted(keyed[0])]


def _group(item: str, sid_of: SidOf) -> Any:
    return tuple(sid_of[item]) if item in sid_of else item


def _expectation(place: Place, k: int | None, gain: Callable[[int], float]) -> float:
    if place.first is None:
        return 0.0
    end = place.first + place.size
    return math.fsum(gain(rank) for rank in range(place.first, end if k is None else min(end, k))) / place.size


def _bucket(length: int) -> str:
    low, high = next(bounds for bounds in HISTORY_BUCKETS if length <= bounds[1])
    return f"{low}" if low == high else f"{low}-{high}" if high < math.inf else f"{low}+"


def _mean(values: np.ndarray) -> float:
    return math.fsum(values) / len(values)
