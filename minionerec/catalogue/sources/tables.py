"""Source ``tables``: two files of your own, one of interactions and one of items.

    data:
      source: tables
      path: my_shop                       # holds interactions.csv and items.jsonl, say
      columns: {user_id: customer, item_id: sku, timestamp: bought_at, title: name}

CSV, TSV, JSON lines, Parquet, RecBole's .inter and .item, MovieLens' .dat; each also packed (.gz)
or as a folder of part files. Everything is read as text first, so an id 001 stays 001. Nothing is
repaired or skipped: every mistake is reported with file, row, column, value and what was expected,
all kinds together.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pyarrow as pa

from minionerec.catalogue.sources.interactions import (
    complain_about_strangers,
    convert_interactions,
    read_interactions,
)
from minionerec.catalogue.sources.items import convert_items, read_items, without_titles
from minionerec.catalogue.sources.readers import SUFFIXES, is_table
from minionerec.catalogue.sources.source import Source
from minionerec.catalogue.sources.table import SHOWN
from minionerec.errors import UserError, relative_to
from minionerec.experiment.files import fingerprints
from minionerec.experiment.settings import DataSettings


def load(settings: DataSettings) -> Source:
    """Read, check and convert both files.

    Raises:
        UserError: one line per kind of mistake.
    """
    folder = Path(settings.path)
    interactions_path = find_file(folder, settings.interactions, "interactions")
    items_path = find_file(folder, settings.items, "items")
    files = fingerprints([interactions_path, items_path])
    problems: list[str] = []
    items_table = read_items(items_path, settings.columns)
    items, notes = convert_items(items_table, problems, settings.missing_title)
    notes = items_table.notes + notes
    del items_table
    pa.default_memory_pool().release_unused()  # Arrow keeps what it read with otherwise
    read = read_interactions(interactions_path, settings, items["item_id"])
    pa.default_memory_pool().release_unused()
    interactions = convert_interactions(read, settings, problems)
    frame = interactions.frame
    if not problems:
        ids = items["item_id"]
        complain_about_strangers(read, frame["item_id"], ids, items_path, problems)
    if problems:
        raise UserError("\n".join(problems))
    items, frame, dropped = without_titles(items, frame)
    del read
    pa.default_memory_pool().release_unused()
    notes += interactions.notes
    return Source(
        items,
        frame,
        dropped=dropped,
        timestamps=interactions.timestamps,
        notes=notes,
        files=files,
    )


def find_file(folder: Path, name: str, word: str) -> Path:
    """``folder/name``, or the one table in the folder whose name holds ``word``.

    A folder of part files counts as a table.

    Raises:
        UserError: there is no such file or folder, or more than one table could be meant.
    """
    if not os.path.isdir(folder):  # also of a name too long for a folder
        raise UserError(
            f"data.path: no folder '{folder}'{relative_to(folder)}; give the folder that holds the "
            f"{word} file"
        )
    present = sorted(path.name for path in folder.iterdir() if path.is_file() or is_table(path))
    if name:
        if os.path.exists(folder / name):
            return folder / name
        near = difflib.get_close_matches(name, present, n=1)
        hint = f"; the folder holds {', '.join(present[:SHOWN]) or 'no files'}"
        if near:
            hint = f"; did you mean '{near[0]}'?"
        raise UserError(f"data.{word}: {folder / name}: no such file{hint}")
    found = [entry for entry in present if word in entry.lower() and is_table(folder / entry)]
    if len(found) != 1:
        got = f"found {len(found)} ({', '.join(found)})" if found else "found none"
        raise UserError(
            f"data.{word}: is empty and {folder} should then hold exactly one table named "
            f"*{word}* ({', '.join(SUFFIXES)}), {got}; name the file with data.{word}"
        )
    return folder / found[0]
