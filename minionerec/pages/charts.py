"""Charts as inline SVG: no files, no fonts, no scripts, readable on a phone and in dark mode (colours are the page's)."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 12, 190  # the plotting area inside the SVG
NAMES, VALUES, ROW = (
    104,
    318,
    24,
)  # charts of dots: where names end and values begin, height of a row
COLOURS = 10  # classes c0 .. c9 of the page's style sheet


@dataclass(frozen=True)
class Line:
    """One line: equally many x and y, and which colour of the page it has."""

    label: str
    x: list[float]
    y: list[float]
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
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """About five round numbers; on a log axis every decade, or 1, 2 and 5 of each when there are few."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            decades = math.log10(self.high / self.low)
            values = [
                float(f"{m}e{power}")
                for power in powers
                for m in ((1,) if decades > 2.5 else (1, 2, 5))
            ]
            inside = [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
            return inside[:: max(1, len(inside) // 5)]
        step = nice_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step - 1e-9)
        return [step * n for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... times a power of ten that is at least this.

    >>> [nice_step(v) for v in (0.03, 1.2, 26)]
    [0.05, 2.0, 50.0]
    """
    power = 10.0 ** math.floor(math.log10(least))
    return next(round(power * m, 12) for m in (1, 2, 5, 10) if power * m >= least * (1 - 1e-9))


def chart(
    title: str,
    lines: list[Line],
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    points: bool = False,
) -> str:
    """A ``<figure>`` with title, picture and legend; "" when there is nothing to draw.

    Args:
        points: mark every point, and let the x axis count in whole steps.
    """
    lines = [line for line in lines if line.x]
    if not lines:
        return ""
    x_axis = span(
        [value for line in lines for value in line.x], LEFT, RIGHT, log_x, from_zero=False
    )
    y_axis = span([value for line in lines for value in line.y], BOTTOM, TOP, log_y, from_zero=True)
    ticks = (
        [float(v) for v in sorted({v for line in lines for v in line.x})]
        if points
        else x_axis.ticks()
    )
    parts = [
        *grid(x_axis, ticks, y_axis),
        *(draw(line, x_axis, y_axis, points) for line in lines),
        f'<text class="name" x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(xlabel)}</text>',
    ]
    return figure(
        title,
        ylabel,
        HEIGHT,
        parts,
        [(line.label, style(line.colour, line.dashed)) for line in lines],
    )


def dot_chart(
    title: str,
    rows: list[tuple[str, list[Dot]]],
    caption: str,
    legend: Sequence[tuple[str, int]] = (),
) -> str:
    """A ``<figure>`` with a row of dots per name, each with its interval as a whisker; "" when there is nothing to draw.

    Args:
        caption: what the dots measure.
        legend: label and colour of what has several dots in a row; without it a row's value stands at its end.
    """
    dots = [dot for _, row in rows for dot in row]
    if not dots:
        return ""
    bottom = TOP + ROW * len(rows)
    axis = span(
        [end for dot in dots for end in (dot.value, *(dot.interval or ()))],
        NAMES + 8,
        RIGHT if legend else VALUES,
        False,
        True,
    )
    parts = [
        f'<path class="grid" d="M{axis.place(tick):.1f} {TOP}V{bottom}"/>'
        f'<text x="{axis.place(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in axis.ticks()
    ]
    for number, (name, row) in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        parts.append(
            f'<text x="{NAMES}" y="{y + 4:.1f}" text-anchor="end"><title>{html.escape(name)}</title>'
            f"{html.escape(short(name))}</text>"
        )
        parts += [draw_dot(dot, axis, y) for dot in row]
        if not legend:
            parts.append(
                f'<text x="{WIDTH}" y="{y + 4:.1f}" text-anchor="end">{row[0].value:.4f}</text>'
            )
    return figure(
        title, caption, bottom + 24, parts, [(label, style(colour)) for label, colour in legend]
    )


def draw_dot(dot: Dot, axis: Axis, y: float) -> str:
    """A dot and its whisker."""
    colour = style(dot.colour)
    whisker = (
        ""
        if dot.interval is None
        else (
            f'<path class="line {colour}" d="M{axis.place(dot.interval[0]):.1f} {y:.1f}H{axis.place(dot.interval[1]):.1f}"/>'
        )
    )
    return (
        f'{whisker}<circle class="{colour}" cx="{axis.place(dot.value):.1f}" cy="{y:.1f}" r="4"/>'
    )


def short(name: str, most: int = 17) -> str:
    """A name that fits beside its row."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def figure(
    title: str, caption: str, height: float, parts: list[str], legend: list[tuple[str, str]]
) -> str:
    """Title, picture, and a legend of labels and classes."""
    entries = "".join(
        f'<li class="{classes}">{html.escape(label)}</li>' for label, classes in legend
    )
    return (
        f"<figure><figcaption>{html.escape(title)}<small>{html.escape(caption)}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        + (f'<ul class="legend">{entries}</ul>' if entries else "")
        + "</figure>"
    )


def style(colour: int, dashed: bool = False) -> str:
    """The classes of a colour of the page."""
    return f"c{colour % COLOURS}{' dashed' if dashed else ''}"


def span(values: list[float], start: float, end: float, log: bool, from_zero: bool) -> Axis:
    """An axis that holds all values, with a little room above."""
    low, high = min(values), max(values)
    if log:
        high = max(high, low * 10) if from_zero or high == low else high
        return Axis(low, high, start, end, True)
    low = min(low, 0.0) if from_zero else low
    high = high + 0.05 * (high - low) if from_zero else high
    return Axis(low, high if high > low else low + 1, start, end, False)


def grid(x_axis: Axis, x_ticks: list[float], y_axis: Axis) -> list[str]:
    """Numbers along both axes and a faint line at each of y."""
    parts = []
    for value in y_axis.ticks():
        y = y_axis.place(value)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for value in x_ticks:
        parts.append(
            f'<text x="{x_axis.place(value):.1f}" y="{BOTTOM + 17}" text-anchor="middle">{value:g}</text>'
        )
    return parts


def draw(line: Line, x_axis: Axis, y_axis: Axis, points: bool) -> str:
    """A line's path and points."""
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in zip(line.x, line.y, strict=True)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    classes = style(line.colour, line.dashed)
    dots = (
        "".join(f'<circle class="{classes}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
        if points
        else ""
    )
    return f'<path class="line {classes}" d="M{path}"/>{dots}'
