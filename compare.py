"""Rankings of the same test rows side by side: intervals, differences, and which of them are more than noise.

    python compare.py runs/quickstart                                     all that an experiment has ranked
    python compare.py runs/A/evaluate/rl-test runs/B/evaluate/rl-test     two rankings
    python compare.py runs/A runs/A-seed43 runs/A-seed44                  three seeds of everything
    python compare.py 'runs/A*/evaluate/sft-test' runs/A/baselines/markov --to markov --json out.json

RUN is a directory with predictions.jsonl and metrics.json; or an experiment's folder, which stands for its baselines/* and
evaluate/*-test; or several of the first kind, joined by commas or found by a pattern, that are seeds of one method.
Experiments that differ only in their seed are seeds of the same methods. Users are the units throughout: of several seeds
a row counts by its mean. So the test says whether other users would show the difference; whether another training would is
what the deviation over seeds tells.

    --to NAME        the method that the others are compared with; the first by default
    --metric A,B     what they are compared on; NDCG@10,HR@10 by default
    --samples N      resamples of the intervals and of the randomisation test; 10000 by default
    --json FILE      write the same figures
"""

from __future__ import annotations

import argparse
import difflib
import glob
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minionerec.errors import UserError, one_line_errors
from minionerec.evaluation.metrics import KEYS, row_metrics
from minionerec.evaluation.statistics import bootstrap_intervals, holm, paired_difference, row_keys
from minionerec.experiment import artifacts
from minionerec.pages.text import aligned, metrics_table

LEVEL = 0.05  # two-sided, after Holm's correction over all printed comparisons
ROW_TYPES = {"user_id": str, "target_item_id": str, "item_ids": list, "scores": list}
TABLE_KEYS = ("HR@1", "HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10")


@dataclass(frozen=True)
class Ranking:
    """One directory with ``predictions.jsonl`` and ``metrics.json``, read and checked."""

    path: Path
    metrics: dict[str, Any]
    data: Path | None  # the data it was made from; None where that is unknown or gone
    pairs: list[tuple[str, str]]  # user and target of every row, sorted
    item_level: dict[str, np.ndarray]  # what is measured -> (rows,) in the order of the pairs
    longest: int  # items in the longest list


@dataclass(frozen=True)
class Method:
    """A name and its rankings, one per seed."""

    name: str
    rankings: list[Ranking]

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Key -> ``(rows,)`` mean over the seeds."""
        keys = [key for key in KEYS if all(key in ranking.item_level for ranking in self.rankings)]
        return {
            key: np.mean([ranking.item_level[key] for ranking in self.rankings], axis=0)
            for key in keys
        }

    def deviation(self, key: str) -> float | None:
        """Standard deviation over the seeds; None of one seed."""
        means = [ranking.item_level[key].mean() for ranking in self.rankings]
        return float(np.std(means, ddof=1)) if len(means) > 1 else None


def main(argv: Sequence[str] | None = None) -> None:
    """Read, check, compare, print."""
    options = read_arguments(argv)
    methods = read_methods(options.runs)
    check_comparable([ranking for method in methods for ranking in method.rankings])
    keys = check_metrics(options.metric.split(","), methods)
    reference = find_reference(options.to, methods)
    figures = compared(methods, reference, keys, options.samples)
    print(as_text(figures))
    if options.json:
        artifacts.write_json(Path(options.json), figures)


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"compare.py: {message}; --help says more")


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: a flag is unknown or lacks its value.
    """
    parser = _Arguments(
        prog="compare.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--to", metavar="NAME")
    parser.add_argument("--metric", default="NDCG@10,HR@10")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(argv)
    if options.samples < 100:
        raise UserError(f"--samples: got {options.samples}, expected at least 100")
    return options


# ---------------------------------------------------------------------------------------------------------------------
# Which rankings


def read_methods(words: Sequence[str]) -> list[Method]:
    """The methods that the command line names, in its order.

    Raises:
        UserError: something is not there, damaged, or not what it should be; there is nothing to compare.
    """
    groups: list[list[Path]] = []
    of_experiments: list[
        list[Path]
    ] = []  # those of the groups that further experiments may have seeds for
    for word in words:
        paths = expand(word)
        if len(paths) > 1 or is_ranking(paths[0]):
            check_seeds(paths)
            groups.append(paths)
            continue
        for path in rankings_of(paths[0]):
            same = next(
                (
                    group
                    for group in of_experiments
                    if group[0].name == path.name and are_seeds(group, path)
                ),
                None,
            )
            if same is None:
                of_experiments.append(same := [])
                groups.append(same)
            same.append(path)
    twice = [
        path
        for path, times in Counter(path for group in groups for path in group).items()
        if times > 1
    ]
    if twice:
        raise UserError(
            f"{twice[0]}: is named twice, by itself or with its experiment; name it once"
        )
    if len(groups) < 2:
        raise UserError(f"{words[0]}: is one method only; name at least two to compare")
    return [
        Method(name, [read_ranking(path) for path in paths])
        for name, paths in zip(names_of(groups), groups, strict=True)
    ]


def expand(word: str) -> list[Path]:
    """The directories that one argument stands for: a path, several with commas, or a pattern.

    Raises:
        UserError: one of them is not there, or of several one is no ranking.
    """
    found = [path for part in word.split(",") for path in (sorted(glob.glob(part)) or [part])]
    paths = [Path(os.path.normpath(path)) for path in found]
    for path in paths:
        if not path.is_dir():
            raise UserError(
                f"{path}: no such directory; expected an evaluation, a baseline, or an experiment's folder"
            )
        if len(paths) > 1 and not is_ranking(path):
            raise UserError(
                f"{path}: is no evaluation and no baseline; of several seeds, each must be one"
            )
    return paths


def is_ranking(path: Path) -> bool:
    """Whether a directory looks like an evaluation or a baseline."""
    return any(
        (path / name).exists() for name in ("predictions.jsonl", "metrics.json", artifacts.MANIFEST)
    )


def rankings_of(experiment: Path) -> list[Path]:
    """An experiment's rankings of its test split.

    Raises:
        UserError: it has none.
    """
    found = [
        path
        for pattern in ("baselines/[!.]*", "evaluate/[!.]*-test")
        for path in sorted(experiment.glob(pattern))
        if is_ranking(path)
    ]
    if not found:
        raise UserError(
            f"{experiment}: is neither a ranking (predictions.jsonl, metrics.json) nor an experiment with baselines/* or "
            f"evaluate/*-test; run `{artifacts.COMMANDS['evaluate']}` or `{artifacts.COMMANDS['baselines']}` first"
        )
    return found


def names_of(groups: Sequence[Sequence[Path]]) -> list[str]:
    """A short name for every method: the directory's, with its experiment's before it where that is not enough.

    >>> names_of([[Path("runs/a/evaluate/sft-test")], [Path("runs/a/baselines/markov")]])
    ['sft', 'markov']
    >>> names_of([[Path("runs/a/evaluate/sft-test")], [Path("runs/b/evaluate/sft-test")]])
    ['a/sft', 'b/sft']
    """
    short = [group[0].name.removesuffix("-test") for group in groups]
    longer = [
        "/".join([*group[0].parts[-3:-2], name]) if short.count(name) > 1 else name
        for group, name in zip(groups, short, strict=True)
    ]
    return [
        str(group[0]) if longer.count(name) > 1 else name
        for group, name in zip(groups, longer, strict=True)
    ]


def lineage(path: Path) -> dict[str, Any]:
    """Every setting that led to a directory, its parents' included: ``{"sft: sft.epochs": 10, "sft: seed": 42, ...}``."""
    if not (path / artifacts.MANIFEST).is_file():
        return {}
    manifest = artifacts.read_manifest(path)
    settings = {
        f"{manifest['stage']}: {key}": value
        for key, value in manifest["settings"].items()
        if key != "evaluate.checkpoint"
    }
    for relative in manifest["parents"]:
        settings |= lineage(Path(os.path.normpath(path / relative)))
    return settings


def without_seeds(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A lineage but for its seeds."""
    return {key: value for key, value in settings.items() if not key.endswith(": seed")}


def are_seeds(group: Sequence[Path], path: Path) -> bool:
    """Whether a ranking differs from those of a group in its seed, and in nothing else."""
    settings = [lineage(member) for member in (*group, path)]
    return all(
        without_seeds(one) == without_seeds(settings[-1]) and one != settings[-1]
        for one in settings[:-1]
    )


def notes_on(methods: Sequence[Method]) -> list[str]:
    """In what methods of the same directory name differ, which is why they are not seeds of one."""
    notes = []
    for number, method in enumerate(methods):
        path = method.rankings[0].path
        first = next(
            (other for other in methods[:number] if other.rankings[0].path.name == path.name), None
        )
        if first:
            changed = artifacts.settings_difference(
                *(without_seeds(lineage(each)) for each in (first.rankings[0].path, path))
            )
            more = f" and {len(changed) - 4} more settings" if len(changed) > 4 else ""
            notes.append(
                f"{first.name} -> {method.name}: {'; '.join(changed[:4]) or 'no setting but, at most, the seed differs'}{more}"
            )
    return notes


def check_seeds(paths: Sequence[Path]) -> None:
    """Refuse rankings that are said to be seeds of one method and are not; what the pipeline did not write is believed.

    Raises:
        UserError: naming what differs, or that nothing does.
    """
    settings = {path: lineage(path) for path in paths}
    known = [path for path in paths if settings[path]]
    for path in known[1:]:
        changed = artifacts.settings_difference(
            without_seeds(settings[known[0]]), without_seeds(settings[path])
        )
        if changed:
            raise UserError(
                f"{path}: is not another seed of {known[0]}, it differs in {'; '.join(changed)}; name it by itself"
            )
    for i, path in enumerate(known):
        twin = next((other for other in known[:i] if settings[other] == settings[path]), None)
        if twin:
            raise UserError(f"{path}: has the same seed as {twin}; expected every seed once")


# ---------------------------------------------------------------------------------------------------------------------
# Reading and checking


def read_ranking(path: Path) -> Ranking:
    """One directory. The lists themselves are not kept: thirty rankings would need a gigabyte.

    Raises:
        UserError: it is damaged, was made from others than those on disk, or holds what is no ranking.
    """
    manifest: dict[str, Any] = {}
    if (path / artifacts.MANIFEST).is_file():
        manifest = artifacts.verify(path)
        artifacts.check_parents(path, manifest)
    for name in ("predictions.jsonl", "metrics.json"):
        if not (path / name).is_file():
            raise UserError(f"{path}: has no {name}; expected an evaluation or a baseline")
    metrics, file = read_metrics(path / "metrics.json"), path / "predictions.jsonl"
    rows, data = read_predictions(file), parent(path, manifest, "data")
    if data:
        items, expected = expected_rows(data, metrics["split"])
        check_items(file, rows, items)
        check_rows(file, pairs_of(rows), expected, f"the {metrics['split']} split of {data}")
    values, _ = row_metrics(rows, sids_of(path, manifest, metrics))
    check_means(path, metrics, values)
    order = sorted(range(len(rows)), key=row_keys(rows).__getitem__)
    return Ranking(
        path,
        metrics,
        data,
        sorted(pairs_of(rows)),
        {key: values[key][order] for key in KEYS if key in metrics},
        max(len(row["item_ids"]) for row in rows),
    )


def parent(path: Path, manifest: Mapping[str, Any], stage: str) -> Path | None:
    """The directory of the stage that a ranking was made from; None where it is unknown or gone."""
    parents = (Path(os.path.normpath(path / relative)) for relative in manifest.get("parents", {}))
    return next((found for found in parents if found.name == stage and found.is_dir()), None)


def sids_of(
    path: Path, manifest: Mapping[str, Any], metrics: Mapping[str, Any]
) -> dict[str, list[int]] | None:
    """The SIDs that decide which items of a ranking are tied; None where no two are.

    Raises:
        UserError: they are needed and gone, or are others by now.
    """
    if not any(metrics.get("inflation", {}).values()):
        return None
    sids = parent(path, manifest, "sids")
    if not sids or artifacts.sha256_file(sids / "sids.json") != metrics.get("sids_sha256"):
        raise UserError(
            f"{path}: several of its items share a SID, and the SIDs it was made with ({metrics.get('sids_sha256', '?')[:12]}) "
            "are not where its manifest says; rank again"
        )
    return json.loads((sids / "sids.json").read_text(encoding="utf-8"))["sids"]


def read_metrics(file: Path) -> dict[str, Any]:
    """One ``metrics.json``.

    Raises:
        UserError: it is not one.
    """
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); make the ranking again") from None
    if not isinstance(metrics, dict) or "split" not in metrics:
        raise UserError(
            f"{file}: has no 'split'; expected the metrics.json of an evaluation or a baseline"
        )
    for key in KEYS:
        if key in metrics and not (
            isinstance(metrics[key], (int, float)) and 0 <= metrics[key] <= 1
        ):
            raise UserError(
                f"{file}: {key}: got {json.dumps(metrics[key])[:40]}, expected a number from 0 to 1; make the ranking again"
            )
    return metrics


def read_predictions(file: Path) -> list[dict[str, Any]]:
    """The rows of a ``predictions.jsonl``.

    Raises:
        UserError: naming the first line that is not a row.
    """
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{file}:{number}: is not JSON ({error}); make the ranking again"
            ) from None
        problem = problem_of(row)
        if problem:
            raise UserError(f"{file}:{number}: {problem}")
        rows.append(row)
    if not rows:
        raise UserError(f"{file}: is empty; expected a line per test row")
    return rows


def problem_of(row: Any) -> str | None:
    """What is wrong with one row, if anything."""
    if not isinstance(row, dict):
        return f"got {json.dumps(row)[:40]}, expected an object with {', '.join(ROW_TYPES)}"
    for key, kind in ROW_TYPES.items():
        if not isinstance(row.get(key), kind):
            found = f"got {json.dumps(row[key])[:40]}" if key in row else "is missing"
            return f"{key}: {found}, expected {'text' if kind is str else 'a list'}"
    if not all(isinstance(item, str) for item in row["item_ids"]):
        return "item_ids: holds something that is not text; expected item ids"
    if len(set(row["item_ids"])) < len(row["item_ids"]):
        twice, times = Counter(row["item_ids"]).most_common(1)[0]
        return f"item_ids: item '{twice}' is there {times} times; expected every item once"
    if len(row["item_ids"]) != len(row["scores"]):
        return f"{len(row['item_ids'])} item_ids but {len(row['scores'])} scores; expected one score per item"
    if {type(score) for score in row["scores"]} - {float, int}:
        return "scores: holds something that is not a number"
    if not np.isfinite(row["scores"]).all():
        return "scores: holds NaN or infinity; whatever ranked this had no numbers to rank by"
    return None


def pairs_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """User and target of every row."""
    return [(row["user_id"], row["target_item_id"]) for row in rows]


def check_means(path: Path, metrics: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
    """Refuse a ``metrics.json`` that is not of these rows."""
    for key in KEYS:
        if key in metrics and abs(values[key].mean() - metrics[key]) > 1e-9:
            raise UserError(
                f"{path}: metrics.json says {key} {metrics[key]:.6f}, predictions.jsonl gives {values[key].mean():.6f}; "
                "one of them is of another run, make the ranking again"
            )


def expected_rows(data: Path, split: str) -> tuple[set[str], list[tuple[str, str]]]:
    """The catalogue of a data directory and the (user, target) pairs of one split."""
    import pandas as pd

    items = pd.read_parquet(data / "items.parquet", columns=["item_id"])["item_id"]
    rows = pd.read_parquet(data / "interactions.parquet", columns=["user_id", "item_id", "split"])
    targets = rows[
        (rows["split"] == split) & (rows.groupby("user_id").cumcount() > 0)
    ]  # a user's first item has no history
    return set(items), list(zip(targets["user_id"], targets["item_id"], strict=True))


def check_items(file: Path, rows: Sequence[Mapping[str, Any]], items: set[str]) -> None:
    """Refuse ids that the catalogue does not have."""
    for number, row in enumerate(rows, start=1):
        unknown = [item for item in (row["target_item_id"], *row["item_ids"]) if item not in items]
        if unknown:
            raise UserError(
                f"{file}:{number}: item '{unknown[0]}' is not in the catalogue of {len(items):,} items; "
                "this ranking is of another catalogue"
            )


def check_rows(
    file: Path, found: Sequence[tuple[str, str]], expected: Sequence[tuple[str, str]], whose: str
) -> None:
    """Refuse rows that are missing, too many, or of another split."""
    have, want = Counter(found), Counter(expected)
    for (user, target), times in have.items():
        if times > want[user, target]:
            raise UserError(
                f"{file}: user '{user}' with target '{target}' is there {times} times, in {whose} {want[user, target]} times "
                f"({len(found):,} rows here, {len(expected):,} there)"
            )
    for user, target in want - have:
        raise UserError(
            f"{file}: user '{user}' with target '{target}' is missing; it has {len(found):,} of the {len(expected):,} rows "
            f"of {whose}"
        )


def check_comparable(rankings: Sequence[Ranking]) -> None:
    """Refuse rankings of different splits, data or rows; the first sets what is expected.

    Raises:
        UserError: naming what differs between which two.
    """
    first = rankings[0]
    for other in rankings[1:]:
        if other.metrics["split"] != first.metrics["split"]:
            raise UserError(
                f"{other.path}: ranks the {other.metrics['split']} split, {first.path} the {first.metrics['split']} split; "
                "compare rankings of the same split"
            )
        ours, theirs = (
            artifacts.read_manifest(ranking.data)["files"] if ranking.data else {}
            for ranking in (first, other)
        )
        for name in ("items.parquet", "interactions.parquet"):
            if ours and theirs and ours[name]["sha256"] != theirs[name]["sha256"]:
                raise UserError(
                    f"{other.path}: was made from other data than {first.path}: {name} of {other.data} has sha256 "
                    f"{theirs[name]['sha256'][:12]}, of {first.data} {ours[name]['sha256'][:12]}"
                )
        check_rows(other.path / "predictions.jsonl", other.pairs, first.pairs, str(first.path))


def check_metrics(keys: Sequence[str], methods: Sequence[Method]) -> list[str]:
    """The metrics to compare on.

    Raises:
        UserError: one is unknown, or was not measured because a list is shorter.
    """
    for key in keys:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            raise UserError(
                f"--metric: got '{key}', expected some of {', '.join(KEYS)}"
                + (f"; did you mean '{near[0]}'?" if near else "")
            )
        for ranking in (ranking for method in methods for ranking in method.rankings):
            if key not in ranking.item_level:
                raise UserError(
                    f"{ranking.path}: has no {key}, its lists hold {ranking.longest} items; rank again with a larger "
                    "evaluate.num_beams, or pass another --metric"
                )
    return list(dict.fromkeys(keys))


def find_reference(name: str | None, methods: Sequence[Method]) -> Method:
    """The method that the others are compared with.

    Raises:
        UserError: there is none of that name.
    """
    names = [method.name for method in methods]
    if name is not None and name not in names:
        raise UserError(f"--to: got '{name}', expected one of {', '.join(names)}")
    return methods[names.index(name) if name is not None else 0]


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def compared(
    methods: Sequence[Method], reference: Method, keys: Sequence[str], samples: int
) -> dict[str, Any]:
    """What is printed and written: per method its means, deviations and intervals, and the differences to the reference."""
    users = [user for user, _ in reference.rankings[0].pairs]
    figures: dict[str, Any] = {
        "split": reference.rankings[0].metrics["split"],
        "rows": len(users),
        "users": len(set(users)),
        "reference": reference.name,
        "samples": samples,
        "methods": {},
        "differences": [],
        "notes": notes_on(methods),
    }
    for method in methods:
        shown = {
            key: values for key, values in method.values.items() if key in (*TABLE_KEYS, *keys)
        }
        figures["methods"][method.name] = {
            "seeds": len(method.rankings),
            "paths": [str(ranking.path) for ranking in method.rankings],
            **{key: float(values.mean()) for key, values in shown.items()},
            "deviations": {key: method.deviation(key) for key in shown}
            if len(method.rankings) > 1
            else {},
            "intervals": bootstrap_intervals(shown, users, samples, seed=42),
        }
        if method is not reference:
            a, b = ({key: which.values[key] for key in keys} for which in (reference, method))
            found = paired_difference(a, b, users, samples)
            figures["differences"] += [
                {"method": method.name, "metric": key, **found[key]} for key in keys
            ]
    for row, p in zip(
        figures["differences"],
        holm([row["p_value"] for row in figures["differences"]]),
        strict=True,
    ):
        row |= {"holm_p_value": p, "significant": p < LEVEL}
    return figures


def as_text(figures: Mapping[str, Any]) -> str:
    """The figures as two tables, and what the marks mean."""
    methods, differences = figures["methods"], figures["differences"]
    parts = [
        f"{figures['split']} split: {figures['rows']:,} rows of {figures['users']:,} users",
        metrics_table(methods),
    ]
    deviations = {
        name: method["deviations"] for name, method in methods.items() if method["deviations"]
    }
    if deviations:
        parts.append(
            "standard deviation over seeds\n"
            + aligned(
                [
                    ["", "seeds", *TABLE_KEYS],
                    *(
                        [
                            name,
                            str(methods[name]["seeds"]),
                            *(f"{values[key]:.4f}" if key in values else "-" for key in TABLE_KEYS),
                        ]
                        for name, values in deviations.items()
                    ),
                ]
            )
        )
    lines = [[f"against {figures['reference']}", "", "difference", "95 %", "p", "Holm", ""]]
    for row in differences:
        mark = "" if not row["significant"] else "better *" if row["difference"] > 0 else "worse *"
        lines.append(
            [
                row["method"],
                row["metric"],
                f"{row['difference']:+.4f}",
                "{:+.4f} to {:+.4f}".format(*row["interval"]),
                f"{row['p_value']:.4f}",
                f"{row['holm_p_value']:.4f}",
                mark,
            ]
        )
    parts.append(aligned(lines))
    parts.append(
        f"* p < {LEVEL:g} two-sided, after Holm's correction over these {len(differences)} comparisons. Paired randomisation\n"
        f"test and bootstrap over users, {figures['samples']:,} draws each; of several seeds a row counts by its mean."
    )
    return "\n\n".join(parts + ["\n".join(figures["notes"])] * bool(figures["notes"]))


if __name__ == "__main__":
    with one_line_errors():
        main()
