"""Pages from the templates in ``templates/``: whatever comes from the data is escaped by Jinja.

A page stands alone: no scripts, no network, pictures inline; readable on a screen, on a phone and
in dark mode. Python prepares texts and numbers, the templates hold all markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Environment(
    loader=PackageLoader("minionerec.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values: Any) -> Markup:
    """Fill in one file of ``templates/``.

    Returns:
        HTML. Its type says so: put into another template, it is not escaped again.
    """
    return Markup(TEMPLATES.get_template(template).render(values))  # noqa: S704 (autoescaped)


def number(value: float | None, pattern: str = "{:.3f}") -> str:
    """A number as text, three digits unless said otherwise; a dash for what was not measured.

    >>> number(0.25), number(1234.5, "{:,.1f}"), number(None)
    ('0.250', '1,234.5', '-')
    """
    return "-" if value is None else pattern.format(value)


def sid_figures(report: dict[str, Any]) -> dict[str, str]:
    """What one looks for first in the ``report.json`` of stage 1: name -> value."""
    before = report["collisions"]["before"]
    after = report["collisions"]["after"]
    first = report["levels"][0]
    figures = {
        "items": f"{report['items']:,}",
        "distinct SIDs": f"{after['distinct_sids']:,}",
        "collisions": f"{before['collision_rate']:.1%} → {after['collision_rate']:.1%}",
        "level-1 perplexity": f"{first['perplexity']:.0f} of {first['size']}",
        "reconstruction error": f"{report['reconstruction_error'][-1]:.3f}",
    }
    if report.get("unknown_tokens") is not None:
        figures["tokens unknown to the encoder"] = f"{report['unknown_tokens']:.1%}"
    return figures


class Table(NamedTuple):
    """A table of texts, as ``pieces.html`` shows it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
