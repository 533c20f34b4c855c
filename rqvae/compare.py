"""Several quantisers on the same embeddings, on one page (which method to take, before any language model is trained).

    python rqvae/compare.py --config configs/quickstart.yaml --methods rqkmeans,balanced_rqkmeans,rqvae,random

Reads ``runs/<name>/data``; embeds the items unless ``runs/<name>/embeddings`` is there (for several GPUs run
``bash rqvae/rqvae.sh`` first). Every method gets a committed folder ``runs/<name>/compare/<method>`` with everything that
``runs/<name>/sids`` would hold, and is not fitted again while settings and embeddings stay the same. The page is
``runs/<name>/compare/compare.html``, its figures are ``compare.json``; the table is printed as well.

To go on with a method, set ``sids.method`` to it and run ``bash rqvae/rqvae.sh``: same settings, same SIDs.
"""

from __future__ import annotations

import dataclasses
import html
import json
import os
from pathlib import Path
from typing import Any

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.config import cross_check, read_command_line
from minionerec.experiment.files import timings, write_json
from minionerec.experiment.lineage import is_done
from minionerec.experiment.lock import locked
from minionerec.experiment.settings import Experiment, SidSettings
from minionerec.experiment.stages import stage_path
from minionerec.pages.charts import Line, chart
from minionerec.pages.html import checks, number, page, table, verdict_line
from rqvae import build_sids, embed_items
from rqvae.page import columns, depth_chart

KNOWN = next(field for field in dataclasses.fields(SidSettings) if field.name == "method").metadata[
    "choices"
]


def main() -> None:
    """Embed once, build every method, show them side by side."""
    experiment, flags = read_command_line(__doc__, own=("methods",))
    experiments = with_methods(experiment, flags.get("methods", ""))
    embed_items.main(experiment)
    folder = stage_path(experiment, "compare")
    reports = {method: build(variant, folder / method) for method, variant in experiments.items()}
    write(folder, experiment.name, reports)
    print(text_table(reports))
    print(
        f"\npage: {folder / 'compare.html'}\nTo go on with one: --sids.method METHOD, then bash rqvae/rqvae.sh with the same --config"
    )


def with_methods(experiment: Experiment, names: str) -> dict[str, Experiment]:
    """The experiment once per method of a list with commas.

    Raises:
        UserError: no method, an unknown or repeated one, or one that cannot work with these settings.
    """
    methods = [name.strip() for name in names.split(",") if name.strip()]
    if not methods:
        raise UserError(
            f"--methods is missing; give methods with commas, out of {', '.join(KNOWN)}"
        )
    problems = [
        f"--methods: got '{name}', expected some of {', '.join(KNOWN)}"
        for name in methods
        if name not in KNOWN
    ]
    problems += [
        f"--methods: '{name}' is given twice; keep one"
        for name in dict.fromkeys(methods)
        if methods.count(name) > 1
    ]
    variants = {
        name: dataclasses.replace(
            experiment, sids=dataclasses.replace(experiment.sids, method=name)
        )
        for name in methods
    }
    problems += (
        []
        if problems
        else [problem for variant in variants.values() for problem in cross_check(variant)]
    )
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return variants


def build(experiment: Experiment, final: Path) -> dict[str, Any]:
    """One method's SIDs, made or found; returns its ``report.json`` and the seconds that it took."""
    if is_done(experiment, "sids", final):
        print(
            f"{experiment.sids.method}: is there already, from these embeddings with these settings",
            flush=True,
        )
    else:
        with locked(final):
            report = build_sids.build(experiment, final)
        print(
            f"{experiment.sids.method}: {sum(report['seconds'].values()):.1f} s. {report['verdict']['line']}",
            flush=True,
        )
    took = [row["seconds"] for row in timings(final.parent, final.name)]
    return json.loads((final / "report.json").read_text(encoding="utf-8")) | {
        "seconds": took[-1] if took else {}
    }


def write(folder: Path, name: str, reports: dict[str, dict[str, Any]]) -> None:
    """``compare.json`` and ``compare.html``, each replaced in one step."""
    write_json(
        folder / ".compare.json", {method: figures(report) for method, report in reports.items()}
    )
    (folder / ".compare.html").write_text(
        page(f"Semantic IDs of {name}: {len(reports)} methods", body(reports)), encoding="utf-8"
    )
    for file in ("compare.json", "compare.html"):
        os.replace(folder / f".{file}", folder / file)


# ---------------------------------------------------------------------------------------------------------------------
# Table


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """What is compared, flat; None where there is nothing to measure."""
    levels, before, after = (
        report["levels"],
        report["collisions"]["before"],
        report["collisions"]["after"],
    )
    found = {
        "go": report["verdict"]["go"],
        "used": [level["used"] for level in levels],
        "perplexity": [level["perplexity"] for level in levels],
        "collisions before": before["collision_rate"],
        "by interactions": before["collision_rate_by_interactions"],
        "collisions after": after["collision_rate"],
        "re-assigned": report["collisions"]["items_with_another_sid_than_quantised"]
        / report["items"],
        "error": report["reconstruction_error"][-1],
        "seconds": round(sum(report["seconds"].values()), 2) or None,
    }
    for depth, row in enumerate(report["prefixes"][:2], 1):
        for name, key in (
            ("category purity", "category_purity"),
            ("next item inside", "neighbour_rate"),
        ):
            found[f"{name}, {depth}"], found[f"{name}, {depth}, random"] = (
                row[key],
                row[f"{key}_control"],
            )
    return found


def cells(reports: dict[str, dict[str, Any]]) -> list[tuple[str, list[str], list[float] | None]]:
    """Rows of the table: what it is, a text per method, and numbers of which the largest is best (None: nothing to win)."""
    all_figures = [figures(report) for report in reports.values()]
    rows: list[tuple[str, list[str], list[float] | None]] = [
        ("go", ["yes" if found["go"] else "no" for found in all_figures], None),
        (
            "codes used per level",
            ["/".join(map(str, found["used"])) for found in all_figures],
            None,
        ),
    ]
    for level in range(max(len(found["perplexity"]) for found in all_figures)):
        values = [
            found["perplexity"][level] if level < len(found["perplexity"]) else None
            for found in all_figures
        ]
        rows.append(
            (
                f"perplexity, level {level + 1}",
                [number(value, "{:.1f}") for value in values],
                values,
            )
        )
    for name, pattern in (
        ("collisions before", "{:.1%}"),
        ("by interactions", "{:.1%}"),
        ("collisions after", "{:.1%}"),
        ("re-assigned", "{:.1%}"),
        ("error", "{:.3f}"),
        ("seconds", "{:.1f}"),
    ):
        values = [found[name] for found in all_figures]
        rows.append(
            (
                name,
                [number(value, pattern) for value in values],
                [None if value is None else -value for value in values],
            )
        )
    for name in (key for key in all_figures[0] if f"{key}, random" in all_figures[0]):
        pairs = [(found.get(name), found.get(f"{name}, random")) for found in all_figures]
        shown = [
            f"{number(value, '{:.3f}')} ({number(control, '{:.3f}')})" for value, control in pairs
        ]
        rows.append(
            (
                f"{name} (random)",
                shown,
                [
                    None if value is None else (value - control) / max(1 - control, 1e-9)
                    for value, control in pairs
                ],
            )
        )
    return rows


def text_table(reports: dict[str, dict[str, Any]]) -> str:
    """For the terminal: a row per figure, a column per method."""
    width = max(16, *(len(method) + 2 for method in reports))
    lines = [f"{'':<27}" + "".join(f"{method:>{width}}" for method in reports)]
    return "\n".join(
        lines
        + [
            f"{name:<27}" + "".join(f"{shown:>{width}}" for shown in row)
            for name, row, _ in cells(reports)
        ]
    )


def html_table(reports: dict[str, dict[str, Any]]) -> str:
    """The same for the page; the best of each row is bold, the control ``random`` excepted."""
    rows = []
    for name, shown, values in cells(reports):
        rivals = [
            (value, cell)
            for method, value, cell in zip(
                reports, values or [None] * len(shown), shown, strict=True
            )
            if value is not None and method != "random"
        ]
        best = max(rivals)[1] if len({value for value, _ in rivals}) > 1 else None
        bold = [
            cell == best and method != "random" for method, cell in zip(reports, shown, strict=True)
        ]
        rows.append(
            [
                html.escape(name),
                *(
                    f"<b>{html.escape(cell)}</b>" if strong else html.escape(cell)
                    for cell, strong in zip(shown, bold, strict=True)
                ),
            ]
        )
    links = [f'<a href="{html.escape(method)}/report.html">full report</a>' for method in reports]
    return table(["", *reports], [*rows, ["", *links]])


# ---------------------------------------------------------------------------------------------------------------------
# Page


def body(reports: dict[str, dict[str, Any]]) -> str:
    """The table, pictures with a line per method, and every method's verdict."""
    first = next(iter(reports.values()))
    pairs = list(reports.items())
    charts = "".join(
        [
            usage_chart(pairs, 0),
            usage_chart(pairs, 1),
            error_chart(pairs),
            crowd_chart(pairs, 0),
            depth_chart("Category purity", "category_purity", pairs),
            depth_chart("Next item under the same prefix", "neighbour_rate", pairs),
        ]
    )
    verdicts = "".join(
        f"<h3>{html.escape(method)}</h3>{verdict_line(report['verdict'])}"
        f"<details><summary>All checks</summary>{checks(report['verdict'])}</details>"
        for method, report in pairs
    )
    return "\n".join(
        [
            f'<p class="soft">{first["items"]:,} items, the same embeddings for all. Bold is best of its row; "random" is a control and left '
            "out. In brackets: the same SIDs dealt to the items at random; the gain over that decides.</p>",
            html_table(reports),
            verdicts,
            "<h2>Pictures</h2>",
            f'<div class="charts">{charts}</div>',
        ]
    )


def usage_chart(pairs: list[tuple[str, dict[str, Any]]], level: int) -> str:
    """How evenly the codes of one level are used by each method."""
    lines = [
        Line(method, *columns(report["curves"]["usage"][level]), n)
        for n, (method, report) in enumerate(pairs)
        if level < len(report["levels"])
    ]
    return chart(
        f"Use of the codes of level {level + 1}",
        lines,
        "share of the codes, most used first",
        "items of a code / even share (1 is even)",
        log_y=True,
    )


def error_chart(pairs: list[tuple[str, dict[str, Any]]]) -> str:
    """What is left of the embeddings' variance after each level."""
    lines = [
        Line(
            method,
            list(range(1, len(report["reconstruction_error"]) + 1)),
            report["reconstruction_error"],
            n,
        )
        for n, (method, report) in enumerate(pairs)
    ]
    return chart(
        "Reconstruction error",
        lines,
        "after level",
        "share of the embeddings' variance that the codes lose",
        points=True,
    )


def crowd_chart(pairs: list[tuple[str, dict[str, Any]]], depth: int) -> str:
    """How crowded the prefixes of one depth are."""
    lines = [
        Line(method, *columns(report["curves"]["crowds"][depth]), n)
        for n, (method, report) in enumerate(pairs)
    ]
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
