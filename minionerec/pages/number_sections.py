"""The parts of an experiment's page that are about its numbers: what the templates show of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from minionerec.evaluation.results import KEYS, Comparison, Result, best, in_words
from minionerec.evaluation.terms import footnotes, marked, terms_of
from minionerec.pages.charts import Dot, dot_chart
from minionerec.pages.html import Table, number

SHOWN = ("HR@1", "HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10", "MRR", "coverage@10")
COST = {  # key of metrics.json: what people read, how it is written
    "parameters": ("parameters", "{:,.0f}"),
    "train_seconds": ("seconds of training", "{:,.1f}"),
    "seconds": ("seconds of ranking", "{:,.1f}"),
    "users_per_second": ("users per second", "{:,.1f}"),
    "prompt_tokens_per_user": ("prompt tokens per user", "{:,.1f}"),
    "peak_memory_mb": ("peak memory, MB", "{:,.0f}"),
}
SLICES = {
    "target_popularity": "Popularity of the target in train",
    "history_length": "Items in the history",
    "target_in_history": "Target is in the history",
    "target_repeats_last": "Target is the last item again",
    "pair_in_train": "Target followed the last item in train",
}
ORDER = ("head", "mid", "tail", "cold", "yes", "no")  # of slices that have no number in their name
CUTOFFS = (1, 3, 5, 10, 20, 50)  # K of HR@K over K
HUES = (0, 1, 2, 3, 4, 5, 6, 8, 9)  # colours of the style sheet for models
GREY = 7  # for baselines
STATES = {"better": "good", "worse": "bad", "no difference shown": "caution"}

Metrics = Mapping[str, Any]


def headline(compared: Sequence[Comparison], found: Sequence[Result]) -> dict[str, Any]:
    """The best checkpoint against the best baseline, as a verdict in one line."""
    model = best_model(found)
    baseline = best_baseline(found)
    if model is None:
        return nothing_to_judge("no checkpoint is evaluated yet")
    if baseline is None:
        return nothing_to_judge("there is no baseline to compare with")
    for comparison in compared:
        pair = (comparison.name, comparison.against)
        if pair == (model.name, baseline.name) and "NDCG@10" in comparison.figures:
            return judged_line(comparison)
    return nothing_to_judge("there is no baseline to compare with")


def nothing_to_judge(why: str) -> dict[str, Any]:
    """A verdict that says what is missing."""
    return {"line": f"Nothing to judge: {why}", "checks": [{"state": "caution"}]}


def judged_line(comparison: Comparison) -> dict[str, Any]:
    """A verdict on a model against a baseline; the interval decides."""
    figures = comparison.figures["NDCG@10"]
    words = in_words(figures)
    line = (
        f"{comparison.name} against {comparison.against}, the best baseline: {words} "
        f"(NDCG@10 {figures['b']:.4f} against {figures['a']:.4f}, "
        f"difference {figures['difference']:+.4f}, 95 % {signed(figures['interval'])}, one seed)"
    )
    return {"line": line, "checks": [{"state": STATES[words]}]}


def results(found: Sequence[Result], seed: int) -> dict[str, Any]:
    """Every metric of every method, and the two that are looked at first with their intervals."""
    rows = []
    terms = {result.name: terms_of(result.directory) for result in found}
    names = marked(terms)
    for result in found:
        cells = [number(result.metrics.get(key), "{:.4f}") for key in SHOWN]
        rows.append([names[result.name], *cells, between(interval(result.metrics, "NDCG@10"))])
    first = found[0].metrics
    return {
        "rows_ranked": f"{first['num_rows']:,}",
        "users": f"{first['num_users']:,}",
        "seed": seed,
        "head": ["", *SHOWN, "NDCG@10, 95 %"],
        "rows": rows,
        "footnotes": footnotes(terms),
        "charts": [*(metric_chart(found, key) for key in KEYS), hit_rate_chart(found)],
    }


def hit_rate_chart(found: Sequence[Result]) -> Markup:
    """HR@K over K of the best baseline and of every checkpoint, each with its interval."""
    shown = worth_comparing(found)
    hues = colours(found)
    rows = []
    for k in CUTOFFS:
        key = f"HR@{k}"
        dots = []
        for result in shown:
            if key in result.metrics:
                dot = Dot(result.metrics[key], interval(result.metrics, key), hues[result.name])
                dots.append(dot)
        if dots:  # lists may be shorter than K
            rows.append((f"first {k}", dots))
    legend = [(result.name, hues[result.name]) for result in shown]
    return dot_chart("HR@K over K", rows, "dot: mean; line: 95 % interval", legend)


def worth_comparing(found: Sequence[Result]) -> list[Result]:
    """The best baseline, then every checkpoint."""
    _, models = by_kind(found)
    baseline = best_baseline(found)
    return [baseline, *models] if baseline is not None else models


def metric_chart(found: Sequence[Result], key: str) -> Markup:
    """A dot with its interval per method that has this metric."""
    hues = colours(found)
    rows = []
    for result in found:
        if key in result.metrics:
            dot = Dot(result.metrics[key], interval(result.metrics, key), hues[result.name])
            rows.append((result.name, [dot]))
    return dot_chart(key, rows, "dot: mean over test rows; line: 95 % interval")


def differences(compared: Sequence[Comparison]) -> list[list[str]]:
    """Paired differences with interval, p-value and a word; a row per pair and metric."""
    rows = []
    for comparison in compared:
        for key, figures in comparison.figures.items():
            rows.append(
                [
                    f"{comparison.name} against {comparison.against}",
                    key,
                    in_words(figures),
                    f"{figures['difference']:+.4f}",
                    signed(figures["interval"]),
                    f"{figures['p_value']:.4f}",
                ]
            )
    return rows


def slice_charts(found: Sequence[Result]) -> list[Markup]:
    """NDCG@10 of the best baseline and of every checkpoint per slice, a picture per kind."""
    shown = worth_comparing(found)
    hues = colours(found)
    pictures = []
    for kind, title in SLICES.items():
        picture = slice_chart(kind, title, shown, hues)
        if picture:
            pictures.append(picture)
    return pictures


def slice_chart(kind: str, title: str, shown: Sequence[Result], hues: Mapping[str, int]) -> Markup:
    """One picture; a slice's name carries its number of rows."""
    counts: dict[str, int] = {}
    dots: dict[str, list[Dot]] = {}
    for result in shown:
        for name, values in result.metrics.get("slices", {}).get(kind, {}).items():
            counts[name] = values["count"]
            dots.setdefault(name, [])
            if "NDCG@10" in values:
                around = result.metrics.get("slice_intervals", {}).get(kind, {}).get(name, {})
                ends = interval({"intervals": around}, "NDCG@10")
                dots[name].append(Dot(values["NDCG@10"], ends, hues[result.name]))
    rows = []
    for name in sorted(dots, key=slice_order):
        rows.append((f"{name} ({counts[name]:,})", dots[name]))
    legend = [(result.name, hues[result.name]) for result in shown]
    return dot_chart(title, rows, "NDCG@10 (number of rows), line: 95 % interval", legend)


def width_chart(found: Sequence[Result]) -> Markup:
    """NDCG@10 of every checkpoint at every number of beams that it was tried with."""
    hues = colours(found)
    shown = [result for result in found if "beam_widths" in result.metrics]
    dots: dict[str, list[Dot]] = {}
    for result in shown:
        for width, figures in result.metrics["beam_widths"]["widths"].items():
            if "NDCG@10" in figures:
                ends = interval(figures, "NDCG@10")
                dots.setdefault(width, []).append(Dot(figures["NDCG@10"], ends, hues[result.name]))
    rows = [(f"{width} beams", of_width) for width, of_width in dots.items()]
    legend = [(result.name, hues[result.name]) for result in shown]
    caption = "NDCG@10 of the same sample of rows, line: 95 % interval"
    return dot_chart("Number of beams", rows, caption, legend)


def slice_order(name: str) -> tuple[int, str]:
    """A sort key: head before tail, yes before no, 2-4 before 10+."""
    if name in ORDER:
        return ORDER.index(name), name
    return int(name.split("-")[0].rstrip("+")), name


def cost(found: Sequence[Result]) -> Table:
    """What each row of the results took."""
    rows = []
    for result in found:
        spent = result.metrics.get("cost", {})
        cells = [number(spent.get(key), pattern) for key, (_, pattern) in COST.items()]
        rows.append([result.name, *cells])
    return Table(["", *(label for label, _ in COST.values())], rows)


def best_model(found: Sequence[Result]) -> Result | None:
    """The checkpoint with the highest NDCG@10, if any is evaluated."""
    _, models = by_kind(found)
    return best(models)


def best_baseline(found: Sequence[Result]) -> Result | None:
    """The baseline with the highest NDCG@10, if there is one."""
    baselines, _ = by_kind(found)
    return best(baselines)


def by_kind(found: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """Baselines and models apart."""
    baselines: list[Result] = []
    models: list[Result] = []
    for result in found:
        (baselines if result.is_baseline else models).append(result)
    return baselines, models


def colours(found: Sequence[Result]) -> dict[str, int]:
    """Grey for baselines, a colour of its own for every checkpoint."""
    hues = {}
    models = 0
    for result in found:
        if result.is_baseline:
            hues[result.name] = GREY
        else:
            hues[result.name] = HUES[models % len(HUES)]
            models += 1
    return hues


def interval(metrics: Metrics, key: str) -> tuple[float, float] | None:
    """The interval of a metric where there is one."""
    ends = metrics.get("intervals", {}).get(key)
    return None if ends is None else (ends[0], ends[1])


def between(ends: tuple[float, float] | None) -> str:
    """An interval as text."""
    return "-" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def signed(ends: Sequence[float]) -> str:
    """An interval of a difference as text.

    >>> signed([-0.01, 0.02])
    '-0.0100 to +0.0200'
    """
    return f"{ends[0]:+.4f} to {ends[1]:+.4f}"
