"""From the cells of an interactions table to checked interactions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from minionerec.catalogue.sources import cells, layouts, table, times
from minionerec.catalogue.sources.readers import read_table
from minionerec.catalogue.sources.source import INTERACTION_COLUMNS, SPLITS
from minionerec.catalogue.sources.table import Table, complain
from minionerec.experiment.settings import DataSettings

DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
COMPARED = 1000  # unknown ids that are compared with the known ones for a hint


class Interactions(NamedTuple):
    """Checked interactions in file order, and how their times were read."""

    frame: pd.DataFrame
    timestamps: str
    notes: tuple[str, ...]


def read_interactions(path: Path, settings: DataSettings, item_ids: pd.Series) -> Table:
    """The interaction columns of a file.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    names = settings.columns
    read = read_table(path, {name: names.get(name, name) for name in INTERACTION_COLUMNS})
    needed = ["user_id", "item_id", "timestamp"]
    if settings.split == "own":
        needed.append("split")
    table.require_columns(read, needed, names)
    return layouts.settle_order(read, item_ids)


def convert_interactions(read: Table, settings: DataSettings, problems: list[str]) -> Interactions:
    """Checked interactions in file order; mistakes are appended to ``problems``."""
    frame: dict[str, object] = {}
    notes = read.notes
    for column in ("user_id", "item_id"):
        ids = table.read_ids(read, column, problems)
        notes += table.note_missing_ids(read, column, ids)
        notes += table.note_shortened_ids(read, column, ids)
        frame[column] = ids
    found = times.read_times(read.columns["timestamp"], settings.time_format)
    _complain_about_times(read, found, problems)
    frame["timestamp"] = found.seconds
    notes += note_doubtful_times(read, found)
    notes += note_repeats(read, frame)
    notes += _note_decimal_commas(read)
    frame["rating"] = _ratings(read, problems)
    frame["split"] = [""] * len(read.places)
    if settings.split == "own":
        frame["split"] = read.columns["split"]
        strange = ~np.isin(np.array(frame["split"], dtype=object), SPLITS)
        complain(read, "split", strange, "train, valid or test", problems)
    return Interactions(pd.DataFrame(frame), times.source_of(found.unit), notes)


def _complain_about_times(read: Table, found: times.Times, problems: list[str]) -> None:
    if found.mixed:
        cells_of = read.columns["timestamp"]
        examples = ", ".join(
            f"{unit} at {read.at(row)} ({cells.shorten(cells_of[row])})"
            for unit, row in found.mixed.items()
        )
        problems.append(
            f"{read.path}: timestamp: looks like {examples}, and a column has one unit; write "
            "all times in one"
        )
        return
    complain(read, "timestamp", found.unreadable, times.expected(found), problems)
    complain(read, "timestamp", found.early, "a time from 1970 on; this one is before", problems)


def _ratings(read: Table, problems: list[str]) -> np.ndarray:
    """``(n,)`` float64, NaN where there is none."""
    if "rating" not in read.columns:
        return np.full(len(read.places), np.nan)
    given = pd.Series(read.columns["rating"], dtype=object)
    if _has_decimal_commas(read):
        given = given.map(lambda cell: cell.replace(",", ".") if isinstance(cell, str) else cell)
    empty = (given.isna() | (given == "")).to_numpy()
    huge = given.map(lambda cell: isinstance(cell, int) and abs(cell) > 10**15)
    numbers = pd.to_numeric(given.where(~huge, None), errors="coerce").to_numpy(float)
    complain(read, "rating", ~empty & ~np.isfinite(numbers), "a number, or nothing", problems)
    return numbers


def note_repeats(read: Table, frame: dict[str, object]) -> tuple[str, ...]:
    """A line on rows that repeat an earlier one: bought twice at once, or exported twice."""
    again = pd.DataFrame(frame).duplicated().to_numpy()
    if not again.any():
        return ()
    row = int(np.flatnonzero(again)[0])
    return (
        f"{read.at(row)}: repeats user, item and time of an earlier row ({int(again.sum())} such "
        f"rows of {len(again)}, which count); remove them if the export holds them twice",
    )


def _has_decimal_commas(read: Table) -> bool:
    """Whether ratings are written as ``4,5``: some with a comma, and none with a point."""
    written = [cell for cell in read.columns.get("rating", []) if isinstance(cell, str)]
    return any(DECIMAL_COMMA.fullmatch(cell.strip()) for cell in written) and not any(
        "." in cell for cell in written
    )


def _note_decimal_commas(read: Table) -> tuple[str, ...]:
    if not _has_decimal_commas(read):
        return ()
    rows = read.columns["rating"]
    first = next(row for row, cell in enumerate(rows) if "," in str(cell))
    return (f"{read.at(first)}: rating: '{rows[first]}' is read with a decimal comma",)


def note_doubtful_times(read: Table, found: times.Times) -> tuple[str, ...]:
    """A line on times that are probably not what was meant."""
    if found.unreadable.any() or found.early.any() or found.mixed:
        return ()
    doubt = times.doubt(found.seconds, found.unit)
    if doubt is None:
        return ()
    cell = cells.shorten(read.columns["timestamp"][doubt.row])
    day = times.day_of(int(found.seconds[doubt.row]))
    return (
        f"{read.at(doubt.row)}: timestamp: {cell} is read as {day} ({doubt.rows} such rows of "
        f"{len(found.seconds)}); {doubt.reason}",
    )


def members(ids: pd.Series, of: pd.Series) -> np.ndarray:
    """``(n,)`` bool: which ``ids`` are among the distinct ids ``of``."""
    return pd.Index(of).get_indexer(ids) >= 0


def complain_about_strangers(
    read: Table, item_ids: pd.Series, known: pd.Series, items_path: Path, problems: list[str]
) -> None:
    """One line on interactions with items that the items file lacks, and how their ids differ."""
    unknown = ~members(item_ids, known)
    if unknown.any():
        hint = id_hint(item_ids[unknown].drop_duplicates()[:COMPARED], known)
        complain(read, "item_id", unknown, f"an item_id of {items_path}{hint}", problems)


def _without_point(text: str) -> str:
    return text.removesuffix(".0")


def _without_zeros(text: str) -> str:
    return text.lstrip("0") or "0"


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


HINTS: tuple[tuple[Callable[[str], str], str], ...] = (
    (_without_point, "a '.0' at the end: a program took them for numbers with a fraction"),
    (_without_zeros, "leading zeros: a program took them for numbers"),
    (_composed, "their Unicode form (NFC against NFD)"),
    (str.casefold, "upper and lower case"),
    (lambda text: "".join(text.split()), "blanks"),
)


def id_hint(unknown: pd.Series, known: pd.Series) -> str:
    """What sets most unknown ids apart from known ones; "" if nothing does."""
    for change, what in HINTS:
        changed = {change(text) for text in known}
        found = sum(change(text) in changed for text in unknown)
        if found > len(unknown) / 2:
            return (
                f"; the ids of the two files differ in {what}. Write both as text "
                "(pandas: read_csv(..., dtype=str))"
            )
    return ""
