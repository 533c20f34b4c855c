"""Several quantisers on the same embeddings, on one page: which to take, before any training.

    python rqvae/compare.py --config configs/quickstart.yaml --methods rqkmeans,rqvae,random

Reads ``runs/<name>/data``; embeds the items unless ``runs/<name>/embeddings`` is there (for several
GPUs run ``bash rqvae/rqvae.sh`` first). Every method gets a committed folder
``runs/<name>/compare/<method>`` with everything that ``runs/<name>/sids`` would hold, and is not
fitted again while settings and embeddings stay the same. The page is
``runs/<name>/compare/compare.html``, its figures are ``compare.json``; the table is printed too.

To go on with a method, set ``sids.method`` to it and run ``bash rqvae/rqvae.sh``: same settings,
same SIDs.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from minionerec.errors import while_importing

    while_importing()

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.choices import QUANTIZERS
from minionerec.experiment.config import read_command_line
from minionerec.experiment.files import timings, write_json
from minionerec.experiment.lineage import is_done
from minionerec.experiment.lock import locked
from minionerec.experiment.problems import did_you_mean
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import stage_path
from minionerec.pages.charts import Line, chart
from minionerec.pages.html import number, render
from rqvae import build_sids, embed_items
from rqvae.page import Report, columns, depth_chart

KNOWN = QUANTIZERS
CONTROL = "random"  # the method that wins nothing
RATES = {  # key of the figures: how it is written; less of each is better
    "collisions before": "{:.1%}",
    "by interactions": "{:.1%}",
    "collisions after": "{:.1%}",
    "re-assigned": "{:.1%}",
    "error": "{:.3f}",
    "seconds": "{:.1f}",
}
NAME_WIDTH = 27  # of the first column in the terminal

Reports = dict[str, Report]  # method -> report.json


class Row(NamedTuple):
    """One row of the table: what it is, a text per method, and what to choose by."""

    name: str
    shown: list[str]
    values: list[float | None] | None  # the largest is best; None: nothing to win


def main() -> None:
    """Embed once, build every method, show them side by side."""
    experiment, flags = read_command_line(__doc__, own=("methods",))
    experiments = with_methods(experiment, flags.get("methods", ""))
    embed_items.main(experiment)
    folder = stage_path(experiment, "compare")
    reports = {method: build(variant, folder / method) for method, variant in experiments.items()}
    write(folder, experiment.name, reports)
    print(text_table(reports))
    print(f"\npage: {folder / 'compare.html'}")
    print(
        "To go on with one: --sids.method METHOD, then bash rqvae/rqvae.sh with the same --config"
    )


def with_methods(experiment: Experiment, names: str) -> dict[str, Experiment]:
    """The experiment once per method of a list with commas.

    Raises:
        UserError: no method, an unknown or repeated one, or one that these settings rule out.
    """
    methods = [name.strip() for name in names.split(",") if name.strip()]
    if not methods:
        raise UserError(
            f"--methods is missing; give methods with commas, out of {', '.join(KNOWN)}"
        )
    problems = []
    for name in dict.fromkeys(methods):
        if name not in KNOWN:
            problems.append(
                f"--methods: got '{name}', expected some of {', '.join(KNOWN)}"
                f"{did_you_mean(name, KNOWN)}"
            )
        if methods.count(name) > 1:
            problems.append(f"--methods: '{name}' is given twice; keep one")
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    variants = {}
    for name in methods:
        try:
            variants[name] = experiment.changed({"sids.method": name})
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return variants


def build(experiment: Experiment, final: Path) -> Report:
    """One method's SIDs, made or found: its ``report.json``, and the seconds that it took."""
    method = experiment.sids.method
    if is_done(experiment, "sids", final):
        print(f"{method}: is there already, from these embeddings with these settings", flush=True)
    else:
        with locked(final):
            report = build_sids.build(experiment, final)
        seconds = sum(report["seconds"].values())
        print(f"{method}: {seconds:.1f} s. {report['verdict']['line']}", flush=True)
    notes = timings(final.parent, final.name)
    took = [note["seconds"] for note in notes if isinstance(note.get("seconds"), dict)]
    report = json.loads((final / "report.json").read_text(encoding="utf-8"))
    return report | {"seconds": took[-1] if took else {}}


def write(folder: Path, name: str, reports: Reports) -> None:
    """``compare.json`` and ``compare.html``, each replaced in one step."""
    all_figures = {method: figures(report) for method, report in reports.items()}
    write_json(folder / ".compare.json", all_figures)
    (folder / ".compare.html").write_text(page(name, reports), encoding="utf-8")
    for file in ("compare.json", "compare.html"):
        os.replace(folder / f".{file}", folder / file)


# -------------------------------------------------------------------------------------------------
# Table


def figures(report: Report) -> dict[str, Any]:
    """What is compared, flat; None where there is nothing to measure."""
    before = report["collisions"]["before"]
    moved = report["collisions"]["items_with_another_sid_than_quantised"]
    found: dict[str, Any] = {
        "go": report["verdict"]["go"],
        "used": [level["used"] for level in report["levels"]],
        "perplexity": [level["perplexity"] for level in report["levels"]],
        "collisions before": before["collision_rate"],
        "by interactions": before["collision_rate_by_interactions"],
        "collisions after": report["collisions"]["after"]["collision_rate"],
        "re-assigned": moved / report["items"],
        "error": report["reconstruction_error"][-1],
        "seconds": round(sum(report["seconds"].values()), 2) or None,
    }
    for depth, row in enumerate(report["prefixes"][:2], 1):
        found[f"category purity, {depth}"] = row["category_purity"]
        found[f"category purity, {depth}, random"] = row["category_purity_control"]
        found[f"next item inside, {depth}"] = row["neighbour_rate"]
        found[f"next item inside, {depth}, random"] = row["neighbour_rate_control"]
    told = report["next_code"]
    found["bits of the next code"] = told and told["bits"]
    return found


def table(reports: Reports) -> list[Row]:
    """All rows."""
    found = [figures(report) for report in reports.values()]
    go = []
    used = []
    for one in found:
        go.append("yes" if one["go"] else "no")
        used.append("/".join(map(str, one["used"])))
    rows = [Row("go", go, None), Row("codes used per level", used, None)]
    most_levels = max(len(one["perplexity"]) for one in found)
    for level in range(most_levels):
        rows.append(perplexity_row(level, found))
    for name, pattern in RATES.items():
        rows.append(rate_row(name, pattern, found))
    for name in found[0]:
        if f"{name}, random" in found[0]:
            rows.append(gain_row(name, found))
    bits = [one["bits of the next code"] for one in found]
    rows.append(Row("bits of the next code", [number(value) for value in bits], bits))
    return rows


def perplexity_row(level: int, found: Sequence[dict[str, Any]]) -> Row:
    """How evenly one level is used; a method may have fewer levels."""
    values = []
    for one in found:
        values.append(one["perplexity"][level] if level < len(one["perplexity"]) else None)
    shown = [number(value, "{:.1f}") for value in values]
    return Row(f"perplexity, level {level + 1}", shown, values)


def rate_row(name: str, pattern: str, found: Sequence[dict[str, Any]]) -> Row:
    """A figure of which less is better."""
    shown = []
    values: list[float | None] = []
    for one in found:
        value = one[name]
        shown.append(number(value, pattern))
        values.append(None if value is None else -value)
    return Row(name, shown, values)


def gain_row(name: str, found: Sequence[dict[str, Any]]) -> Row:
    """A rate beside that of SIDs dealt at random; the share of the way from there to 1 decides."""
    shown = []
    values: list[float | None] = []
    for one in found:
        value = one.get(name)
        control = one.get(f"{name}, random")
        shown.append(f"{number(value)} ({number(control)})")
        if value is None or control is None:
            values.append(None)
        else:
            gain = (value - control) / max(1 - control, 1e-9)
            values.append(gain if gain > 0 else None)  # less than chance is not the best of a row
    return Row(f"{name} (random)", shown, values)


def best_cells(row: Row, methods: Sequence[str]) -> list[int]:
    """Which cells of a row show the best value; none where all are equal, never the control."""
    if row.values is None:
        return []
    rivals = []
    for method, value, cell in zip(methods, row.values, row.shown, strict=True):
        if value is not None and method != CONTROL:
            rivals.append((value, cell))
    if len({value for value, _ in rivals}) < 2:
        return []
    best = max(rivals)[1]  # what reads the same is equally good
    places = []
    for place, (method, cell) in enumerate(zip(methods, row.shown, strict=True)):
        if cell == best and method != CONTROL:
            places.append(place)
    return places


def text_table(reports: Reports) -> str:
    """For the terminal: a row per figure, a column per method."""
    width = max(16, *(len(method) + 2 for method in reports))
    lines = [("", list(reports))]
    lines += [(row.name, row.shown) for row in table(reports)]
    shown = []
    for name, cells in lines:
        columns = "".join(cell.rjust(width) for cell in cells)
        shown.append(name.ljust(NAME_WIDTH) + columns)
    return "\n".join(shown)


# -------------------------------------------------------------------------------------------------
# Page


def page(name: str, reports: Reports) -> str:
    """The table, every method's verdict, and pictures with a line per method."""
    methods = list(reports)
    rows = []
    for row in table(reports):
        rows.append({"name": row.name, "cells": row.shown, "best": best_cells(row, methods)})
    return render(
        "sid_methods.html",
        title=f"Semantic IDs of {name}: {len(reports)} methods",
        num_items=f"{reports[methods[0]]['items']:,}",
        rows=rows,
        verdicts={method: report["verdict"] for method, report in reports.items()},
        pictures=pictures(list(reports.items())),
    )


def pictures(pairs: Sequence[tuple[str, Report]]) -> list[Markup]:
    """Every chart, each with a line per method."""
    return [
        usage_chart(pairs, 0),
        usage_chart(pairs, 1),
        error_chart(pairs),
        crowd_chart(pairs, 0),
        depth_chart("Category purity", "category_purity", pairs),
        depth_chart("Next item under the same prefix", "neighbour_rate", pairs),
    ]


def usage_chart(pairs: Sequence[tuple[str, Report]], level: int) -> Markup:
    """How evenly the codes of one level are used by each method."""
    lines = []
    for colour, (method, report) in enumerate(pairs):
        if level < len(report["levels"]):
            lines.append(Line(method, *columns(report["curves"]["usage"][level]), colour))
    return chart(
        f"Use of the codes of level {level + 1}",
        lines,
        "share of the codes, most used first",
        "items of a code / even share (1 is even)",
        log_y=True,
    )


def error_chart(pairs: Sequence[tuple[str, Report]]) -> Markup:
    """What is left of the embeddings' variance after each level."""
    lines = []
    for colour, (method, report) in enumerate(pairs):
        errors = report["reconstruction_error"]
        lines.append(Line(method, range(1, len(errors) + 1), errors, colour))
    return chart(
        "Reconstruction error",
        lines,
        "after level",
        "share of the embeddings' variance that the codes lose",
        points=True,
    )


def crowd_chart(pairs: Sequence[tuple[str, Report]], depth: int) -> Markup:
    """How crowded the prefixes of one depth are."""
    lines = []
    for colour, (method, report) in enumerate(pairs):
        lines.append(Line(method, *columns(report["curves"]["crowds"][depth]), colour))
    return chart(
        "Crowding of the first code",
        lines,
        "items under the same code",
        "share of items with at least as many",
        log_x=True,
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
