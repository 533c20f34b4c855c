"""``figures``: a page's pictures as SVG and PDF, its tables as CSV and LaTeX, for talks and papers.

They are read from the page's own text: what is exported is what is shown.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from minionerec.evaluation.metrics import KEYS
from minionerec.evaluation.results import Result
from minionerec.pages.vector import as_svg, pictures, write_pdf

KINDS = ("svg", "pdf", "csv", "tex")
TABLE = re.compile(r'<table id="([^"]+)">(.*?)</table>', re.DOTALL)
ROW = re.compile(r"<tr>(.*?)</tr>", re.DOTALL)
CELL = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "†": r"$\dagger$",
    "→": r"$\to$",
    "×": r"$\times$",
}


def write_exports(folder: Path, pages: dict[str, str]) -> None:
    """Write every picture and every table that has a name; what an earlier page left is replaced.

    Args:
        folder: e.g. ``runs/<name>/figures``.
        pages: what begins the file names of a page's pictures and tables -> its text.
    """
    folder.mkdir(exist_ok=True)
    for kind in KINDS:
        for old in folder.glob(f"*.{kind}"):
            old.unlink()
    for start, page in pages.items():
        for name, drawing in pictures(page).items():
            (folder / f"{start}{name}.svg").write_text(as_svg(drawing), encoding="utf-8")
            write_pdf(drawing, folder / f"{start}{name}.pdf")
        for name, rows in tables(page).items():
            (folder / f"{start}{name}.csv").write_text(as_csv(rows), encoding="utf-8")
            (folder / f"{start}{name}.tex").write_text(as_latex(rows), encoding="utf-8")


def tables(page: str) -> dict[str, list[list[str]]]:
    """Name -> rows of texts, the head first, of every table of a page that has a name."""
    found = {}
    for name, inside in TABLE.findall(page):
        rows = []
        for row in ROW.findall(inside):
            rows.append([as_text(cell) for cell in CELL.findall(row)])
        found[name] = rows
    return found


def as_text(cell: str) -> str:
    """What a cell says.

    >>> as_text("<bdi>nuts</bdi><br>bolts &amp; more")
    'nuts; bolts & more'
    """
    return html.unescape(TAG.sub("", cell.strip().replace("<br>", "; ")))


def metrics_csv(found: Sequence[Result]) -> str:
    """Every metric of every method with the ends of its interval, not rounded."""
    rows: list[list[object]] = [["method", "metric", "value", "low", "high"]]
    for result in found:
        for key in KEYS:
            if key in result.metrics:
                ends = result.metrics.get("intervals", {}).get(key, ["", ""])
                rows.append([result.name, key, result.metrics[key], *ends])
    return as_csv(rows)


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """Rows as comma-separated text."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def as_latex(rows: Sequence[Sequence[str]]) -> str:
    r"""A tabular in the style of booktabs, which the document has to load; the first row heads it.

    >>> as_latex([["", "HR@10"], ["item_knn", "0.1"]]).splitlines()[4]
    'item\\_knn & 0.1 \\\\'
    """
    head, *body = rows
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", latex_row(head)]
    lines.append(r"\midrule")
    lines += [latex_row(row) for row in body]
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def latex_row(cells: Sequence[str]) -> str:
    """One line of a tabular, with LaTeX's own characters escaped."""
    escaped = []
    for cell in cells:
        escaped.append("".join(LATEX.get(letter, letter) for letter in cell))
    return " & ".join(escaped) + r" \\"
