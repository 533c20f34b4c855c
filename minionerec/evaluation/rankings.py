"""One ranking read back from disk: ``predictions.jsonl`` and ``metrics.json``, checked row by row.

A ranking may come from the pipeline, then its manifest and its data are checked too, or from
anywhere else. Nothing heavier than numpy is imported before a data directory is looked at.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minionerec.errors import UserError
from minionerec.evaluation.metrics import KEYS, Values, row_metrics
from minionerec.evaluation.prediction_files import copy_of
from minionerec.evaluation.predictions import Predictions, Row
from minionerec.evaluation.statistics import row_keys
from minionerec.experiment.files import read_json, sha256_file
from minionerec.experiment.lineage import check_parents, require_own_name
from minionerec.experiment.manifest import MANIFEST, verify

ROW_TYPES = {"user_id": str, "target_item_id": str, "item_ids": list, "scores": list}
SHOWN_CHARACTERS = 40  # of a wrong value, in a message
STAGES = ("baselines", "evaluate")  # folders of an experiment that hold rankings
SAME = 1e-9  # means of the same rows may be added up in another order

Pair = tuple[str, str]  # user and target


@dataclass(frozen=True)
class Ranking:
    """One directory with ``predictions.jsonl`` and ``metrics.json``, read and checked."""

    path: Path
    metrics: dict[str, Any]
    data: Path | None  # the data it was made from; None where that is unknown or gone
    pairs: list[Pair]  # of every row, sorted
    item_level: Values  # what is measured, in the order of the pairs
    longest: int  # items in the longest list
    digest: str | None  # of its manifest; None where the pipeline did not write it


def is_ranking(path: Path) -> bool:
    """Whether a directory looks like an evaluation or a baseline."""
    names = ("predictions.jsonl", "metrics.json", MANIFEST)
    return any((path / name).exists() for name in names)


def read_ranking(path: Path) -> Ranking:
    """Read one directory. The lists are not kept: thirty rankings would need a gigabyte.

    Raises:
        UserError: it is damaged, was made from others than those on disk, stands under another's
            name, or holds what is no ranking.
    """
    manifest: dict[str, Any] = {}
    if (path / MANIFEST).is_file():
        manifest = verify(path)
        check_parents(path, manifest)
    for name in ("predictions.jsonl", "metrics.json"):
        if not (path / name).is_file():
            raise UserError(f"{path}: has no {name}; expected an evaluation or a baseline")
    metrics = read_metrics(path / "metrics.json")
    if manifest and path.parent.name in STAGES:  # elsewhere, its name is what the user likes
        require_own_name(path, manifest)
    file = path / "predictions.jsonl"
    rows = read_predictions(file)
    data = parent(path, manifest, "data")
    if data:
        items, expected = expected_rows(data, metrics["split"])
        check_items(file, rows, items)
        check_rows(file, pairs_of(rows), expected, f"the {metrics['split']} split of {data}")
    values, _ = row_metrics(rows, sids_of(path, manifest, metrics))
    check_means(path, metrics, values)
    order = sorted(range(len(rows)), key=row_keys(rows).__getitem__)
    return Ranking(
        path=path,
        metrics=metrics,
        data=data,
        pairs=sorted(pairs_of(rows)),
        item_level={key: values[key][order] for key in KEYS if key in metrics},
        longest=max(len(row["item_ids"]) for row in rows),
        digest=manifest.get("manifest_sha256"),
    )


def parent(path: Path, manifest: Mapping[str, Any], stage: str) -> Path | None:
    """The directory of the stage that a ranking was made from; None where unknown or gone."""
    for relative in manifest.get("parents", {}):
        found = Path(os.path.normpath(path / relative))
        if found.name == stage and found.is_dir():
            return found
    return None


def sids_of(
    path: Path, manifest: Mapping[str, Any], metrics: Mapping[str, Any]
) -> dict[str, list[int]] | None:
    """The SIDs that decide which items of a ranking are tied; None where no two are.

    Raises:
        UserError: they are needed and gone, or are others by now.
    """
    if not any(metrics.get("inflation", {}).values()):
        return None
    digest = str(metrics.get("sids_sha256", "?"))
    sids = parent(path, manifest, "sids")
    if not sids or sha256_file(sids / "sids.json") != digest:
        raise UserError(
            f"{path}: several of its items share a SID, and the SIDs it was made with "
            f"({digest[:12]}) are not where its manifest says; rank again"
        )
    return json.loads((sids / "sids.json").read_text(encoding="utf-8"))["sids"]


# -------------------------------------------------------------------------------------------------
# Files


def read_metrics(file: Path) -> dict[str, Any]:
    """One ``metrics.json``.

    Raises:
        UserError: it is not one.
    """
    metrics = parsed(file.read_bytes(), f"{file}")
    if not isinstance(metrics, dict) or "split" not in metrics:
        raise UserError(
            f"{file}: has no 'split'; expected the metrics.json of an evaluation or a baseline"
        )
    for key, kind in (("split", str), ("inflation", dict)):
        if not isinstance(metrics.get(key, kind()), kind):
            raise UserError(f"{file}: {key}: got {shown(metrics[key])}; make the ranking again")
    for key in KEYS:
        if key in metrics and not is_share(metrics[key]):
            raise UserError(
                f"{file}: {key}: got {shown(metrics[key])}, expected a number from 0 to 1; "
                "make the ranking again"
            )
    return metrics


def read_predictions(file: Path) -> Predictions:
    """The rows of a ``predictions.jsonl``.

    Raises:
        UserError: naming the first line that is not a row.
    """
    rows = copy_of(file) or Predictions.of(checked_rows(file))
    if not rows:
        raise UserError(f"{file}: is empty; expected a line per test row")
    return rows


def checked_rows(file: Path) -> Iterator[Row]:
    """Row after row.

    Raises:
        UserError: as ``read_predictions``.
    """
    with open(file, "rb") as handle:
        lines = itertools.chain.from_iterable(map(bytes.splitlines, handle))
        for number, line in enumerate(lines, start=1):
            row = parsed(line, f"{file}:{number}")
            problem = problem_of(row)
            if problem:
                raise UserError(f"{file}:{number}: {problem}")
            yield row


def parsed(content: bytes, where: str) -> Any:
    """JSON as Python.

    Raises:
        UserError: it is not JSON, not UTF-8, or nested beyond measure.
    """
    try:
        return read_json(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({error}); make the ranking again") from None


def problem_of(row: Any) -> str | None:
    """What is wrong with one row, if anything."""
    if not isinstance(row, dict):
        return f"got {shown(row)}, expected an object with {', '.join(ROW_TYPES)}"
    for key, kind in ROW_TYPES.items():
        if not isinstance(row.get(key), kind):
            found = f"got {shown(row[key])}" if key in row else "is missing"
            return f"{key}: {found}, expected {'text' if kind is str else 'a list'}"
    return problem_of_items(row["item_ids"]) or problem_of_scores(row["scores"], row["item_ids"])


def problem_of_items(items: Sequence[Any]) -> str | None:
    """What is wrong with a list of items, if anything."""
    if not all(isinstance(item, str) for item in items):
        return "item_ids: holds something that is not text; expected item ids"
    if len(set(items)) < len(items):
        twice, times = Counter(items).most_common(1)[0]
        return f"item_ids: item '{twice}' is there {times} times; expected every item once"
    return None


def problem_of_scores(scores: Sequence[Any], items: Sequence[str]) -> str | None:
    """What is wrong with the scores of a list of items, if anything."""
    if len(items) != len(scores):
        return f"{len(items)} item_ids but {len(scores)} scores; expected one score per item"
    # By type: True is a number to Python.
    if {type(score) for score in scores} - {float, int}:
        return "scores: holds something that is not a number"
    try:
        finite = np.isfinite(np.array(scores, dtype=float)).all()
    except OverflowError:  # a whole number of four hundred digits
        finite = False
    if not finite:
        return "scores: holds NaN or infinity; whatever ranked this had no numbers to rank by"
    return None


def is_share(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    return isinstance(value, (int, float)) and 0 <= value <= 1


def shown(value: Any) -> str:
    """The beginning of a value, for a message."""
    return json.dumps(value)[:SHOWN_CHARACTERS]


# -------------------------------------------------------------------------------------------------
# Rows that belong together


def pairs_of(rows: Sequence[Row]) -> list[Pair]:
    """User and target of every row."""
    return [(row["user_id"], row["target_item_id"]) for row in rows]


def check_means(path: Path, metrics: Mapping[str, Any], values: Values) -> None:
    """Refuse a ``metrics.json`` that is not of these rows.

    Raises:
        UserError: naming the first metric that the rows give another value.
    """
    for key in KEYS:
        if key in metrics and abs(values[key].mean() - metrics[key]) > SAME:
            raise UserError(
                f"{path}: metrics.json says {key} {metrics[key]:.6f}, predictions.jsonl gives "
                f"{values[key].mean():.6f}; one of them is of another run, make the ranking again"
            )


def expected_rows(data: Path, split: str) -> tuple[set[str], list[Pair]]:
    """The catalogue of a data directory and the (user, target) pairs of one split."""
    import pandas as pd  # half a second that most calls of compare.py do not need

    items = pd.read_parquet(data / "items.parquet", columns=["item_id"])["item_id"]
    rows = pd.read_parquet(data / "interactions.parquet", columns=["user_id", "item_id", "split"])
    has_history = rows.groupby("user_id").cumcount() > 0  # a user's first item is no target
    targets = rows[(rows["split"] == split) & has_history]
    return set(items), list(zip(targets["user_id"], targets["item_id"], strict=True))


def check_items(file: Path, rows: Sequence[Row], items: set[str]) -> None:
    """Refuse ids that the catalogue does not have.

    Raises:
        UserError: naming the first line with one.
    """
    for number, row in enumerate(rows, start=1):
        for item in (row["target_item_id"], *row["item_ids"]):
            if item not in items:
                raise UserError(
                    f"{file}:{number}: item '{item}' is not in the catalogue of {len(items):,} "
                    "items; this ranking is of another catalogue"
                )


def check_rows(file: Path, found: Sequence[Pair], expected: Sequence[Pair], whose: str) -> None:
    """Refuse rows that are missing, too many, or of another split.

    Raises:
        UserError: naming the first such row.
    """
    have = Counter(found)
    want = Counter(expected)
    for (user, target), times in have.items():
        if times > want[user, target]:
            raise UserError(
                f"{file}: user '{user}' with target '{target}' is there {times} times, in {whose} "
                f"{want[user, target]} times ({len(found):,} rows here, {len(expected):,} there)"
            )
    for user, target in want - have:
        raise UserError(
            f"{file}: user '{user}' with target '{target}' is missing; it has {len(found):,} of "
            f"the {len(expected):,} rows of {whose}"
        )
