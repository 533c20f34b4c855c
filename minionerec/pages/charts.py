"""Charts as inline SVG: no files, no fonts, no scripts; colours are those of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from minionerec.pages.html import render

WIDTH = 360
HEIGHT = 230
# The plotting area inside the SVG.
LEFT = 46
RIGHT = 350
TOP = 12
BOTTOM = 190
# Charts of dots: where names end, where the space for values begins, height of a row.
NAMES = 104
VALUES = 318
ROW = 24
COLOURS = 10  # classes c0 .. c9 of the page's style sheet


@dataclass(frozen=True)
class Line:
    """One line: equally many x and y, and which colour of the page it has."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """One number, its interval if it has one, and which colour of the page it has."""

    value: float
    interval: tuple[float, float] | None = None
    colour: int = 0


@dataclass(frozen=True)
class Axis:
    """From numbers to places along one side of the plotting area."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def place(self, value: float) -> float:
        """Where a number lies, in SVG units."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """About five round numbers; on a log axis decades, or 1, 2 and 5 of each when few."""
        if self.log:
            return self._log_ticks()
        step = nice_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [step * n for n in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        decades = math.log10(self.high / self.low)
        multiples = (1,) if decades > 2.5 else (1, 2, 5)
        first = math.floor(math.log10(self.low))
        last = math.ceil(math.log10(self.high))
        inside = []
        for power in range(first, last + 1):
            for multiple in multiples:
                value = float(f"{multiple}e{power}")
                if self.low * 0.999 <= value <= self.high * 1.001:
                    inside.append(value)
        return inside[:: max(1, len(inside) // 5)]


class Tick(NamedTuple):
    """A number beside an axis, as the templates read it."""

    place: str
    label: str
    text_y: str  # baseline of the label, along the y axis


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... times a power of ten that is at least this.

    >>> [nice_step(v) for v in (0.03, 1.2, 26)]
    [0.05, 2.0, 50.0]
    """
    power = 10.0 ** math.floor(math.log10(least))
    enough = least * (1 - 1e-9)  # 0.3 / 0.1 is not quite 3
    return next(round(power * m, 12) for m in (1, 2, 5, 10) if power * m >= enough)


def chart(
    title: str,
    lines: Sequence[Line],
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    points: bool = False,
    from_zero: bool = True,
) -> Markup:
    """A ``<figure>`` with title, picture and legend; "" when there is nothing to draw.

    Args:
        points: mark every point, and let the x axis count in whole steps.
        from_zero: let the y axis begin at 0; else it shows no more than there is.
    """
    lines = [line for line in lines if line.x]
    if not lines:
        return Markup("")
    xs: list[float] = []
    ys: list[float] = []
    for line in lines:
        xs += line.x
        ys += line.y
    x_axis = span(xs, LEFT, RIGHT, log_x, from_zero=False)
    y_axis = span(ys, BOTTOM, TOP, log_y, from_zero)
    x_values = sorted(set(xs)) if points else x_axis.ticks()
    return render(
        "line_chart.html",
        title=title,
        caption=ylabel,
        xlabel=xlabel,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        bottom=BOTTOM,
        x_ticks=ticks_at(x_axis, x_values),
        y_ticks=ticks_at(y_axis, y_axis.ticks()),
        lines=[drawn(line, x_axis, y_axis, points) for line in lines],
        legend=[(line.label, style(line.colour, line.dashed)) for line in lines],
    )


def dot_chart(
    title: str,
    rows: Sequence[tuple[str, Sequence[Dot]]],
    caption: str,
    legend: Sequence[tuple[str, int]] = (),
) -> Markup:
    """A ``<figure>`` with a row of dots per name, each with its interval as a whisker.

    Args:
        caption: what the dots measure.
        legend: label and colour of what has several dots in a row; without it a row's value stands
            at its end.

    Returns:
        "" when there is nothing to draw.
    """
    ends: list[float] = []
    colours = set()
    for _, dots in rows:
        for dot in dots:
            ends += [dot.value, *(dot.interval or ())]
            colours.add(dot.colour)
    if not ends:
        return Markup("")
    axis = span(ends, NAMES + 8, RIGHT if legend else VALUES, log=False, from_zero=True)
    bottom = TOP + ROW * len(rows)
    shown = []
    for number, (name, dots) in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        shown.append(
            {
                "name": name,
                "short_name": short(name),
                "y": pixels(y),
                "text_y": pixels(y + 4),
                "dots": [drawn_dot(dot, axis, y) for dot in dots],
                "value": "" if legend else f"{dots[0].value:.4f}",
            }
        )
    return render(
        "dot_chart.html",
        title=title,
        caption=caption,
        width=WIDTH,
        height=bottom + 24,
        top=TOP,
        bottom=bottom,
        names_end=NAMES,
        ticks=ticks_at(axis, axis.ticks()),
        rows=shown,
        legend=[(label, style(colour)) for label, colour in legend if colour in colours],
    )


def drawn_dot(dot: Dot, axis: Axis, y: float) -> dict[str, str]:
    """Where a dot and its whisker lie."""
    whisker = ""
    if dot.interval is not None:
        start, end = (pixels(axis.place(value)) for value in dot.interval)
        whisker = f"M{start} {pixels(y)}H{end}"
    return {
        "classes": style(dot.colour),
        "x": pixels(axis.place(dot.value)),
        "whisker": whisker,
    }


def drawn(line: Line, x_axis: Axis, y_axis: Axis, points: bool) -> dict[str, Any]:
    """Where a line and its points lie."""
    places = []
    for x, y in zip(line.x, line.y, strict=True):
        places.append((pixels(x_axis.place(x)), pixels(y_axis.place(y))))
    return {
        "classes": style(line.colour, line.dashed),
        "path": "L".join(f"{x} {y}" for x, y in places),
        "points": places if points else [],
    }


def ticks_at(axis: Axis, values: Sequence[float]) -> list[Tick]:
    """Numbers beside an axis."""
    ticks = []
    for value in values:
        place = axis.place(value)
        ticks.append(Tick(pixels(place), f"{value:g}", pixels(place + 4)))
    return ticks


def span(values: Sequence[float], start: float, end: float, log: bool, from_zero: bool) -> Axis:
    """An axis that holds all values, with a little room above."""
    low, high = min(values), max(values)
    if log:
        if from_zero or high == low:
            high = max(high, low * 10)
        return Axis(low, high, start, end, True)
    if from_zero:
        low = min(low, 0.0)
        high += 0.05 * (high - low)
    return Axis(low, high if high > low else low + 1, start, end, False)


def pixels(value: float) -> str:
    """A place in SVG units, one digit behind the point.

    >>> pixels(45.96)
    '46.0'
    """
    return f"{value:.1f}"


def short(name: str, most: int = 17) -> str:
    """A name that fits beside its row."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def style(colour: int, dashed: bool = False) -> str:
    """The classes of a colour of the page."""
    return f"c{colour % COLOURS}{' dashed' if dashed else ''}"
