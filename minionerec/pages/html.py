"""Pieces of the HTML pages: the document with its style sheet, tables, figures, verdicts.

A page stands alone: no scripts, no network, pictures inline; readable on a screen, on a phone and in dark mode. Whoever calls
these escapes what comes from the data, except where a function says that it does.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

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
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); vertical-align: top; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child, .left { text-align: left; }
td.wide { min-width: 15rem; text-align: left; white-space: normal; overflow-wrap: anywhere; }
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
.example { margin: .25rem 0; } .example summary { font-weight: 400; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 0 1.5rem; font-size: .92rem; }
.pair h4 { margin: .4rem 0 .2rem; color: var(--soft); } .pair ol { margin: 0; padding-left: 1.8rem; }
.target { font-weight: 700; color: var(--good); } .target::after { content: " ◂ target"; font-weight: 400; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; padding: .25rem 0; }
code { font-size: .9em; } a { color: inherit; }
"""


def page(title: str, body: str) -> str:
    """A whole document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def figures(values: Mapping[str, str]) -> str:
    """What one looks for first: a card per name and value."""
    cards = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in values.items()
    )
    return f'<dl class="figures">{cards}</dl>'


def sid_figures(report: dict[str, Any]) -> str:
    """What one looks for first in the ``report.json`` of stage 1."""
    before, after, first = (
        report["collisions"]["before"],
        report["collisions"]["after"],
        report["levels"][0],
    )
    return figures(
        {
            "items": f"{report['items']:,}",
            "distinct SIDs": f"{after['distinct_sids']:,}",
            "collisions": f"{before['collision_rate']:.1%} → {after['collision_rate']:.1%}",
            "level-1 perplexity": f"{first['perplexity']:.0f} of {first['size']}",
            "reconstruction error": f"{report['reconstruction_error'][-1]:.3f}",
        }
    )


def verdict_line(verdict: dict[str, Any]) -> str:
    """The decision in one line."""
    states = {check["state"] for check in verdict["checks"]}
    state = next((name for name in ("bad", "caution") if name in states), "good")
    return f'<p class="verdict {state}">{html.escape(verdict["line"])}</p>'


def checks(verdict: dict[str, Any]) -> str:
    """Every check with what was found, the threshold and what to do."""
    items = "".join(
        f'<li class="{check["state"]}"><span class="sign" aria-label="{check["state"]}">{SIGNS[check["state"]]}</span>'
        f"<span><b>{html.escape(check['name'])}</b>: {html.escape(check['found'])} "
        f"<small>good {html.escape(check['wanted'])}</small>"
        + (
            f'<br><span class="soft">{html.escape(check["advice"])}</span>'
            if check["advice"]
            else ""
        )
        + "</span></li>"
        for check in verdict["checks"]
    )
    return f'<ul class="checks">{items}</ul>'


def table(head: list[str], rows: list[list[str]], wide: tuple[int, ...] = ()) -> str:
    """A table that scrolls sideways where it does not fit. Cells are HTML; the columns ``wide`` hold text."""

    def cell(column: int, text: str) -> str:
        return f'<td class="wide">{text}</td>' if column in wide else f"<td>{text}</td>"

    body = "".join(
        f"<tr>{''.join(cell(column, text) for column, text in enumerate(row))}</tr>" for row in rows
    )
    names = "".join(
        f"<th{' class=left' if column in wide else ''}>{html.escape(name)}</th>"
        for column, name in enumerate(head)
    )
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: float | None, pattern: str = "{:.3f}") -> str:
    """A number as text, three digits unless said otherwise; a dash for what cannot be measured."""
    return "-" if value is None else pattern.format(value)
