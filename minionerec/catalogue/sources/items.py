"""From the cells of an items table to checked and cleaned items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from minionerec.catalogue.sources import cells, table
from minionerec.catalogue.sources.readers import read_table
from minionerec.catalogue.sources.source import ITEM_COLUMNS
from minionerec.catalogue.sources.table import Table, complain, read_column


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
    known = table.read_ids(read, "item_id", problems)
    ids = [str(text) for text in known]
    _complain_about_repeats(read, ids, problems)
    titles = read_column(read, "title", cells.read_text, "text", problems)
    empty = np.array([title == "" for title in titles])
    if missing_title == "error":
        complain(read, "title", empty, "a title; fill it in, or remove the item", problems)
    if missing_title == "id":
        titles = [title or item for title, item in zip(titles, ids, strict=True)]
    texts = "text or a list of texts"
    names = "a list, or names between ' > ', '|', ';' or ','"
    columns = {
        "item_id": ids,
        "title": titles,
        "description": read_column(read, "description", cells.read_text, texts, problems),
        "brand": read_column(read, "brand", cells.read_text, "text", problems),
        "categories": read_column(read, "categories", cells.read_categories, names, problems),
    }
    notes = table.note_cut_lists(read, "description")
    for name in ITEM_COLUMNS[1:]:
        notes += table.note_half_characters(read, name, columns[name])
    notes += table.note_missing_ids(read, "item_id", known)
    notes += table.note_shortened_ids(read, "item_id", known)
    for name in ("description", "brand"):
        columns[name] = columns[name] or [""] * len(ids)
    columns["categories"] = columns["categories"] or [[] for _ in ids]
    return pd.DataFrame(columns), notes


def without_titles(
    items: pd.DataFrame, interactions: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Items with a title, the interactions with them, and what that leaves out, by reason."""
    titled = items["title"] != ""
    if titled.all():
        return items, interactions, {}
    lost = interactions["item_id"].isin(items["item_id"][~titled])
    dropped = {
        "items without a title": int((~titled).sum()),
        "interactions with items without a title": int(lost.sum()),
    }
    kept = interactions[~lost].reset_index(drop=True)
    return items[titled].reset_index(drop=True), kept, dropped


def _complain_about_repeats(read: Table, ids: list[str], problems: list[str]) -> None:
    """One line for all ids that are there again.

    It says where the first of them is for the first time.
    """
    seen: dict[str, int] = {}
    twice = np.array([seen.setdefault(item, row) != row for row, item in enumerate(ids)])
    if not twice.any():
        return
    first = seen[ids[int(np.flatnonzero(twice)[0])]]
    expected = f"every id once, but it is already at {read.at(first)}; keep one"
    complain(read, "item_id", twice, expected, problems)
