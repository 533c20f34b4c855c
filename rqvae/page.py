"""``report.html``: one self-contained page of ``report.json`` (no network, pictures inline), for a screen or a phone.

Everything that comes from the data (titles, ids, names) is escaped.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from minionerec.pages.charts import Line, chart
from minionerec.pages.html import checks, number, page, sid_figures, table, verdict_line


def write_page(path: Path, report: dict[str, Any], name: str) -> None:
    """The page of one report; ``name`` is the experiment's."""
    path.write_text(page(f"Semantic IDs of {name}", report_body(report)), encoding="utf-8")


def report_body(report: dict[str, Any]) -> str:
    """Every section, the decision first."""
    return "\n".join(
        [
            f'<p class="soft">{html.escape(report["method"])}, {" × ".join(map(str, report["codebook_sizes"]))} codes, '
            f"collisions: {html.escape(report['collision'])}</p>",
            verdict_line(report["verdict"]),
            sid_figures(report),
            "<h2>Go or no-go</h2>",
            checks(report["verdict"]),
            "<h2>Levels</h2>",
            levels(report),
            f'<div class="charts">{usage_chart(report)}{error_chart(report)}</div>',
            "<h2>Collisions</h2>",
            collisions(report),
            "<h2>Meaning of prefixes</h2>",
            "<p>Do items that begin with the same codes belong together? Beside each figure stands the same SIDs dealt to the items at "
            "random, because small groups look pure by chance.</p>",
            meaning(report),
            f'<div class="charts">{meaning_charts(report)}</div>',
            "<h2>Trie</h2>",
            fan_out(report),
            f'<div class="charts">{crowd_chart(report)}</div>',
            "<h2>Largest prefixes</h2>",
            largest(report["largest_prefixes"]),
            "<h2>Identical listings</h2>",
            identical(report["duplicate_listings"]),
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def levels(report: dict[str, Any]) -> str:
    """Usage of every level's codes, and what is left to say after it."""
    errors = [f"{error:.3f}" for error in report["reconstruction_error"]] + ["-"] * len(
        report["levels"]
    )
    return table(
        [
            "level",
            "codes",
            "used",
            "dead",
            "perplexity",
            "perplexity / K",
            "Gini",
            "largest",
            "error after",
        ],
        [
            [
                str(n + 1),
                *(f"{row[key]:,}" for key in ("size", "used", "dead")),
                f"{row['perplexity']:.1f}",
                f"{row['perplexity'] / row['size']:.2f}",
                f"{row['gini']:.3f}",
                f"{row['largest']:,}",
                errors[n],
            ]
            for n, row in enumerate(report["levels"])
        ],
    )


def collisions(report: dict[str, Any]) -> str:
    """Before and after, by items and by interactions."""
    rows = [
        [
            name,
            f"{row['collision_rate']:.2%}",
            f"{row['collision_rate_by_interactions']:.2%}",
            f"{row['distinct_sids']:,}",
            f"{row['largest_group']:,}",
        ]
        for name, row in (
            ("as quantised", report["collisions"]["before"]),
            ("final", report["collisions"]["after"]),
        )
    ]
    moved = report["collisions"]["items_with_another_sid_than_quantised"]
    return (
        table(
            ["SIDs", "items that share one", "by interactions", "distinct SIDs", "largest group"],
            rows,
        )
        + f"<p>{moved:,} items ({moved / report['items']:.1%}) have another SID than the quantiser gave them.</p>"
    )


def meaning(report: dict[str, Any]) -> str:
    """Purity and neighbour rate per depth, beside the control."""
    return table(
        ["codes", "prefixes", "category purity", "random", "next item inside", "random"],
        [
            [
                str(row["depth"]),
                f"{row['prefixes']:,}",
                *(
                    number(row[key])
                    for key in (
                        "category_purity",
                        "category_purity_control",
                        "neighbour_rate",
                        "neighbour_rate_control",
                    )
                ),
            ]
            for row in report["prefixes"]
        ],
    )


def fan_out(report: dict[str, Any]) -> str:
    """Children per node."""
    return table(
        ["after codes", "nodes", "children, mean", "median", "most"],
        [
            [
                str(row["depth"]),
                f"{row['nodes']:,}",
                f"{row['mean']:.1f}",
                f"{row['median']:g}",
                f"{row['max']:,}",
            ]
            for row in report["fan_out"]
        ],
    )


def largest(prefixes: list[dict[str, Any]]) -> str:
    """The ten largest prefixes of every depth with titles; the first depth is open."""
    parts = []
    for depth in sorted({row["depth"] for row in prefixes}):
        rows = [
            [
                f"<code>{', '.join(map(str, row['prefix']))}</code>",
                f"{row['items']:,}",
                "<br>".join(html.escape(title) for title in row["titles"]),
            ]
            for row in prefixes
            if row["depth"] == depth
        ]
        word = "code" if depth == 1 else "codes"
        parts.append(
            f"<details{' open' if depth == 1 else ''}><summary>{depth} {word}</summary>"
            f"{table(['prefix', 'items', 'some titles'], rows, wide=(2,))}</details>"
        )
    return "".join(parts) or "<p>SIDs of one level have no prefixes.</p>"


def identical(listings: dict[str, Any]) -> str:
    """Items that are listed more than once, and what happens to them."""
    if not listings["groups"]:
        return "<p>No two items have the same text.</p>"
    rows = [
        [
            html.escape(group["title"]),
            "<br>".join(
                f"{html.escape(item)} <code>{', '.join(map(str, sid))}</code>"
                for item, sid in zip(group["item_ids"], group["sids"], strict=True)
            ),
        ]
        for group in listings["first"]
    ]
    shown = f", the first {len(rows)} groups" if len(rows) < listings["groups"] else ""
    return (
        f"<p>{listings['items']:,} items in {listings['groups']:,} groups have the same text as another{shown}. "
        f"Policy: {html.escape(listings['policy'])}.</p>"
        f"<details><summary>Groups</summary>{table(['title', 'items and SIDs'], rows, wide=(0,))}</details>"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Charts


def usage_chart(report: dict[str, Any]) -> str:
    """Items per code over an even share; a flat line at 1 is an evenly used level."""
    lines = [
        Line(f"level {n + 1}", *columns(curve), n)
        for n, curve in enumerate(report["curves"]["usage"])
    ]
    return chart(
        "Use of codes",
        lines,
        "share of the codes, most used first",
        "items of a code / even share (1 is even)",
        log_y=True,
    )


def error_chart(report: dict[str, Any]) -> str:
    """What is left of the embeddings' variance."""
    errors = report["reconstruction_error"]
    return chart(
        "Reconstruction error",
        [Line(report["method"], list(range(1, len(errors) + 1)), errors)],
        "after level",
        "share of the embeddings' variance that the codes lose",
        points=True,
    )


def meaning_charts(report: dict[str, Any]) -> str:
    """Purity and neighbour rate per depth."""
    return depth_chart(
        "Category purity", "category_purity", [("these SIDs", report)]
    ) + depth_chart("Next item under the same prefix", "neighbour_rate", [("these SIDs", report)])


def depth_chart(title: str, key: str, reports: list[tuple[str, dict[str, Any]]]) -> str:
    """A figure per prefix depth for every report, with the random control of the first one dashed."""
    lines = [Line(label, *by_depth(report, key), n) for n, (label, report) in enumerate(reports)]
    control = Line("dealt at random", *by_depth(reports[0][1], f"{key}_control"), 7, dashed=True)
    return chart(title, [*lines, control], "codes of the prefix", "share", points=True)


def by_depth(report: dict[str, Any], key: str) -> tuple[list[float], list[float]]:
    """Depths and figures; empty where it cannot be measured."""
    rows = [row for row in report["prefixes"] if row[key] is not None]
    return [row["depth"] for row in rows], [row[key] for row in rows]


def crowd_chart(report: dict[str, Any]) -> str:
    """How crowded prefixes are, from the items' side."""
    lines = [
        Line(f"{n + 1} code{'s' if n else ''}", *columns(curve), n)
        for n, curve in enumerate(report["curves"]["crowds"])
    ]
    return chart(
        "Crowding",
        lines,
        "items under the same prefix",
        "share of items with at least as many",
        log_x=True,
    )


def columns(curve: list[list[float]]) -> tuple[list[float], list[float]]:
    """``[[x, y], ...]`` as two lists."""
    return [x for x, _ in curve], [y for _, y in curve]
