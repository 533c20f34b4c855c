"""A map of the catalogue: a dot per item, coloured by the first code of its semantic ID."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from minionerec.pages.charts import pixels
from minionerec.pages.html import render
from minionerec.pages.sid_tree import joined

MOST = 1000  # items on a map; of more a fixed random sample
WIDTH = 720
HEIGHT = 480
MARGIN = 10
GOLDEN = 0.618034  # turns of the colour circle from one code to the next: neighbours differ


class Colour(NamedTuple):
    """All items of one first code, as the template reads them."""

    name: str
    hue: str
    dots: list[tuple[str, str, str]]  # x, y, title


def item_map(
    embeddings: np.ndarray, sids: Sequence[Sequence[int]], titles: Sequence[str]
) -> Markup:
    """A ``<figure>`` of the embeddings' two widest directions; "" of fewer than three items.

    Args:
        embeddings: ``(N, D)``, may be mapped from disk: only the sample is read.
        sids: codes per item.
        titles: per item.
    """
    chosen = np.arange(len(sids))
    if len(sids) > MOST:
        chosen = np.sort(np.random.default_rng(0).choice(len(sids), MOST, replace=False))
    if len(chosen) < 3:
        return Markup("")
    places, share = two_directions(np.asarray(embeddings[chosen], np.float64))
    x = spread(places[:, 0], MARGIN, WIDTH - MARGIN)
    y = spread(places[:, 1], HEIGHT - MARGIN, MARGIN)
    sample = f"{len(chosen):,} of {len(sids):,} items" if len(chosen) < len(sids) else "every item"
    return render(
        "item_map.html",
        title="Map of the item embeddings",
        caption=(
            f"a dot per item ({sample}), a colour per first code; the two directions that hold "
            f"most of the variance, {share:.0%} of it: what lies apart is apart, what lies "
            "together need not be together"
        ),
        width=WIDTH,
        height=HEIGHT,
        colours=coloured(chosen, x, y, sids, titles),
        legend=[],
    )


def coloured(
    chosen: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    sids: Sequence[Sequence[int]],
    titles: Sequence[str],
) -> list[Colour]:
    """The dots by first code, in the order of the codes."""
    dots: dict[int, list[tuple[str, str, str]]] = {}
    for place, item in enumerate(chosen.tolist()):
        title = f"{joined(sids[item])}  {titles[item]}"
        dots.setdefault(sids[item][0], []).append((pixels(x[place]), pixels(y[place]), title))
    return [Colour(f"first code {code}", hue(code), dots[code]) for code in sorted(dots)]


def two_directions(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """``(N, 2)`` principal components of ``(N, D)``, and their share of the variance.

    From the ``(N, N)`` inner products, whose eigenvectors are the components up to scale. A
    component's sign is free: its largest place is positive.
    """
    centred = vectors - vectors.mean(axis=0)
    values, directions = np.linalg.eigh(centred @ centred.T)  # ascending
    widest = np.maximum(values[[-1, -2]], 0)
    places = directions[:, [-1, -2]] * np.sqrt(widest)
    largest = np.abs(places).argmax(axis=0)
    places *= np.where(places[largest, [0, 1]] < 0, -1, 1)
    total = np.square(centred).sum()
    return places, float(widest.sum() / total) if total > 0 else 0.0


def spread(values: np.ndarray, start: float, end: float) -> np.ndarray:
    """Values moved and scaled so that they fill a side of the picture.

    >>> spread(np.array([1.0, 2.0, 3.0]), 0, 10).tolist()
    [0.0, 5.0, 10.0]
    """
    width = values.max() - values.min()
    return start + (end - start) * (values - values.min()) / (width if width > 0 else 1.0)


def hue(code: int) -> str:
    """A colour that reads on white and on black paper.

    >>> hue(0), hue(1)
    ('#c94a4a', '#4a6fc9')
    """
    red, green, blue = colorsys.hls_to_rgb(code * GOLDEN % 1, 0.54, 0.54)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
