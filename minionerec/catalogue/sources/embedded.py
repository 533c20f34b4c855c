"""Source ``embedded``: a catalogue and its buyers, made in memory, without any file.

600 items: 3 departments x 10 categories x 4 systems x 5 product lines or sizes
(``minionerec/catalogue/sources/embedded_words.py``); about 2,000 buyers with 5 to 20 purchases each
over two years. It is made so that understanding items pays and counting them does not get far: an
item is bought about 30 times, too rarely to learn its followers one by one, but what follows what
is compositional. The next purchase is drawn from a mixture (``SHARES``):

* wanted: an accessory of a kit that the buyer has begun, of the latest one first: the next step of
  the kit rather than a later one, always for the same system, rather of the same brand and in the
  line or size that the buyer tends to, and not what the buyer owns already;
* start: the main product of a department the buyer likes;
* again: a consumable of an earlier purchase;
* noise: anything on sale, by popularity.

Every item shows either its line or its size, so a buyer's two tastes and the systems of the kits
have to be gathered from different purchases. Two items in five come on sale in the course of the
two years and have been counted less. The texts name category, system and line or size in the same
words everywhere, as the titles of a well-kept shop do. Nothing is hidden in a history: only what
was bought and when.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from minionerec.catalogue.sources.embedded_words import DEPARTMENTS, LINES, SCALES, Department, Leaf
from minionerec.catalogue.sources.source import Source

NUM_USERS = 2050
LENGTHS = (5, 20)  # purchases per buyer, both ends included
DAY = 86_400
FIRST_DAY = 1_640_995_200  # 2022-01-01 UTC
PERIOD = 730 * DAY
SHARES = {"wanted": 0.68, "start": 0.11, "again": 0.05, "noise": 0.16}
STEPS = (
    0,
    1,
    0.35,
    0.15,
    0.08,
    0.04,
    0.02,
    0.02,
    0.02,
    0.02,
)  # pull towards the category so many places further in the kit
SAME_BRAND = 1.5  # factor on accessories of the brand
TASTE = 8.0  # factor on the buyer's own line or size
FADING = 0.3  # what a purchase calls for is worth this much after each further purchase
LIKED = 2  # departments per buyer
LATE_SHARE, LATE_UNTIL = (
    0.4,
    0.8,
)  # items launched after the first day, and the share of the period by which all are
ZIPF = 0.3  # exponent of popularity inside a category


class Catalogue(NamedTuple):
    """Items and what decides who buys them.

    N items; all arrays are ``(N,)`` in item order unless noted.
    """

    items: pd.DataFrame
    department: np.ndarray
    leaf: np.ndarray  # place of the category in its kit, 0 is the main product
    kind: np.ndarray  # number of the category x system: of these a buyer wants one, in some variant
    sized: np.ndarray  # bool: the variant is a size, else a line
    variant: np.ndarray  # place in LINES or SCALES
    consumable: np.ndarray  # bool
    popularity: np.ndarray  # positive
    launch: np.ndarray  # unix seconds
    follow: np.ndarray  # (N, N): how much owning the row's item calls for the column's


class Buyers(NamedTuple):
    """Tastes, and what purchases so far have led to. U buyers."""

    line: np.ndarray  # (U,) favourite line
    scale: np.ndarray  # (U,) favourite size
    likes: np.ndarray  # (U, departments) bool
    pull: np.ndarray  # (U, N) how much the purchases so far call for each item
    again: np.ndarray  # (U, N) the same for consumables bought before
    owned: np.ndarray  # (U, N) bool: not needed, as one of its kind is there

    def of(self, rows: np.ndarray) -> Buyers:
        """These buyers only."""
        return Buyers(*(values[rows] for values in self))


def load(seed: int) -> Source:
    """The catalogue and its buyers' purchases; the same for the same seed."""
    rng = np.random.default_rng(seed)
    catalogue = make_catalogue(rng)
    return Source(
        catalogue.items, make_interactions(catalogue, make_buyers(len(catalogue.items), rng), rng)
    )


def make_catalogue(rng: np.random.Generator) -> Catalogue:
    """Every department x category x system in four variants, with brands and texts."""
    rows: list[dict[str, Any]] = []
    keys = []
    for d, department in enumerate(DEPARTMENTS):
        for c, leaf in enumerate(department.leaves):
            for s in range(len(department.systems)):
                for v in range(len(SCALES)):
                    own_make = c == 0 or rng.random() < 0.5
                    makers = department.makers if own_make else department.partners
                    item = describe(department, leaf, department.systems[s], v, makers[s])
                    rows.append({"item_id": f"E{len(rows):04d}", **item})
                    keys.append((d, c, s, v, bool(leaf.sizes), leaf.consumable))
    items = pd.DataFrame(rows)
    department, leaf, system, variant, sized, consumable = np.array(keys).T
    per_leaf = len(DEPARTMENTS[0].systems) * len(SCALES)
    ranks = np.concatenate([rng.permutation(per_leaf) for _ in range(len(rows) // per_leaf)])
    late = rng.random(len(rows)) < LATE_SHARE
    launch = FIRST_DAY + np.where(late, rng.random(len(rows)) * LATE_UNTIL * PERIOD, 0)
    fits = (department[:, None] == department) & (system[:, None] == system) & (leaf > 0)  # (N, N)
    steps = np.array(STEPS)[(leaf[None, :] - leaf[:, None]) % len(STEPS)]  # (N, N)
    brand = items["brand"].to_numpy()
    follow = fits * steps * np.where(brand[:, None] == brand, SAME_BRAND, 1.0)  # (N, N)
    kind = (department * len(STEPS) + leaf) * len(DEPARTMENTS[0].systems) + system
    return Catalogue(
        items,
        department,
        leaf,
        kind,
        sized.astype(bool),
        variant,
        consumable.astype(bool),
        (ranks + 1.0) ** -ZIPF,
        launch,
        follow,
    )


def describe(
    department: Department, leaf: Leaf, system: str, variant: int, brand: str
) -> dict[str, object]:
    """Title, description, brand and category path of one item."""
    fits = department.fits.format(system)
    if leaf.sizes:
        scale, size = SCALES[variant], leaf.sizes[variant]
        title = f"{brand} {scale.name} {leaf.noun}, {size}, {fits}"
        about = f"{scale.name} size: {size}, made for {scale.use}."
    else:
        line = LINES[variant]
        title = f"{brand} {line.name} {leaf.noun}, {line.colour}, {fits}"
        about = f"From the {line.tier} {line.name} line, made of {line.material} in {line.colour}."
    description = (
        f"{leaf.name}. {leaf.noun} for {leaf.purpose}. {about} {leaf.name} that fit the {fits}."
    )
    return {
        "title": title,
        "description": description,
        "brand": brand,
        "categories": [department.name, leaf.group, leaf.name],
    }


def make_buyers(num_items: int, rng: np.random.Generator) -> Buyers:
    """Buyers before their first purchase."""
    line, scale = (
        rng.integers(len(LINES), size=NUM_USERS),
        rng.integers(len(SCALES), size=NUM_USERS),
    )
    likes = rng.random((NUM_USERS, len(DEPARTMENTS))).argsort(axis=1) < LIKED
    empty = np.zeros((NUM_USERS, num_items))
    return Buyers(line, scale, likes, empty, empty.copy(), empty.astype(bool))


def make_interactions(
    catalogue: Catalogue, buyers: Buyers, rng: np.random.Generator
) -> pd.DataFrame:
    """All purchases until the period ends, one per active buyer and round.

    Buyers with too few by then are left out.
    """
    low, high = LENGTHS
    lengths = np.minimum(low - 1 + rng.geometric(0.18, NUM_USERS), high)
    now = FIRST_DAY + rng.random(NUM_USERS) * 0.93 * PERIOD
    users, items, times = [], [], []
    for place in range(high):
        active = np.flatnonzero(lengths > place)
        chances = next_item_chances(catalogue, buyers.of(active), now[active]).cumsum(
            axis=1
        )  # (U, N)
        chosen = (chances < rng.random((len(active), 1)) * chances[:, -1:]).sum(axis=1)  # (U,)
        users.append(active)
        items.append(chosen)
        times.append(now[active].astype(np.int64))
        soon = buyers.pull[active, chosen] > 0
        record(catalogue, buyers, active, chosen)
        now[active] += 3600 + rng.exponential(np.where(soon, 5 * DAY, 20 * DAY))
    frame = pd.DataFrame(
        {
            "user": np.concatenate(users),
            "item": np.concatenate(items),
            "timestamp": np.concatenate(times),
        }
    )
    frame = frame[frame["timestamp"] < FIRST_DAY + PERIOD]
    frame = frame[frame.groupby("user")["item"].transform("size") >= low]
    return pd.DataFrame(
        {
            "user_id": [f"U{user:04d}" for user in frame["user"]],
            "item_id": catalogue.items["item_id"].to_numpy()[frame["item"]],
            "timestamp": frame["timestamp"].to_numpy(),
            "rating": np.nan,
            "split": "",
        }
    )


def next_item_chances(catalogue: Catalogue, buyers: Buyers, now: np.ndarray) -> np.ndarray:
    """The generator's own probabilities of the next purchase.

    Args:
        buyers: U buyers as they stand.
        now: ``(U,)`` unix seconds.

    Returns:
        ``(U, N)``; rows add up to 1.
    """
    on_sale = (catalogue.launch <= now[:, None]) * catalogue.popularity  # (U, N)
    favourite = np.where(catalogue.sized, buyers.scale[:, None], buyers.line[:, None])  # (U, N)
    liking = (
        on_sale * np.where(catalogue.variant == favourite, TASTE, 1.0) * ~buyers.owned
    )  # (U, N)
    parts = {
        "wanted": buyers.pull * liking,
        "start": buyers.likes[:, catalogue.department] * (catalogue.leaf == 0) * liking,
        "again": buyers.again,
        "noise": on_sale,
    }
    chances, used = np.zeros_like(on_sale), np.zeros((len(now), 1))
    for name, part in parts.items():
        total = part.sum(axis=1, keepdims=True)
        possible = total > 0
        chances += np.where(possible, SHARES[name] * part / np.where(possible, total, 1), 0)
        used += SHARES[name] * possible
    return chances / used


def record(catalogue: Catalogue, buyers: Buyers, rows: np.ndarray, chosen: np.ndarray) -> None:
    """Update, in place, what the purchases ``chosen`` of the buyers ``rows`` lead to."""
    buyers.pull[rows] = FADING * buyers.pull[rows] + catalogue.follow[chosen]
    buyers.again[rows, chosen] += catalogue.consumable[chosen]
    buyers.owned[rows] |= (
        catalogue.kind[chosen][:, None] == catalogue.kind
    ) & ~catalogue.consumable[chosen][:, None]
