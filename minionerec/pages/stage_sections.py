"""The parts of an experiment's page that are about its stages: what the templates show of them."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from minionerec.evaluation.results import TITLES, Result
from minionerec.experiment.lineage import require_stage
from minionerec.experiment.manifest import MANIFEST, read_manifest
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import COMMANDS, stage_path
from minionerec.pages.charts import Line, chart
from minionerec.pages.html import number, sid_figures
from minionerec.pages.series import key_series
from minionerec.pages.sid_pictures import sid_pictures

CURVES = {  # chart: what it shows, keys of log.jsonl
    "loss": ("of the rows trained on", ("loss",)),
    "validation": ("of the validation rows ranked while training", ("eval_HR@10", "eval_NDCG@10")),
    "reward": ("mean over completions", ("reward",)),
    "groups with a hit": ("share of prompts", ("groups_with_hit",)),
    "groups with signal": ("share of prompts that teach something", ("groups_with_signal",)),
    "distance to the reference": ("KL per token", ("kl",)),
}
# Of RL alone: each with where SFT left off, as a line across
AGAINST_START = {
    "HR@1": ("of the validation rows", "eval_HR@1"),
    "HR@10": ("of the validation rows", "eval_HR@10"),
    "HR@50": ("of the validation rows", "eval_HR@50"),
    "NDCG@10": ("of the validation rows", "eval_NDCG@10"),
    "coverage": ("share of the catalogue among the first 10", "eval_coverage@10"),
}
PARTS = ("data", "sids", "baselines", "sft", "rl", "audit")  # what a whole experiment has
SPLIT_HEAD = (
    "split",
    "samples",
    "users",
    "history, median",
    "repeats",
    "target in history",
    "target in train",
    "cold targets",
)

Log = Sequence[Mapping[str, Any]]


def training(experiment: Experiment) -> list[dict[str, Any]]:
    """Curves of SFT and RL, and the step whose weights were handed on."""
    found = []
    for stage, title in TITLES.items():
        if not stage_path(experiment, stage).exists():
            continue
        log = read_log(require_stage(experiment, stage) / "log.jsonl")
        pictures = [curve(title, name, log) for name in CURVES]
        pictures += [curve_against_start(title, name, log) for name in AGAINST_START]
        if any(pictures):
            found.append({"line": best_step(title, log), "charts": pictures})
    return found


def read_log(file: Path) -> Log:
    """The rows of a stage's ``log.jsonl``; none where there is no such file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def curve(title: str, name: str, log: Log) -> Markup:
    """One picture of a training; "" where nothing of it was logged."""
    caption, keys = CURVES[name]
    lines = []
    for colour, key in enumerate(keys):
        points = key_series(log, key)
        if points:
            steps, values = zip(*points, strict=True)
            lines.append(Line(key.removeprefix("eval_"), steps, values, colour))
    return chart(f"{title}: {name}", lines, "optimiser step", caption)


def curve_against_start(title: str, name: str, log: Log) -> Markup:
    """One metric of the validation rows over the steps of RL, and SFT's as a dashed line.

    "" for a stage that does not start from another model: its log has no step 0.
    """
    caption, key = AGAINST_START[name]
    points = key_series(log, key)
    if not points or points[0][0] != 0:
        return Markup("")
    steps, values = zip(*points, strict=True)
    ends = (steps[0], steps[-1])
    start = (values[0], values[0])
    lines = [
        Line(title, steps, values),
        Line("SFT", ends, start, colour=1, dashed=True),
    ]
    # A hundredth of the value decides here, and from 0 both lines would be one
    caption = f"{caption}; the axis does not begin at 0"
    return chart(f"{title}: {name}", lines, "optimiser step", caption, from_zero=False)


def best_step(title: str, log: Log) -> str:
    """Where a run was best on validation rows; of RL, whether that step was handed on at all."""
    guarded = key_series(log, "eval_guarded_NDCG@10")
    validated = key_series(log, "eval_NDCG@10")
    points = guarded or validated
    if not points:
        return f"{title}: no validation was logged."
    step, value = max(points, key=lambda point: point[1])
    last = max(row["step"] for row in log if "step" in row)
    if not guarded:
        return f"{title}: best validation NDCG@10 {value:.4f} at step {step:,} of {last:,}."
    if not value:
        return (
            f"{title}: no step of {last:,} kept as many hits as rl.guard demands; the SFT weights "
            "are handed on."
        )
    best = f"{title}: best validation NDCG@10 {value:.4f} at step {step:,} of {last:,}"
    # RL's log begins with a validation of the model that it started from
    first, start = validated[0]
    if first == 0 and value <= start:
        return f"{best}, SFT {start:.4f}: the SFT weights are handed on."
    return f"{best}."


def sids(experiment: Experiment) -> dict[str, Any]:
    """The essentials of stage 1's report, which has a page of its own; empty without stage 1."""
    if not stage_path(experiment, "sids").exists():
        return {}
    directory = require_stage(experiment, "sids")
    shown: dict[str, Any] = {"verdict": None, "figures": {}, "page": "", "map": "", "tree": []}
    if (directory / "report.html").is_file():
        shown["page"] = "sids/report.html"
    if (directory / "report.json").is_file():
        report = read_json(directory / "report.json")
        if "verdict" in report:
            shown |= {"verdict": report["verdict"], "figures": sid_figures(report)}
    shown |= sid_pictures(experiment)
    return shown if any(shown.values()) else {}


def data(experiment: Experiment) -> dict[str, Any]:
    """Counts of ``stats.json``, and what the audit found; empty without stage 0."""
    if not stage_path(experiment, "data").exists():
        return {}
    stats = read_json(require_stage(experiment, "data") / "stats.json")
    dropped = []
    for reason, count in stats.get("dropped", {}).items():
        if count:
            dropped.append(f"{count:,} {reason}")
    rows = []
    for name, row in stats["splits"].items():
        rows.append(split_row(name, row))
    return {
        "figures": data_figures(stats),
        "head": SPLIT_HEAD,
        "rows": rows,
        "dropped": dropped,
        "audit": audit_line(experiment),
    }


def data_figures(stats: Mapping[str, Any]) -> dict[str, str]:
    """What one looks for first in the data: name -> value."""
    first, last = stats["time_range"]
    return {
        "users": f"{stats['users']:,}",
        "items": f"{stats['items']:,}",
        "interactions": f"{stats['interactions']:,}",
        "repeats": f"{stats['repeat_rate']:.1%}",
        "split": stats["split"],
        "from": day(first),
        "to": day(last),
    }


def day(second: float) -> str:
    """The UTC day of a Unix time."""
    return datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%d")


def split_row(name: str, row: Mapping[str, Any]) -> list[str]:
    """One split as a row of ``SPLIT_HEAD``."""
    return [
        name,
        f"{row['samples']:,}",
        f"{row['users']:,}",
        number(row["history_length"].get("50%"), "{:.0f}"),
        f"{row['repeat_rate']:.1%}",
        f"{row['target_in_history_rate']:.1%}",
        f"{row['target_seen_in_train_rate']:.1%}",
        f"{row['cold_targets']:,}",
    ]


def audit_line(experiment: Experiment) -> str:
    """The audit in one line, "" where it was not made; its page has the reasons."""
    if not stage_path(experiment, "audit").exists():
        return ""
    return read_json(require_stage(experiment, "audit") / "audit.json")["line"]


def pipeline(experiment: Experiment) -> list[dict[str, Any]]:
    """Every stage's manifest: settings, commit, versions, what it was made from."""
    found = []
    for directory in manifests(experiment):
        manifest = read_manifest(directory)
        versions = [f"{name} {version}" for name, version in manifest["versions"].items()]
        parents = []
        for path in manifest["parents"]:
            parents.append(Path(os.path.normpath(directory / path)).name)
        found.append(
            {
                "name": directory.relative_to(stage_path(experiment, "")),
                "facts": {
                    "commit": manifest["git_commit"],
                    "made from": ", ".join(parents) or "-",
                    "versions": ", ".join(versions),
                },
                "settings": as_texts(manifest["settings"]),
            }
        )
    return found


def manifests(experiment: Experiment) -> Iterator[Path]:
    """Committed directories of all stages, in the order in which they are run."""
    for stage in COMMANDS:
        path = stage_path(experiment, stage)
        for place in (path, *sorted(path.glob("[!.]*"))):
            if (place / MANIFEST).is_file():
                yield place


def missing(experiment: Experiment, found: Sequence[Result]) -> list[tuple[str, str]]:
    """What is still to be run, each with its command."""
    names = {result.name for result in found}
    lacking = []
    for stage in PARTS:
        if not stage_path(experiment, stage).exists():
            lacking.append((stage, COMMANDS[stage]))
    for name, title in TITLES.items():
        if title not in names:
            command = f"{COMMANDS['evaluate']} --evaluate.checkpoint {name}"
            lacking.append((f"test numbers of {title}", command))
    return lacking


def as_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as people read them."""
    texts = {}
    for key, value in settings.items():
        texts[key] = value if isinstance(value, str) else json.dumps(value)
    return texts


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file of a checked directory."""
    return json.loads(file.read_text(encoding="utf-8"))
