"""``report.html``: one self-contained page of ``report.json``, for a screen or a phone.

Python prepares the texts and numbers; ``minionerec/pages/templates/sid_report.html`` shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from minionerec.pages.charts import Line, chart
from minionerec.pages.html import Table, number, render, sid_figures
from rqvae.report import next_code_line

Report = dict[str, Any]  # the content of report.json
GREY = 7  # colour of the random control
LEVELS_HEAD = (
    "level",
    "codes",
    "used",
    "dead",
    "perplexity",
    "perplexity / K",
    "Gini",
    "largest",
    "error after",
)
COLLISIONS_HEAD = (
    "SIDs",
    "items that share one",
    "by interactions",
    "distinct SIDs",
    "largest group",
)
MEANING_HEAD = ("codes", "prefixes", "category purity", "random", "next item inside", "random")
FAN_OUT_HEAD = ("after codes", "nodes", "children, mean", "median", "most")


def write_page(path: Path, report: Report, name: str) -> None:
    """Write the page of one report; ``name`` is the experiment's."""
    sizes = " × ".join(map(str, report["codebook_sizes"]))
    text = render(
        "sid_report.html",
        title=f"Semantic IDs of {name}",
        made_with=f"{report['method']}, {sizes} codes, collisions: {report['collision']}",
        verdict=report["verdict"],
        figures=sid_figures(report),
        levels=levels(report),
        level_charts=[usage_chart(report), error_chart(report)],
        collisions=collisions(report),
        meaning=meaning(report),
        next_code=next_code_line(report["next_code"]),
        meaning_charts=meaning_charts(report),
        fan_out=fan_out(report),
        trie_charts=[crowd_chart(report)],
        largest=largest(report["largest_prefixes"]),
        identical=identical(report["duplicate_listings"]),
    )
    path.write_text(text, encoding="utf-8")


# -------------------------------------------------------------------------------------------------
# Tables


def levels(report: Report) -> Table:
    """Usage of every level's codes, and what is left to say after it."""
    errors = report["reconstruction_error"]
    rows = []
    for level, usage in enumerate(report["levels"]):
        rows.append(
            [
                str(level + 1),
                f"{usage['size']:,}",
                f"{usage['used']:,}",
                f"{usage['dead']:,}",
                f"{usage['perplexity']:.1f}",
                f"{usage['perplexity'] / usage['size']:.2f}",
                f"{usage['gini']:.3f}",
                f"{usage['largest']:,}",
                number(errors[level] if level < len(errors) else None),
            ]
        )
    return Table(LEVELS_HEAD, rows)


def collisions(report: Report) -> dict[str, Any]:
    """Before and after, by items and by interactions; and how many items were moved."""
    rows = []
    for name, when in (("as quantised", "before"), ("final", "after")):
        rates = report["collisions"][when]
        rows.append(
            [
                name,
                f"{rates['collision_rate']:.2%}",
                f"{rates['collision_rate_by_interactions']:.2%}",
                f"{rates['distinct_sids']:,}",
                f"{rates['largest_group']:,}",
            ]
        )
    moved = report["collisions"]["items_with_another_sid_than_quantised"]
    return {
        "head": COLLISIONS_HEAD,
        "rows": rows,
        "moved": f"{moved:,}",
        "share_moved": f"{moved / report['items']:.1%}",
    }


def meaning(report: Report) -> Table:
    """Purity and neighbour rate per depth, beside the control."""
    rows = []
    for row in report["prefixes"]:
        rows.append(
            [
                str(row["depth"]),
                f"{row['prefixes']:,}",
                number(row["category_purity"]),
                number(row["category_purity_control"]),
                number(row["neighbour_rate"]),
                number(row["neighbour_rate_control"]),
            ]
        )
    return Table(MEANING_HEAD, rows)


def fan_out(report: Report) -> Table:
    """Children per node."""
    rows = []
    for row in report["fan_out"]:
        rows.append(
            [
                str(row["depth"]),
                f"{row['nodes']:,}",
                f"{row['mean']:.1f}",
                f"{row['median']:g}",
                f"{row['max']:,}",
            ]
        )
    return Table(FAN_OUT_HEAD, rows)


def largest(prefixes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ten largest prefixes of every depth with titles."""
    of_depth: dict[int, list[dict[str, Any]]] = {}
    for row in prefixes:
        shown = {
            "codes": joined(row["prefix"]),
            "num_items": f"{row['items']:,}",
            "titles": row["titles"],
        }
        of_depth.setdefault(row["depth"], []).append(shown)
    return [
        {"name": f"{depth} {'code' if depth == 1 else 'codes'}", "prefixes": of_depth[depth]}
        for depth in sorted(of_depth)
    ]


def identical(listings: dict[str, Any]) -> dict[str, Any]:
    """Items that are listed more than once, and what happens to them; empty without any."""
    if not listings["groups"]:
        return {}
    groups = []
    for group in listings["first"]:
        sids = map(joined, group["sids"])
        members = list(zip(group["item_ids"], sids, strict=True))
        groups.append({"title": group["title"], "members": members})
    shown = f", the first {len(groups)} groups" if len(groups) < listings["groups"] else ""
    line = (
        f"{listings['items']:,} items in {listings['groups']:,} groups have the same text "
        f"as another{shown}. Policy: {listings['policy']}."
    )
    return {"line": line, "groups": groups}


def joined(codes: Sequence[int]) -> str:
    """Codes with commas."""
    return ", ".join(map(str, codes))


# -------------------------------------------------------------------------------------------------
# Charts


def usage_chart(report: Report) -> Markup:
    """Items per code over an even share; a flat line at 1 is an evenly used level."""
    lines = []
    for level, curve in enumerate(report["curves"]["usage"]):
        lines.append(Line(f"level {level + 1}", *columns(curve), level))
    return chart(
        "Use of codes",
        lines,
        "share of the codes, most used first",
        "items of a code / even share (1 is even)",
        log_y=True,
    )


def error_chart(report: Report) -> Markup:
    """What is left of the embeddings' variance."""
    errors = report["reconstruction_error"]
    return chart(
        "Reconstruction error",
        [Line(report["method"], range(1, len(errors) + 1), errors)],
        "after level",
        "share of the embeddings' variance that the codes lose",
        points=True,
    )


def meaning_charts(report: Report) -> list[Markup]:
    """Purity and neighbour rate per depth."""
    reports = [("these SIDs", report)]
    return [
        depth_chart("Category purity", "category_purity", reports),
        depth_chart("Next item under the same prefix", "neighbour_rate", reports),
    ]


def depth_chart(title: str, key: str, reports: Sequence[tuple[str, Report]]) -> Markup:
    """A figure per prefix depth for every report; the first one's random control is dashed."""
    lines = []
    for colour, (label, report) in enumerate(reports):
        lines.append(Line(label, *by_depth(report, key), colour))
    control = by_depth(reports[0][1], f"{key}_control")
    lines.append(Line("dealt at random", *control, GREY, dashed=True))
    return chart(title, lines, "codes of the prefix", "share", points=True)


def by_depth(report: Report, key: str) -> tuple[list[float], list[float]]:
    """Depths and figures; empty where it cannot be measured."""
    rows = [row for row in report["prefixes"] if row[key] is not None]
    return [row["depth"] for row in rows], [row[key] for row in rows]


def crowd_chart(report: Report) -> Markup:
    """How crowded prefixes are, from the items' side."""
    lines = []
    for level, curve in enumerate(report["curves"]["crowds"]):
        label = "1 code" if level == 0 else f"{level + 1} codes"
        lines.append(Line(label, *columns(curve), level))
    return chart(
        "Crowding",
        lines,
        "items under the same prefix",
        "share of items with at least as many",
        log_x=True,
    )


def columns(curve: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """``[[x, y], ...]`` as two lists."""
    return [x for x, _ in curve], [y for _, y in curve]
