"""The pictures of a page as drawings of their own, which drawing programs and LaTeX read.

On a page colours come from its style sheet; here every shape carries its own, since most programs
know no variables. A legend stands below its picture. The same drawing gives SVG and PDF.
"""

from __future__ import annotations

import html
import re
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.etree.ElementTree import Element

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

FIGURE = re.compile(
    r"<figure>\s*<figcaption>(.*?)<small>.*?(<svg .*?</svg>)(.*?)</figure>", re.DOTALL
)
ENTRY = re.compile(r'<li class="([^"]*)"><bdi>(.*?)</bdi></li>')
STYLE = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
PALETTE = dict(re.findall(r"\.(c\d) \{ --c: (#\w+); \}", STYLE))
SOFT = re.findall(r"--soft: (#\w+)", STYLE)[0]  # the first is of white paper
RULE = re.findall(r"--rule: (#\w+)", STYLE)[0]
LEGEND_ROW = 18  # SVG units, one of which is a point of the PDF
LETTERS = 9.0  # points; those of matplotlib are wider than the page's 11
STEP = re.compile(r"([MLHV])([^MLHV]*)")


def pictures(page: str) -> dict[str, Element]:
    """File name -> drawing of every picture of a page, in the page's order."""
    found = {}
    for number, (title, drawing, rest) in enumerate(FIGURE.findall(page), 1):
        words = re.sub(r"[^\w@]+", "-", html.unescape(title)).strip("-").lower()
        root = ElementTree.fromstring(drawing)  # noqa: S314 (our own text)
        add_legend(root, ENTRY.findall(rest))
        for element in root.iter():
            paint(element)
        found[f"{number:02d}-{words}"] = root
    return found


def add_legend(root: Element, entries: list[tuple[str, str]]) -> None:
    """Make room below a picture and write what its colours mean; give it its size."""
    width, height = (float(number) for number in root.get("viewBox", "").split()[2:])
    for row, (classes, label) in enumerate(entries):
        y = height + LEGEND_ROW * (row + 0.5)
        ElementTree.SubElement(root, "circle", {"class": classes, "cx": "8", "cy": f"{y:g}"})
        root[-1].set("r", "4")
        ElementTree.SubElement(root, "text", {"x": "18", "y": f"{y + 4:g}"})
        root[-1].text = html.unescape(label)
    height += LEGEND_ROW * len(entries)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("viewBox", f"0 0 {width:g} {height:g}")
    root.set("width", f"{width:g}")
    root.set("height", f"{height:g}")


def paint(element: Element) -> None:
    """Put what the style sheet says of an element into the element."""
    classes = element.attrib.pop("class", "").split()
    colour = next((PALETTE[name] for name in classes if name in PALETTE), None)
    if element.tag == "path":
        element.set("fill", "none")
        element.set("stroke", RULE if "grid" in classes else colour or SOFT)
        element.set("stroke-width", "1" if "grid" in classes else "2")
        if "dashed" in classes:
            element.set("stroke-dasharray", "5 4")
    elif element.tag == "circle" and colour is not None:
        element.set("fill", colour)  # without one it has its group's
    elif element.tag == "text":
        element.set("fill", SOFT)
        element.set("font-family", "Helvetica, Arial, sans-serif")
        element.set("font-size", "11")


def as_svg(drawing: Element) -> str:
    """The drawing as a file's text."""
    return ElementTree.tostring(drawing, encoding="unicode") + "\n"


def write_pdf(drawing: Element, path: Path) -> None:
    """Write the drawing as a PDF of one page; the same drawing gives the same bytes."""
    width, height = (float(drawing.get(side, "0")) for side in ("width", "height"))
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    draw(axes, drawing, "")
    nothing = {"Creator": None, "Producer": None, "CreationDate": None}
    # Letters as TrueType: publishers refuse Type 3
    with matplotlib.rc_context({"pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that its font lacks are boxes
        figure.savefig(path, format="pdf", metadata=nothing)


def draw(axes: Axes, element: Element, fill: str) -> None:
    """Draw an element and what is in it.

    Args:
        fill: the colour of the group that it is in.
    """
    fill = element.get("fill", fill)
    if element.tag == "path":
        draw_path(axes, element)
    elif element.tag == "circle":
        x, y, radius = (float(element.get(key, "0")) for key in ("cx", "cy", "r"))
        axes.add_patch(Circle((x, y), radius, color=fill, linewidth=0))
    elif element.tag == "text":
        draw_text(axes, element)
    for inner in element:
        draw(axes, inner, fill)


def draw_path(axes: Axes, element: Element) -> None:
    """Draw a line from place to place: M and L have two numbers, H and V keep the other one."""
    x = y = 0.0
    places = []
    for step, text in STEP.findall(element.get("d", "")):
        numbers = [float(number) for number in text.split()]
        if step == "H":
            x = numbers[0]
        elif step == "V":
            y = numbers[0]
        else:
            x, y = numbers
        places.append((x, y))
    dashes = [float(number) for number in element.get("stroke-dasharray", "").split()]
    axes.plot(
        *zip(*places, strict=True),
        color=element.get("stroke"),
        linewidth=float(element.get("stroke-width", "1")),
        linestyle=(0, dashes) if dashes else "-",
        scalex=False,
        scaley=False,
    )


def draw_text(axes: Axes, element: Element) -> None:
    """Write a text; what a <title> in it says is for pointers only."""
    written = element.text or ""
    for inner in element:
        written += inner.tail or ""
    sides = {"start": "left", "middle": "center", "end": "right"}
    axes.text(
        float(element.get("x", "0")),
        float(element.get("y", "0")),
        written.strip(),
        color=element.get("fill"),
        fontsize=LETTERS,
        ha=sides[element.get("text-anchor", "start")],
        va="baseline",
        parse_math=False,
    )
