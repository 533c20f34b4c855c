"""Source ``embedded``: a catalogue and its buyers, made in memory, so that the whole pipeline runs without any file.

600 items: 10 departments x 5 categories x 3 systems x 4 product lines, each x 1 generation... (see ``make_catalogue``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from data.embedded_words import DEPARTMENTS, LINES
from data.tables import Source

NUM_USERS = 2000
DAY = 86_400
START = 1_640_995_200    # 2022-01-01 UTC
PERIOD = 730 * DAY


class Catalogue(NamedTuple):
    """Items and the attributes that decide who buys them, all of shape (N,) in item order."""

    items: pd.DataFrame
    department: np.ndarray
    leaf: np.ndarray          # place of the category in its department, 0 is the main product
    system: np.ndarray        # place of the system in its department
    line: np.ndarray
    brand: np.ndarray         # number of the brand
    consumable: np.ndarray    # bool
    popularity: np.ndarray    # positive, mean 1 inside a category


def load(seed: int) -> Source:
    """The catalogue and its buyers' interactions; the same for the same seed."""
    rng = np.random.default_rng(seed)
    catalogue = make_catalogue(rng)
    return Source(catalogue.items, make_interactions(catalogue, rng))


def make_catalogue(rng: np.random.Generator) -> Catalogue:
    """Every department x category x system x line once, with a maker, a size and a text that says all of it."""
    rows, attributes, brands = [], [], {}
    for d, department in enumerate(DEPARTMENTS):
        for c, leaf in enumerate(department.leaves):
            for s, system in enumerate(department.systems):
                makers = [department.brands[s] if c == 0 or rng.random() < 0.6 else department.rivals[rng.integers(2)] for _ in LINES]
                for n, line in enumerate(LINES):
                    size = leaf.sizes[rng.integers(2)]
                    fits = department.fits.format(system)
                    title = f"{makers[n]} {line.name} {leaf.noun} {size}, {fits}, {line.colour}"
                    partners = " and ".join(other.name.lower() for other in department.leaves if other is not leaf)
                    description = (f"{line.tier.capitalize()} {leaf.noun.lower()} from the {line.name} line, made of {line.material} in "
                                   f"{line.colour}. Fits the {fits}. Made for {leaf.purpose}. Goes with {fits} {partners}.")
                    rows.append({"item_id": f"E{len(rows):04d}", "title": title, "description": description, "brand": makers[n],
                                 "categories": [department.name, leaf.group, leaf.name]})
                    attributes.append((d, c, s, n, brands.setdefault(makers[n], len(brands)), leaf.consumable))
    department, leaf, system, line, brand, consumable = np.array(attributes).T
    ranks = np.concatenate([rng.permutation(12) for _ in range(len(rows) // 12)])
    weight = (ranks + 1.0) ** -0.6
    popularity = weight / weight[:12].sum() * 0 + weight / np.mean((np.arange(12) + 1.0) ** -0.6)
    return Catalogue(pd.DataFrame(rows), department, leaf, system, line, brand, consumable.astype(bool), popularity)


def make_interactions(catalogue: Catalogue, rng: np.random.Generator) -> pd.DataFrame:
    """2,000 buyers with 5 to 20 purchases each."""
    rows = []
    follow = follow_matrix(catalogue)
    for user in range(NUM_USERS):
        taste = make_taste(catalogue, rng)
        time = START + rng.random() * 0.8 * PERIOD
        history: list[int] = []
        for _ in range(5 + min(15, rng.geometric(0.22) - 1)):
            p = next_item_probabilities(catalogue, follow, history, taste)
            history.append(int(rng.choice(len(p), p=p)))
            rows.append((f"U{user:04d}", catalogue.items["item_id"][history[-1]], int(time)))
            time += 3600 + rng.exponential(14 * DAY)
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return frame.assign(rating=np.nan, split="")


class Taste(NamedTuple):
    """What a buyer likes."""

    departments: np.ndarray    # (3,)
    line: int


def make_taste(catalogue: Catalogue, rng: np.random.Generator) -> Taste:
    return Taste(rng.choice(len(DEPARTMENTS), 3, replace=False), int(rng.integers(len(LINES))))


def follow_matrix(catalogue: Catalogue) -> np.ndarray:
    """(N, N) how much a purchase of i calls for j."""
    same = (catalogue.department[:, None] == catalogue.department) & (catalogue.system[:, None] == catalogue.system)
    step = (catalogue.leaf[None, :] - catalogue.leaf[:, None]) % 5
    order = np.array([0.0, 1.0, 0.5, 0.25, 0.1])[step] * (catalogue.leaf[None, :] > 0)
    return same * order * np.where(catalogue.brand[:, None] == catalogue.brand, 2.0, 1.0) * catalogue.popularity


def next_item_probabilities(catalogue: Catalogue, follow: np.ndarray, history: list[int], taste: Taste) -> np.ndarray:
    """(N,) chances of the next purchase."""
    line = np.where(catalogue.line == taste.line, 8.0, 1.0)
    start = np.isin(catalogue.department, taste.departments) * (catalogue.leaf == 0) * line * catalogue.popularity
    noise = catalogue.popularity / catalogue.popularity.sum()
    if not history:
        return start / start.sum()
    recent = np.array(history[::-1])
    weights = 0.8 ** np.arange(len(recent))
    wanted = (weights[:, None] * follow[recent]).sum(0) * line
    wanted[[i for i in history if not catalogue.consumable[i]]] = 0
    again = np.zeros(len(wanted))
    for place, i in enumerate(recent):
        again[i] += catalogue.consumable[i] * weights[place]
    parts = [(0.17, noise), (0.15, start), (0.58, wanted), (0.10, again)]
    parts = [(share, part / part.sum()) for share, part in parts if part.sum() > 0]
    total = sum(share for share, _ in parts)
    return sum(share / total * part for share, part in parts)
