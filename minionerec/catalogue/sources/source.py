"""What every source hands on.

The tables of items and interactions, and what was dropped or noticed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

ITEM_COLUMNS = ("item_id", "title", "description", "brand", "categories")
INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp", "rating", "split")
SPLITS = ("train", "valid", "test")


class Source(NamedTuple):
    """What every source hands to ``data/prepare.py``.

    ``items`` has the columns of ``ITEM_COLUMNS``; ``interactions`` has user_id, item_id, timestamp
    (int64 seconds), rating (float64, NaN if unknown) and split ("" where the source carries none),
    in source order.
    """

    items: pd.DataFrame
    interactions: pd.DataFrame
    given_sids: dict[str, list[int]] | None = None  # codes from 0 that came with the data
    dropped: dict[str, int] = {}  # what a documented filter of the source left out, by reason
    timestamps: str = "unix seconds UTC"  # with what they were read from, or "order only"
    notes: tuple[str, ...] = ()  # what is legal but worth knowing, one line each
    filtered: bool = False  # the filters of the settings have run already
    files: dict[str, Any] = {}  # path -> fingerprint of every file, taken before it was read
