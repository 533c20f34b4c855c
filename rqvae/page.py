"""``report.html``: one self-contained page of ``report.json`` (no network, pictures inline), for a screen or a phone.

Everything that comes from the data (titles, ids, names) is escaped.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from rqvae.pictures import Line, chart

SIGNS = {"good": "✓", "caution": "!", "bad": "✗"}
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5c6670; --rule: #d9dee3; --paper: #fff; --card: #f5f7f9;
  --good: #1a7f45; --caution: #9a6700; --bad: #c0362c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1; --rule: #363d45; --paper: #14171a;
  --card: #1e2328; --good: #4cc38a; --caution: #e3b341; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem clamp(.9rem, 3vw, 2rem) 4rem; max-width: 75rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; } p { margin: .35rem 0; max-width: 65ch; } .soft, small { color: var(--soft); }
.verdict { margin: 1rem 0; padding: .75rem 1rem; border-left: .3rem solid; background: var(--card); font-weight: 600; }
.verdict.good { border-color: var(--good); } .verdict.caution { border-color: var(--caution); } .verdict.bad { border-color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0; padding: 0; }
.figures div { background: var(--card); padding: .6rem .8rem; border-radius: .4rem; }
.figures dt { color: var(--soft); font-size: .82rem; } .figures dd { margin: 0; font-size: 1.2rem; font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); vertical-align: top; overflow-wrap: normal; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child, .left { text-align: left; }
td.wide { min-width: 15rem; text-align: left; overflow-wrap: anywhere; }
.checks { list-style: none; padding: 0; margin: 0; display: grid; gap: .3rem; }
.checks li { display: grid; grid-template-columns: 1.6rem 1fr; padding: .35rem 0; border-bottom: 1px solid var(--rule); }
.checks b { font-weight: 600; } .sign { font-weight: 700; } .good .sign { color: var(--good); }
.caution .sign { color: var(--caution); } .bad .sign { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1.5rem; margin: 1rem 0; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: .95rem; } figcaption small { display: block; font-weight: 400; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--rule); } .line { fill: none; stroke-width: 2; stroke: var(--c); } circle { fill: var(--c); }
.line.dashed { stroke-dasharray: 5 4; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; margin: .2rem 0 0; padding: 0; font-size: .85rem; }
.legend li::before { content: ""; display: inline-block; width: 1.1rem; border-top: 3px solid var(--c); margin-right: .4rem;
  vertical-align: .25em; } .legend li.dashed::before { border-top-style: dashed; }
.c0 { --c: #3b76d1; } .c1 { --c: #d9742b; } .c2 { --c: #2a9d63; } .c3 { --c: #a657c8; } .c4 { --c: #c8412f; } .c5 { --c: #8a6d3b; }
.c6 { --c: #d4579c; } .c7 { --c: #6b7785; } .c8 { --c: #a9a21a; } .c9 { --c: #1f9eb3; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; padding: .25rem 0; }
code { font-size: .9em; } a { color: inherit; }
"""


def write_page(path: Path, report: dict[str, Any], name: str) -> None:
    """The page of one report; ``name`` is the experiment's."""
    path.write_text(page(f"Semantic IDs of {name}", report_body(report)), encoding="utf-8")


def page(title: str, body: str) -> str:
    """A whole document."""
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
            f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n")


def report_body(report: dict[str, Any]) -> str:
    """Every section, the decision first."""
    return "\n".join([
        f'<p class="soft">{html.escape(report["method"])}, {" × ".join(map(str, report["codebook_sizes"]))} codes, '
        f'collisions: {html.escape(report["collision"])}</p>',
        verdict_line(report["verdict"]), key_figures(report),
        "<h2>Go or no-go</h2>", checks(report["verdict"]),
        "<h2>Levels</h2>", levels(report), f'<div class="charts">{usage_chart(report)}{error_chart(report)}</div>',
        "<h2>Collisions</h2>", collisions(report),
        "<h2>Meaning of prefixes</h2>",
        "<p>Do items that begin with the same codes belong together? Beside each figure stands the same SIDs dealt to the items at "
        "random, because small groups look pure by chance.</p>",
        meaning(report), f'<div class="charts">{meaning_charts(report)}</div>',
        "<h2>Trie</h2>", fan_out(report), f'<div class="charts">{crowd_chart(report)}</div>',
        "<h2>Largest prefixes</h2>", largest(report["largest_prefixes"]),
        "<h2>Identical listings</h2>", identical(report["duplicate_listings"]),
    ])


# ---------------------------------------------------------------------------------------------------------------------
# Sections


def verdict_line(verdict: dict[str, Any]) -> str:
    """The decision in one line."""
    states = {check["state"] for check in verdict["checks"]}
    state = next((name for name in ("bad", "caution") if name in states), "good")
    return f'<p class="verdict {state}">{html.escape(verdict["line"])}</p>'


def checks(verdict: dict[str, Any]) -> str:
    """Every check with what was found, the threshold and what to do."""
    items = "".join(
        f'<li class="{check["state"]}"><span class="sign" aria-label="{check["state"]}">{SIGNS[check["state"]]}</span>'
        f'<span><b>{html.escape(check["name"])}</b>: {html.escape(check["found"])} '
        f'<small>good {html.escape(check["wanted"])}</small>'
        + (f'<br><span class="soft">{html.escape(check["advice"])}</span>' if check["advice"] else "") + "</span></li>"
        for check in verdict["checks"])
    return f'<ul class="checks">{items}</ul>'


def key_figures(report: dict[str, Any]) -> str:
    """What one looks for first."""
    before, after, first = report["collisions"]["before"], report["collisions"]["after"], report["levels"][0]
    figures = {
        "items": f"{report['items']:,}", "distinct SIDs": f"{after['distinct_sids']:,}",
        "collisions": f"{before['collision_rate']:.1%} → {after['collision_rate']:.1%}",
        "level-1 perplexity": f"{first['perplexity']:.0f} of {first['size']}",
        "reconstruction error": f"{report['reconstruction_error'][-1]:.3f}",
    }
    return '<dl class="figures">' + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items()) + "</dl>"


def levels(report: dict[str, Any]) -> str:
    """Usage of every level's codes, and what is left to say after it."""
    errors = [f"{error:.3f}" for error in report["reconstruction_error"]] + ["-"] * len(report["levels"])
    return table(["level", "codes", "used", "dead", "perplexity", "perplexity / K", "Gini", "largest", "error after"], [
        [str(n + 1), *(f"{row[key]:,}" for key in ("size", "used", "dead")), f"{row['perplexity']:.1f}",
         f"{row['perplexity'] / row['size']:.2f}", f"{row['gini']:.3f}", f"{row['largest']:,}", errors[n]]
        for n, row in enumerate(report["levels"])])


def collisions(report: dict[str, Any]) -> str:
    """Before and after, by items and by interactions."""
    rows = [[name, f"{row['collision_rate']:.2%}", f"{row['collision_rate_by_interactions']:.2%}", f"{row['distinct_sids']:,}",
             f"{row['largest_group']:,}"] for name, row in (("as quantised", report["collisions"]["before"]),
                                                            ("final", report["collisions"]["after"]))]
    moved = report["collisions"]["items_with_another_sid_than_quantised"]
    return (table(["SIDs", "items that share one", "by interactions", "distinct SIDs", "largest group"], rows)
            + f"<p>{moved:,} items ({moved / report['items']:.1%}) have another SID than the quantiser gave them.</p>")


def meaning(report: dict[str, Any]) -> str:
    """Purity and neighbour rate per depth, beside the control."""
    return table(["codes", "prefixes", "category purity", "random", "next item inside", "random"], [
        [str(row["depth"]), f"{row['prefixes']:,}", *(number(row[key]) for key in (
            "category_purity", "category_purity_control", "neighbour_rate", "neighbour_rate_control"))]
        for row in report["prefixes"]])


def fan_out(report: dict[str, Any]) -> str:
    """Children per node."""
    return table(["after codes", "nodes", "children, mean", "median", "most"], [
        [str(row["depth"]), f"{row['nodes']:,}", f"{row['mean']:.1f}", f"{row['median']:g}", f"{row['max']:,}"]
        for row in report["fan_out"]])


def largest(prefixes: list[dict[str, Any]]) -> str:
    """The ten largest prefixes of every depth with titles; the first depth is open."""
    parts = []
    for depth in sorted({row["depth"] for row in prefixes}):
        rows = [[f"<code>{', '.join(map(str, row['prefix']))}</code>", f"{row['items']:,}",
                 "<br>".join(html.escape(title) for title in row["titles"])] for row in prefixes if row["depth"] == depth]
        word = "code" if depth == 1 else "codes"
        parts.append(f'<details{" open" if depth == 1 else ""}><summary>{depth} {word}</summary>'
                     f'{table(["prefix", "items", "some titles"], rows, wide=(2,))}</details>')
    return "".join(parts) or "<p>SIDs of one level have no prefixes.</p>"


def identical(listings: dict[str, Any]) -> str:
    """Items that are listed more than once, and what happens to them."""
    if not listings["groups"]:
        return "<p>No two items have the same text.</p>"
    rows = [[html.escape(group["title"]), "<br>".join(
        f"{html.escape(item)} <code>{', '.join(map(str, sid))}</code>"
        for item, sid in zip(group["item_ids"], group["sids"], strict=True))] for group in listings["first"]]
    shown = f", the first {len(rows)} groups" if len(rows) < listings["groups"] else ""
    return (f"<p>{listings['items']:,} items in {listings['groups']:,} groups have the same text as another{shown}. "
            f"Policy: {html.escape(listings['policy'])}.</p>"
            f"<details><summary>Groups</summary>{table(['title', 'items and SIDs'], rows, wide=(0,))}</details>")


def table(head: list[str], rows: list[list[str]], wide: tuple[int, ...] = ()) -> str:
    """A table that scrolls sideways where it does not fit. Cells are HTML; the columns ``wide`` hold text."""
    def cell(column: int, text: str) -> str:
        return f'<td class="wide">{text}</td>' if column in wide else f"<td>{text}</td>"

    body = "".join(f"<tr>{''.join(cell(column, text) for column, text in enumerate(row))}</tr>" for row in rows)
    names = "".join(f'<th{" class=left" if column in wide else ""}>{html.escape(name)}</th>' for column, name in enumerate(head))
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: float | None) -> str:
    """Three digits, or a dash for what cannot be measured."""
    return "-" if value is None else f"{value:.3f}"


# ---------------------------------------------------------------------------------------------------------------------
# Charts


def usage_chart(report: dict[str, Any]) -> str:
    """Items per code over an even share; a flat line at 1 is an evenly used level."""
    lines = [Line(f"level {n + 1}", *columns(curve), n) for n, curve in enumerate(report["curves"]["usage"])]
    return chart("Use of codes", lines, "share of the codes, most used first", "items of a code / even share (1 is even)", log_y=True)


def error_chart(report: dict[str, Any]) -> str:
    """What is left of the embeddings' variance."""
    errors = report["reconstruction_error"]
    return chart("Reconstruction error", [Line(report["method"], list(range(1, len(errors) + 1)), errors)], "after level",
                 "share of the embeddings' variance that the codes lose", points=True)


def meaning_charts(report: dict[str, Any]) -> str:
    """Purity and neighbour rate per depth."""
    return (depth_chart("Category purity", "category_purity", [("these SIDs", report)])
            + depth_chart("Next item under the same prefix", "neighbour_rate", [("these SIDs", report)]))


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
    lines = [Line(f"{n + 1} code{'s' if n else ''}", *columns(curve), n) for n, curve in enumerate(report["curves"]["crowds"])]
    return chart("Crowding", lines, "items under the same prefix", "share of items with at least as many", log_x=True)


def columns(curve: list[list[float]]) -> tuple[list[float], list[float]]:
    """``[[x, y], ...]`` as two lists."""
    return [x for x, _ in curve], [y for _, y in curve]
