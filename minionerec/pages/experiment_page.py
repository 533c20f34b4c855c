"""``runs/<name>/report.html``: one experiment on one page, from its settings to twenty users one can look at.

The page stands alone (no scripts, no network) and shows what is there: a stage that is missing is named with its command.
Whatever is read comes from committed directories that are checked first (``results.py``); whatever comes from the data is escaped.
"""

from __future__ import annotations

import datetime
import html
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minionerec.errors import UserError
from minionerec.evaluation.results import (
    KEYS,
    TITLES,
    Comparison,
    Result,
    best,
    comparisons,
    in_words,
)
from minionerec.experiment import artifacts
from minionerec.experiment.artifacts import COMMANDS, stage_path
from minionerec.experiment.settings import Experiment
from minionerec.pages.charts import Dot, Line, chart, dot_chart
from minionerec.pages.examples import Example, draw_examples
from minionerec.pages.html import figures, number, page, sid_figures, table, verdict_line
from minionerec.pages.plots import key_series

FILE = "report.html"
SHOWN = ("HR@1", "HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10", "MRR", "coverage@10")
COST = {  # key of metrics.json: what people read, how it is written
    "parameters": ("parameters", "{:,.0f}"),
    "train_seconds": ("seconds of training", "{:,.1f}"),
    "seconds": ("seconds of ranking", "{:,.1f}"),
    "users_per_second": ("users per second", "{:,.1f}"),
    "prompt_tokens_per_user": ("prompt tokens per user", "{:,.1f}"),
    "peak_memory_mb": ("peak memory, MB", "{:,.0f}"),
}
CURVES = {  # chart: what it shows, keys of log.jsonl
    "loss": ("of the rows trained on", ("loss",)),
    "validation": ("of the validation rows ranked while training", ("eval_HR@10", "eval_NDCG@10")),
    "reward": ("mean over completions", ("reward",)),
    "groups with a hit": ("share of prompts", ("groups_with_hit",)),
    "distance to the reference": ("KL per token", ("kl",)),
}
SLICES = {
    "target_popularity": "Popularity of the target in train",
    "history_length": "Items in the history",
    "target_in_history": "Target is in the history",
    "target_repeats_last": "Target is the last item again",
}
ORDER = ("head", "mid", "tail", "cold", "yes", "no")  # of slices that have no number in their name
GREY = 7  # colour of baselines


def write_page(experiment: Experiment, found: Sequence[Result]) -> Path:
    """Write the page, replacing an earlier one in one step; returns its path.

    Raises:
        UserError: the disk is full or not writable; an earlier page is then still there.
    """
    path = stage_path(experiment, FILE)
    staging = path.with_name(f".{FILE}")
    text = page(f"Experiment {experiment.name}", body(experiment, found))
    try:
        staging.write_text(text, encoding="utf-8")
        artifacts.fsync(staging)
        os.replace(staging, path)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written: {os.strerror(error.errno)}; make room there, then run again"
        ) from error
    return path


def body(experiment: Experiment, found: Sequence[Result]) -> str:
    """Every section that there is something for, the answer first."""
    compared = comparisons(found, experiment)
    sections = {
        "Results": results_section(found, experiment),
        "Paired differences": comparison_section(compared, found),
        "Slices": slices_section(found),
        "Examples": examples_section(experiment, found),
        "Training": training_section(experiment),
        "Semantic IDs": sids_section(experiment),
        "Data": data_section(experiment),
        "Cost": cost_section(found),
        "Pipeline": pipeline_section(experiment),
        "Not there yet": missing_section(experiment, found),
    }
    return headline(compared, found) + "".join(
        f"<h2>{name}</h2>\n{text}\n" for name, text in sections.items() if text
    )


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def headline(compared: Sequence[Comparison], found: Sequence[Result]) -> str:
    """The best checkpoint against the best baseline, in one line."""
    model, baseline = (
        best([r for r in found if not r.is_baseline]),
        best([r for r in found if r.is_baseline]),
    )
    rival = next(
        (
            c
            for c in compared
            if model and baseline and (c.name, c.against) == (model.name, baseline.name)
        ),
        None,
    )
    if rival is None or "NDCG@10" not in rival.figures:
        word = (
            "no checkpoint is evaluated yet"
            if model is None
            else "there is no baseline to compare with"
        )
        return verdict_line({"line": f"Nothing to judge: {word}", "checks": [{"state": "caution"}]})
    judged, state = rival.figures["NDCG@10"], {"better": "good", "worse": "bad"}
    words = in_words(judged)
    line = (
        f"{rival.name} against {rival.against}, the best baseline: {words} (NDCG@10 {judged['b']:.4f} against {judged['a']:.4f}, "
        f"difference {signed(judged)})"
    )
    return verdict_line({"line": line, "checks": [{"state": state.get(words, "caution")}]})


def results_section(found: Sequence[Result], experiment: Experiment) -> str:
    """Every metric of every method, and the two that are looked at first with their intervals."""
    rows = [
        [
            html.escape(r.name),
            *(number(r.metrics.get(key), "{:.4f}") for key in SHOWN),
            between(r.metrics, "NDCG@10"),
        ]
        for r in found
    ]
    charts = "".join(
        dot_chart(
            key,
            [
                (r.name, [Dot(r.metrics[key], interval(r.metrics, key), colours(found)[r.name])])
                for r in found
                if key in r.metrics
            ],
            "dot: mean over test rows; line: 95 % interval",
        )
        for key in KEYS
    )
    rows_ranked, users = (found[0].metrics[key] for key in ("num_rows", "num_users"))
    return (
        f"<p>{rows_ranked:,} test rows of {users:,} users, ranked over the full catalogue. Numbers count items: a SID that several "
        "items share counts in expectation. Intervals are of the bootstrap over users; that two overlap does not mean that two methods "
        "are equal, see the paired "
        f"differences below. One seed ({experiment.seed}): how much another seed would change is in none of the intervals.</p>"
        + table(["", *SHOWN, "NDCG@10, 95 %"], rows)
        + f'<div class="charts">{charts}</div>'
    )


def comparison_section(compared: Sequence[Comparison], found: Sequence[Result]) -> str:
    """Paired differences with interval, p-value and a word."""
    rows = [
        [
            html.escape(f"{c.name} against {c.against}"),
            key,
            in_words(judged),
            f"{judged['difference']:+.4f}",
            signed(judged, interval_only=True),
            f"{judged['p_value']:.4f}",
        ]
        for c in compared
        for key, judged in c.figures.items()
    ]
    if not rows:
        return ""
    baselines = sum(r.is_baseline for r in found)
    return (
        f"<p>Row by row on the same test rows. The best baseline is the one of {baselines} with the highest NDCG@10 on these very "
        "rows, which favours it. Better or worse is what the 95 % bootstrap interval over users says; p is of the two-sided paired "
        "randomisation test.</p>" + table(["", "metric", "is", "difference", "95 %", "p"], rows)
    )


def slices_section(found: Sequence[Result]) -> str:
    """Small multiples: NDCG@10 of the best baseline and of every checkpoint per slice, with the number of rows."""
    shown = [
        r
        for r in (
            best([r for r in found if r.is_baseline]),
            *(r for r in found if not r.is_baseline),
        )
        if r
    ]
    hue = colours(found)
    charts = ""
    for kind, title in SLICES.items():
        slices = [(r, r.metrics.get("slices", {}).get(kind, {})) for r in shown]
        counts = {
            name: values["count"] for _, of_kind in slices for name, values in of_kind.items()
        }
        rows = [
            (
                f"{name} ({counts[name]:,})",
                [
                    Dot(of_kind[name]["NDCG@10"], None, hue[r.name])
                    for r, of_kind in slices
                    if "NDCG@10" in of_kind.get(name, {})
                ],
            )
            for name in sorted(counts, key=slice_order)
        ]
        charts += dot_chart(
            title, rows, "NDCG@10 (number of rows)", [(r.name, hue[r.name]) for r in shown]
        )
    note = (
        "<p>Slices have no intervals here: differences in slices of few rows are mostly chance.</p>"
    )
    return f'{note}<div class="charts">{charts}</div>' if charts else ""


def slice_order(name: str) -> tuple[int, str]:
    """head before tail, yes before no, 2-4 before 10+."""
    return (ORDER.index(name) if name in ORDER else int(name.split("-")[0].rstrip("+")), name)


def cost_section(found: Sequence[Result]) -> str:
    """What each row of the table took."""
    rows = [
        [
            html.escape(r.name),
            *(
                number(r.metrics.get("cost", {}).get(key), pattern)
                for key, (_, pattern) in COST.items()
            ),
        ]
        for r in found
    ]
    return (
        "<p>Times and memory are those of the machine that did it; a dash was not measured.</p>"
        + table(["", *(label for label, _ in COST.values())], rows)
    )


def colours(found: Sequence[Result]) -> dict[str, int]:
    """Grey for baselines, a colour of its own for every checkpoint."""
    models = [r.name for r in found if not r.is_baseline]
    hues = [colour for colour in range(10) if colour != GREY]
    return {
        r.name: GREY if r.is_baseline else hues[models.index(r.name) % len(hues)] for r in found
    }


def interval(metrics: dict[str, Any], key: str) -> tuple[float, float] | None:
    """The interval of a metric where there is one."""
    return tuple(metrics["intervals"][key]) if key in metrics.get("intervals", {}) else None


def between(metrics: dict[str, Any], key: str) -> str:
    """The same as text."""
    ends = interval(metrics, key)
    return "-" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def signed(judged: dict[str, Any], interval_only: bool = False) -> str:
    """A paired difference and its interval."""
    low, high = judged["interval"]
    return (
        f"{low:+.4f} to {high:+.4f}"
        if interval_only
        else f"{judged['difference']:+.4f}, 95 % {low:+.4f} to {high:+.4f}, one seed"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Examples


def examples_section(experiment: Experiment, found: Sequence[Result]) -> str:
    """Users one can look at: history, first ten, where the target is."""
    chosen = best([r for r in found if not r.is_baseline]) or best(found)
    if chosen is None or not chosen.predictions or not stage_path(experiment, "data").exists():
        return ""
    how, examples = draw_examples(
        chosen,
        artifacts.require_stage(experiment, "data"),
        experiment.data.max_history,
        experiment.seed,
    )
    return f"<p>{html.escape(how)}</p>" + "".join(
        example_card(example, n == 0) for n, example in enumerate(examples)
    )


def example_card(example: Example, is_open: bool) -> str:
    """One user, folded."""
    history = "".join(f"<li>{html.escape(title)}</li>" for title in example.history)
    ranked = "".join(
        f"<li{' class=target' if place == example.shown_at else ''}>{html.escape(title)}</li>"
        for place, title in enumerate(example.first_titles)
    )
    return (
        f'<details class="example"{" open" if is_open else ""}>'
        f"<summary><b>{html.escape(example.rank)}</b>: {html.escape(example.target)}</summary>"
        f'<div class="pair"><div><h4>history of {html.escape(example.user_id)}, latest last</h4><ol>{history}</ol></div>'
        f"<div><h4>recommended</h4><ol>{ranked}</ol></div></div></details>"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Stages


def training_section(experiment: Experiment) -> str:
    """Curves of SFT and RL, and the step whose weights were handed on."""
    text = ""
    for stage, title in TITLES.items():
        if stage_path(experiment, stage).exists():
            file = artifacts.require_stage(experiment, stage) / "log.jsonl"
            log = (
                [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
                if file.is_file()
                else []
            )
            charts = "".join(
                chart(
                    f"{title}: {name}",
                    [
                        Line(key.removeprefix("eval_"), *map(list, zip(*points, strict=True)), n)
                        for n, key in enumerate(keys)
                        if (points := key_series(log, key))
                    ],
                    "optimiser step",
                    caption,
                )
                for name, (caption, keys) in CURVES.items()
            )
            text += (
                f'<p>{best_step(title, log)}</p><div class="charts">{charts}</div>'
                if charts
                else ""
            )
    return text


def best_step(title: str, log: Sequence[dict[str, Any]]) -> str:
    """Where a run was best on validation rows."""
    points = key_series(log, "eval_NDCG@10")
    if not points:
        return f"{title}: no validation was logged."
    step, value = max(points, key=lambda point: point[1])
    last = max(row["step"] for row in log if "step" in row)
    return f"{title}: best validation NDCG@10 {value:.4f} at step {step:,} of {last:,}."


def sids_section(experiment: Experiment) -> str:
    """The essentials of stage 1's report, which has a page of its own."""
    if not stage_path(experiment, "sids").exists():
        return ""
    file = artifacts.require_stage(experiment, "sids") / "report.json"
    report = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    link = (
        f'<p><a href="sids/{FILE}">The whole report of stage 1</a></p>'
        if file.with_name(FILE).is_file()
        else ""
    )
    return (
        verdict_line(report["verdict"]) + sid_figures(report) if "verdict" in report else ""
    ) + link


def data_section(experiment: Experiment) -> str:
    """Counts of ``stats.json``, and what the audit found."""
    path = stage_path(experiment, "data")
    if not path.exists():
        return ""
    stats = json.loads(
        (artifacts.require_stage(experiment, "data") / "stats.json").read_text(encoding="utf-8")
    )
    days = [
        datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%d")
        for second in stats["time_range"]
    ]
    cards = {
        **{name: f"{stats[name]:,}" for name in ("users", "items", "interactions")},
        "repeats": f"{stats['repeat_rate']:.1%}",
        "split": stats["split"],
        "from": days[0],
        "to": days[1],
    }
    rows = [
        [
            name,
            f"{row['samples']:,}",
            f"{row['users']:,}",
            number(row["history_length"].get("50%"), "{:.0f}"),
            *(
                f"{row[key]:.1%}"
                for key in ("repeat_rate", "target_in_history_rate", "target_seen_in_train_rate")
            ),
            f"{row['cold_targets']:,}",
        ]
        for name, row in stats["splits"].items()
    ]
    dropped = "".join(
        f"<li>{count:,} {html.escape(reason)}</li>"
        for reason, count in stats.get("dropped", {}).items()
        if count
    )
    return (
        figures(cards)
        + table(
            [
                "split",
                "samples",
                "users",
                "history, median",
                "repeats",
                "target in history",
                "target in train",
                "cold targets",
            ],
            rows,
        )
        + (
            f"<details><summary>What was dropped</summary><ul>{dropped}</ul></details>"
            if dropped
            else ""
        )
        + audit_line(experiment)
    )


def audit_line(experiment: Experiment) -> str:
    """The audit in one line; its page has the reasons."""
    if not stage_path(experiment, "audit").exists():
        return ""
    report = json.loads(
        (artifacts.require_stage(experiment, "audit") / "audit.json").read_text(encoding="utf-8")
    )
    return f'<p>Audit: {html.escape(report["line"])}. <a href="audit/audit.html">All checks</a></p>'


def pipeline_section(experiment: Experiment) -> str:
    """Every stage's manifest, folded: settings, commit, versions, what it was made from."""
    text = ""
    for directory in manifests(experiment):
        manifest = artifacts.read_manifest(directory)
        rows = [
            [
                f"<code>{html.escape(key)}</code>",
                html.escape(value if isinstance(value, str) else json.dumps(value)),
            ]
            for key, value in manifest["settings"].items()
        ]
        made_from = ", ".join(
            Path(os.path.normpath(directory / parent)).name for parent in manifest["parents"]
        )
        facts = {
            "commit": manifest["git_commit"],
            "made from": made_from or "-",
            "versions": ", ".join(
                f"{name} {version}" for name, version in manifest["versions"].items()
            ),
        }
        lines = "".join(f"<p>{name}: {html.escape(value)}</p>" for name, value in facts.items())
        name = directory.relative_to(stage_path(experiment, ""))
        text += f"<details><summary>{html.escape(str(name))}</summary>{lines}{table(['setting', 'value'], rows, wide=(1,))}</details>"
    return text


def manifests(experiment: Experiment) -> Iterable[Path]:
    """Committed directories of all stages, in the order in which they are run."""
    for stage in COMMANDS:
        path = stage_path(experiment, stage)
        yield from (
            place
            for place in (path, *sorted(path.glob("[!.]*")))
            if (place / artifacts.MANIFEST).is_file()
        )


def missing_section(experiment: Experiment, found: Sequence[Result]) -> str:
    """What is still to be run, with its command."""
    names = {r.name for r in found}
    missing = [
        f"{stage}: <code>{COMMANDS[stage]}</code>"
        for stage in ("data", "sids", "baselines", "sft", "rl", "audit")
        if not stage_path(experiment, stage).exists()
    ]
    missing += [
        f"test numbers of {title}: <code>{COMMANDS['evaluate']} --evaluate.checkpoint {name}</code>"
        for name, title in TITLES.items()
        if title not in names
    ]
    lines = "".join(f"<li>{line}</li>" for line in missing)
    return f"<ul>{lines}</ul><p>Each with the same --config.</p>" if missing else ""
