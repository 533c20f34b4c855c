"""``runs/<name>/figures``: the page's pictures as SVG, its tables as CSV and LaTeX.

Colours and letters are those of the page on white paper; a picture's legend stands below it.
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

FIGURE = re.compile(
    r"<figure>\s*<figcaption>(.*?)<small>.*?(<svg .*?</svg>)(.*?)</figure>", re.DOTALL
)
VIEW = re.compile(r'viewBox="0 0 (\d+) ([\d.]+)"')
ENTRY = re.compile(r'<li class="([^"]*)"><bdi>(.*?)</bdi></li>')
DARK = re.compile(r"@media \(prefers-color-scheme: dark\) \{.*?\} \}", re.DOTALL)
STYLE = Path(__file__).parent / "templates" / "style.css"
LEGEND_ROW = 18  # SVG units
LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "†": r"$\dagger$"}


def write_exports(
    folder: Path,
    page: str,
    found: Sequence[Result],
    tables: dict[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
) -> None:
    """Write every picture of a page and its tables; what an earlier page left is replaced.

    Args:
        folder: ``runs/<name>/figures``.
        page: the page's text.
        found: the results, for a table of every metric in full.
        tables: name -> head and rows as people read them.
    """
    folder.mkdir(exist_ok=True)
    for old in [*folder.glob("*.svg"), *folder.glob("*.csv"), *folder.glob("*.tex")]:
        old.unlink()
    for name, text in pictures(page).items():
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")
    (folder / "metrics.csv").write_text(metrics_csv(found), encoding="utf-8")
    for name, (head, rows) in tables.items():
        (folder / f"{name}.csv").write_text(as_csv([head, *rows]), encoding="utf-8")
        (folder / f"{name}.tex").write_text(as_latex(head, rows), encoding="utf-8")


def pictures(page: str) -> dict[str, str]:
    """File name -> SVG of every picture of a page, in the page's order."""
    style = DARK.sub("", STYLE.read_text(encoding="utf-8")).replace("light dark", "light")
    found = {}
    for number, (title, drawing, rest) in enumerate(FIGURE.findall(page), 1):
        words = re.sub(r"[^\w@]+", "-", html.unescape(title)).strip("-").lower()
        entries = ENTRY.findall(rest)
        view = VIEW.search(drawing)
        if view is None:
            continue
        width, height = int(view[1]), float(view[2])
        lines = [f"<style>{style}</style>"]
        for row, (classes, label) in enumerate(entries):
            y = height + LEGEND_ROW * (row + 0.5)
            lines.append(f'<circle class="{classes}" cx="8" cy="{y:g}" r="4"/>')
            lines.append(f'<text x="18" y="{y + 4:g}">{label}</text>')
        tall = height + LEGEND_ROW * len(entries)
        inside = drawing.partition(">")[2].removesuffix("</svg>")
        found[f"{number:02d}-{words}"] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall:g}" '
            f'width="{2 * width}" height="{2 * tall:g}">\n' + "\n".join(lines) + inside + "</svg>\n"
        )
    return found


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


def as_latex(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""A tabular in the style of booktabs, which the document has to load.

    >>> as_latex(["", "HR@10"], [["item_knn", "0.1"]]).splitlines()[4]
    'item\\_knn & 0.1 \\\\'
    """
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", latex_row(head)]
    lines.append(r"\midrule")
    lines += [latex_row(row) for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def latex_row(cells: Sequence[str]) -> str:
    """One line of a tabular, with LaTeX's own characters escaped."""
    escaped = []
    for cell in cells:
        escaped.append("".join(LATEX.get(letter, letter) for letter in cell))
    return " & ".join(escaped) + r" \\"
