"""``compare.py --page FILE``: a comparison as a page, with its pictures and tables beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from minionerec.errors import UserError
from minionerec.evaluation.comparison import LEVEL, TABLE_KEYS
from minionerec.evaluation.strings import SHOWN as TABLE_STRINGS
from minionerec.pages.charts import Dot, dot_chart
from minionerec.pages.comparison import mark
from minionerec.pages.exports import write_exports
from minionerec.pages.html import Table, number, render
from minionerec.pages.text import FOUR_DIGITS

GREY = 7  # the method that the others are compared with
BLUE = 0
SIGNED = "{:+.4f}"


def write_comparison_page(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the page and, beside it, the folder ``<name>-figures``.

    Args:
        path: an HTML file; an earlier one is replaced.
        figures: what ``comparison.compared`` gives.

    Raises:
        UserError: it cannot be written there.
    """
    text = page(figures)
    try:
        path.write_text(text, encoding="utf-8")
        write_exports(path.with_name(f"{path.stem}-figures"), {"": text})
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(f"--page {path}: cannot be written: {reason}") from error


def page(figures: Mapping[str, Any]) -> str:
    """The page's text."""
    metrics = list(dict.fromkeys(row["metric"] for row in figures["differences"]))
    return render(
        "comparison.html",
        title=f"{len(figures['methods'])} methods on the same {figures['rows']:,} rows",
        figures=figures,
        level=f"{LEVEL:g}",
        means=means(figures["methods"]),
        mean_charts=[mean_chart(figures, key) for key in metrics],
        deviations=deviations(figures["methods"]),
        differences=differences(figures["differences"]),
        difference_charts=[difference_chart(figures, key) for key in metrics],
        slices=slices(figures["slices"]),
        strings=strings(figures.get("strings", {})),
        remarks=[*figures["footnotes"], *figures["notes"]],
    )


def means(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """Every method's means and the interval of its NDCG@10."""
    rows = []
    for name, method in methods.items():
        cells = [number(method.get(key), FOUR_DIGITS) for key in TABLE_KEYS]
        ends = method["intervals"].get("NDCG@10")
        rows.append([name, str(method["seeds"]), *cells, between(ends) if ends else "-"])
    return Table(["", "seeds", *TABLE_KEYS, "NDCG@10, 95 %"], rows)


def deviations(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """The standard deviation over seeds of every method that has several."""
    rows = []
    for name, method in methods.items():
        if method["deviations"]:
            cells = [number(method["deviations"].get(key), FOUR_DIGITS) for key in TABLE_KEYS]
            rows.append([name, str(method["seeds"]), *cells])
    return Table(["", "seeds", *TABLE_KEYS], rows)


def differences(found: Sequence[Mapping[str, Any]]) -> Table:
    """Every difference, its interval and its p-values."""
    rows = []
    for row in found:
        rows.append(
            [
                row["method"],
                row["metric"],
                SIGNED.format(row["difference"]),
                between(row["interval"], SIGNED),
                f"{row['p_value']:.4f}",
                f"{row['holm_p_value']:.4f}",
                mark(row),
            ]
        )
    return Table(["", "metric", "difference", "95 %", "p", "Holm", ""], rows)


def slices(found: Sequence[Mapping[str, Any]]) -> Table:
    """Every method on the rows that can be answered from memory, and on those that cannot."""
    rows = []
    for row in found:
        cells = [row["pair_in_train"], f"{row['rows']:,}", row["metric"], f"{row['mean']:.4f}"]
        if "difference" in row:
            cells += [SIGNED.format(row["difference"]), between(row["interval"], SIGNED)]
        else:
            cells += ["-", "-"]
        rows.append([row["method"], *cells])
    return Table(["", "from memory", "rows", "metric", "mean", "difference", "95 %"], rows)


def strings(found: Mapping[str, Any]) -> Table:
    """Item-level numbers, those by SID string, and by how much the strings flatter."""
    rows = []
    for name, method in found.items():
        for level in ("item", "string", "difference"):
            pattern = SIGNED if level == "difference" else FOUR_DIGITS
            cells = [number(method[level].get(key), pattern) for key in TABLE_STRINGS]
            rows.append([name, level, *cells])
    return Table(["", "counted by", *TABLE_STRINGS], rows)


def mean_chart(figures: Mapping[str, Any], key: str) -> Markup:
    """A method per row; the one that the others are compared with is grey."""
    rows = []
    for name, method in figures["methods"].items():
        ends = method["intervals"].get(key)
        colour = GREY if name == figures["reference"] else BLUE
        around = (ends[0], ends[1]) if ends else None
        rows.append((name, [Dot(method[key], around, colour)]))
    return dot_chart(key, rows, "dot: mean over rows; line: 95 % interval")


def difference_chart(figures: Mapping[str, Any], key: str) -> Markup:
    """A difference per row, with the interval that the paired bootstrap gives."""
    rows = []
    for row in figures["differences"]:
        if row["metric"] == key:
            low, high = row["interval"]
            rows.append((row["method"], [Dot(row["difference"], (low, high), BLUE)]))
    title = f"{key} minus that of {figures['reference']}"
    return dot_chart(title, rows, "dot: mean over rows; line: 95 % interval of the difference")


def between(ends: Sequence[float], pattern: str = FOUR_DIGITS) -> str:
    """An interval as text.

    >>> between([-0.01, 0.02], SIGNED)
    '-0.0100 to +0.0200'
    """
    return f"{pattern.format(ends[0])} to {pattern.format(ends[1])}"
