"""Methods against one of them on the same rows: intervals, differences, what is more than noise.

Users are the units throughout; of several seeds a row counts by its mean. So the test says whether
other users would show the difference; whether another training would is what the deviation over
seeds tells.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from minionerec.errors import UserError
from minionerec.evaluation.memory import pair_in_train
from minionerec.evaluation.methods import Method, notes_on
from minionerec.evaluation.metrics import KEYS
from minionerec.evaluation.rankings import Ranking, check_rows
from minionerec.evaluation.statistics import bootstrap_intervals, holm, paired_difference
from minionerec.evaluation.terms import footnotes, terms_of
from minionerec.experiment.manifest import read_manifest

LEVEL = 0.05  # two-sided, after Holm's correction over all printed comparisons
TABLE_KEYS = ("HR@1", "HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10")
INTERVAL_SEED = 42


def compared(
    methods: Sequence[Method],
    reference: Method,
    keys: Sequence[str],
    samples: int,
) -> dict[str, Any]:
    """What is printed and written.

    Per method its means, deviations and intervals, and the differences to the reference.
    """
    users = [user for user, _ in reference.rankings[0].pairs]
    summaries = {}
    for method in methods:
        summaries[method.name] = summary(method, keys, users, samples)
    return {
        "split": reference.rankings[0].metrics["split"],
        "rows": len(users),
        "users": len(set(users)),
        "reference": reference.name,
        "samples": samples,
        "methods": summaries,
        "differences": differences(methods, reference, keys, users, samples),
        "slices": slices(methods, reference, keys, users, samples),
        "beam_widths": beam_widths(methods),
        "notes": notes_on(methods),
        "footnotes": footnotes({m.name: terms_of(m.rankings[0].path) for m in methods}),
    }


def summary(
    method: Method,
    keys: Sequence[str],
    users: Sequence[str],
    samples: int,
) -> dict[str, Any]:
    """One method's means, deviations over seeds, and intervals."""
    wanted = {*TABLE_KEYS, *keys}
    shown = {}
    means = {}
    deviations = {}
    for key, values in method.values.items():
        if key not in wanted:
            continue
        shown[key] = values
        means[key] = float(values.mean())
        if len(method.rankings) > 1:
            deviations[key] = method.deviation(key)
    return {
        "seeds": len(method.rankings),
        "paths": [str(ranking.path) for ranking in method.rankings],
        **means,
        "deviations": deviations,
        "intervals": bootstrap_intervals(shown, users, samples, INTERVAL_SEED),
    }


def differences(
    methods: Sequence[Method],
    reference: Method,
    keys: Sequence[str],
    users: Sequence[str],
    samples: int,
) -> list[dict[str, Any]]:
    """Every other method against the reference, a row per metric.

    Holm's correction is over all rows together, and its p-value decides what is significant.
    """
    base = {key: reference.values[key] for key in keys}
    rows: list[dict[str, Any]] = []
    for method in methods:
        if method is reference:
            continue
        values = {key: method.values[key] for key in keys}
        found = paired_difference(base, values, users, samples)
        for key in keys:
            rows.append({"method": method.name, "metric": key, **found[key]})
    corrected = holm([row["p_value"] for row in rows])
    for row, p_value in zip(rows, corrected, strict=True):
        row["holm_p_value"] = p_value
        row["significant"] = p_value < LEVEL
    return rows


def slices(
    methods: Sequence[Method],
    reference: Method,
    keys: Sequence[str],
    users: Sequence[str],
    samples: int,
) -> list[dict[str, Any]]:
    """The differences apart for rows that can be answered from memory and for those that cannot.

    Each has its interval and no p-value: they explain the differences of the whole and are not
    counted among the comparisons. None where the data of the reference is not there.
    """
    data = reference.rankings[0].data
    if data is None:
        return []
    known = pair_in_train(data, reference.rankings[0].metrics["split"])
    found: list[dict[str, Any]] = []
    for name, inside in (("yes", known), ("no", ~known)):
        if not inside.any():
            continue
        whose = np.array(users)[inside].tolist()
        base = {key: reference.values[key][inside] for key in keys}
        for method in methods:
            values = {key: method.values[key][inside] for key in keys}
            changed = {key: values[key] - base[key] for key in keys}
            ends = bootstrap_intervals(changed, whose, samples, INTERVAL_SEED)
            for key in keys:
                row = {"pair_in_train": name, "rows": len(whose), "method": method.name}
                row |= {"metric": key, "mean": float(values[key].mean())}
                if method is not reference:
                    row |= {"difference": float(changed[key].mean()), "interval": ends[key]}
                found.append(row)
    return found


def beam_widths(methods: Sequence[Method]) -> dict[str, Any]:
    """What each method's first seed measured at several numbers of beams, as its metrics say."""
    found = {}
    for method in methods:
        metrics = method.rankings[0].metrics
        if "beam_widths" in metrics:
            found[method.name] = {"beam_widths": metrics["beam_widths"]}
    return found


# -------------------------------------------------------------------------------------------------
# What can be compared


def check_comparable(rankings: Sequence[Ranking]) -> None:
    """Refuse rankings of different splits, data or rows; the first sets what is expected.

    Raises:
        UserError: naming what differs between which two.
    """
    check_copies(rankings)
    first = rankings[0]
    for other in rankings[1:]:
        split = other.metrics["split"]
        if split != first.metrics["split"]:
            raise UserError(
                f"{other.path}: ranks the {split} split, {first.path} the "
                f"{first.metrics['split']} split; compare rankings of the same split"
            )
        check_same_data(first, other)
        check_rows(other.path / "predictions.jsonl", other.pairs, first.pairs, str(first.path))


def check_copies(rankings: Sequence[Ranking]) -> None:
    """Refuse one ranking under two names: a copy is neither a method nor a seed of its own.

    Raises:
        UserError: naming the two.
    """
    first_with: dict[str, Ranking] = {}
    for ranking in rankings:
        if ranking.digest is None:
            continue
        first = first_with.setdefault(ranking.digest, ranking)
        if first is not ranking:
            raise UserError(f"{ranking.path}: is a copy of {first.path}; name one of them")


def check_same_data(first: Ranking, other: Ranking) -> None:
    """Refuse rankings made from different data; what is unknown or gone is not compared.

    Raises:
        UserError: naming the file that differs.
    """
    if first.data is None or other.data is None:
        return
    ours = read_manifest(first.data)["files"]
    theirs = read_manifest(other.data)["files"]
    for name in ("items.parquet", "interactions.parquet"):
        digest = theirs[name]["sha256"]
        expected = ours[name]["sha256"]
        if digest != expected:
            raise UserError(
                f"{other.path}: was made from other data than {first.path}: {name} of "
                f"{other.data} has sha256 {digest[:12]}, of {first.data} {expected[:12]}"
            )


def check_metrics(keys: Sequence[str], methods: Sequence[Method]) -> list[str]:
    """The metrics to compare on, each once.

    Raises:
        UserError: one is unknown, or was not measured because a list is shorter.
    """
    for key in keys:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"--metric: got '{key}', expected some of {', '.join(KEYS)}{hint}")
        for method in methods:
            for ranking in method.rankings:
                if key not in ranking.item_level:
                    raise UserError(
                        f"{ranking.path}: has no {key}, its lists hold {ranking.longest} items; "
                        "rank again with a larger evaluate.num_beams, or pass another --metric"
                    )
    return list(dict.fromkeys(keys))


def find_reference(name: str | None, methods: Sequence[Method]) -> Method:
    """The method that the others are compared with; the first where none is named.

    Raises:
        UserError: there is none of that name.
    """
    if name is None:
        return methods[0]
    for method in methods:
        if method.name == name:
            return method
    names = [method.name for method in methods]
    raise UserError(f"--to: got '{name}', expected one of {', '.join(names)}")
