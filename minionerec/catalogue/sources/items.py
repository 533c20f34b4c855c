"""From the cells of an items table to checked and cleaned items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from minionerec.catalogue.sources import table
from minionerec.catalogue.sources.columns import Cells, Ids, members, taken
from minionerec.catalogue.sources.readers import read_table
from minionerec.catalogue.sources.source import ITEM_COLUMNS
from minionerec.catalogue.sources.table import Table, complain
from minionerec.catalogue.sources.whole_columns import are_empty, as_series, read_names, read_texts


def read_items(path: Path, names: dict[str, str]) -> Table:
    """The item columns of a file; ``names`` is ``data.columns``.

    Raises:
        UserError: it cannot be read, or lacks ids, titles or a column that ``names`` mentions.
    """
    wanted = {name: names.get(name, name) for name in ITEM_COLUMNS}
    wanted["item_id"] = names.get("items_item_id", wanted["item_id"])
    read = read_table(path, wanted)
    table.require_columns(read, ["item_id", "title"], names)
    return read


def convert_items(
    read: Table, problems: list[str], missing_title: str = "error"
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Checked items with cleaned texts, and notes; mistakes are appended to ``problems``.

    ``missing_title`` is ``data.missing_title``; with ``drop`` titles may be "" in the result, and
    the caller drops these items (``without_titles``).
    """
    ids = table.read_ids(read, "item_id", problems)
    _complain_about_repeats(read, ids, problems)
    found = {"title": read_texts(read, "title", "text", problems)}
    titles = found["title"].values
    if missing_title == "error":
        empty = are_empty(titles)
        complain(read, "title", empty, "a title; fill it in, or remove the item", problems)
    if missing_title == "id":
        titles = [title or item for title, item in zip(titles, ids, strict=True)]
    texts = "text or a list of texts"
    names = "a list, or names between ' > ', '|', ';' or ','"
    found["description"] = read_texts(read, "description", texts, problems)
    found["brand"] = read_texts(read, "brand", "text", problems)
    found["categories"] = read_names(read, "categories", names, problems)
    notes = table.note_cut_lists(read, "description", found["description"].changed)
    for name, column in found.items():
        notes += table.note_half_characters(read, name, column.values, column.changed)
    notes += table.note_missing_ids(read, "item_id", ids)
    notes += table.note_shortened_ids(read, "item_id", ids)
    missing = [""] * len(ids)
    all_ids = pa.chunked_array([ids.whole()])
    items = {
        "item_id": as_series(Cells(all_ids)),
        "title": as_series(titles),
        "description": as_series(found["description"].values or missing),
        "brand": as_series(found["brand"].values or missing),
        "categories": as_series(found["categories"].values or [[] for _ in missing]),
    }
    return pd.DataFrame(items), notes


def without_titles(
    items: pd.DataFrame, interactions: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Items with a title, the interactions with them, and what that leaves out, by reason."""
    titled = items["title"] != ""
    if titled.all():
        return items, interactions, {}
    lost = members(interactions["item_id"], items["item_id"][~titled])
    dropped = {
        "items without a title": int((~titled).sum()),
        "interactions with items without a title": int(lost.sum()),
    }
    return items[titled].reset_index(drop=True), taken(interactions, ~lost), dropped


def _complain_about_repeats(read: Table, ids: Ids, problems: list[str]) -> None:
    """One line for all ids that are there again.

    It says where the first of them is for the first time.
    """
    if len(ids.texts) == len(ids):
        return
    twice = pd.Series(ids.codes).duplicated().to_numpy()
    again = ids.codes[int(np.flatnonzero(twice)[0])]
    first = int(np.flatnonzero(ids.codes == again)[0])
    expected = f"every id once, but it is already at {read.at(first)}; keep one"
    complain(read, "item_id", twice, expected, problems)
