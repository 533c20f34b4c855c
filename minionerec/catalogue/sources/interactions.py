"""From the cells of an interactions table to checked interactions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from minionerec.catalogue.arrays import blocks
from minionerec.catalogue.sources import cells, layouts, table, times
from minionerec.catalogue.sources.columns import Cells, Distinct, Ids, distinct, members
from minionerec.catalogue.sources.readers import read_table
from minionerec.catalogue.sources.source import INTERACTION_COLUMNS, SPLITS
from minionerec.catalogue.sources.table import Table, complain
from minionerec.experiment.settings import DataSettings

DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
COMPARED = 1000  # unknown ids that are compared with the known ones for a hint
MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads neighbours over all bits


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
    codes: dict[str, np.ndarray] = {}
    notes = read.notes
    for column in ("user_id", "item_id"):
        ids = table.read_ids(read, column, problems)
        notes += table.note_missing_ids(read, column, ids)
        notes += table.note_shortened_ids(read, column, ids)
        frame[column] = ids.column()
        codes[column] = ids.codes
    found = times.read_times(read.columns["timestamp"], settings.time_format)
    _complain_about_times(read, found, problems)
    frame["timestamp"] = found.seconds
    notes += note_doubtful_times(read, found)
    notes += note_repeats(read, codes["user_id"], codes["item_id"], found.seconds)
    notes += _note_decimal_commas(read)
    frame["rating"] = _ratings(read, problems)
    splits = Distinct([""], np.zeros(len(read.places), dtype=np.int8))
    if settings.split == "own":
        splits = distinct(read.columns["split"])
        strange = splits.rows([cell not in SPLITS for cell in splits.cells])
        complain(read, "split", strange, "train, valid or test", problems)
    names = [str(cell) for cell in splits.cells]
    frame["split"] = Ids.merged(names, splits.codes).column()
    whole = pd.DataFrame(frame, copy=False)
    return Interactions(whole, times.source_of(found.unit), notes)


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
    column = read.columns["rating"]
    if isinstance(column, Cells) and pa.types.is_floating(column.values.type):
        numbers = column.values.to_numpy().astype(np.float64, copy=False)  # nulls are NaN here
        complain(read, "rating", np.isinf(numbers), "a number, or nothing", problems)
        return numbers
    found = distinct(column)
    given = pd.Series(list(found.cells), dtype=object)
    if _has_decimal_commas(found.cells):
        given = given.map(lambda cell: cell.replace(",", ".") if isinstance(cell, str) else cell)
    empty = (given.isna() | (given == "")).to_numpy()
    huge = given.map(lambda cell: isinstance(cell, int) and abs(cell) > 10**15)
    numbers = pd.to_numeric(given.where(~huge, None), errors="coerce").to_numpy(float)
    bad = found.rows(~empty & ~np.isfinite(numbers))
    complain(read, "rating", bad, "a number, or nothing", problems)
    return numbers[found.codes]


def note_repeats(
    read: Table, users: np.ndarray, items: np.ndarray, seconds: np.ndarray
) -> tuple[str, ...]:
    """A line on rows that repeat an earlier one: bought twice at once, or exported twice.

    Args:
        users, items, seconds: ``(n,)`` of the rows; the first two are codes.
    """
    again = _repeats(users, items, seconds)
    if not again.any():
        return ()
    row = int(np.flatnonzero(again)[0])
    return (
        f"{read.at(row)}: repeats user, item and time of an earlier row ({int(again.sum())} such "
        f"rows of {len(again)}, which count); remove them if the export holds them twice",
    )


def _repeats(users: np.ndarray, items: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """``(n,)`` bool: an earlier row has the same user, item and time.

    Rows are mixed to one number each. Only those whose number occurs twice are compared in full:
    few, however long the table is.
    """
    ordered = np.empty(len(users), dtype=np.uint64)
    for rows in blocks(len(users)):
        ordered[rows] = _mixed(users[rows], items[rows], seconds[rows])
    ordered.sort()
    like_the_one_before = ordered[1:] == ordered[:-1]
    twice = np.unique(ordered[1:][like_the_one_before])
    del ordered
    again = np.zeros(len(users), dtype=bool)
    if len(twice):
        found = []
        for rows in blocks(len(users)):
            mixed = _mixed(users[rows], items[rows], seconds[rows])
            maybe = np.flatnonzero(np.isin(mixed, twice))
            found.append(maybe + rows.start)
        some = np.concatenate(found)
        compared = pd.DataFrame({"u": users[some], "i": items[some], "s": seconds[some]})
        again[some] = compared.duplicated().to_numpy()
    return again


def _mixed(users: np.ndarray, items: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """One uint64 for each row, which other rows hardly have."""
    mixed = users.astype(np.uint64)
    for column in (items, seconds):
        mixed *= MIX
        mixed ^= mixed >> np.uint64(29)
        mixed += column.astype(np.uint64)
    mixed *= MIX
    return mixed


def _has_decimal_commas(ratings: Sequence[Any]) -> bool:
    """Whether ratings are written as ``4,5``: some with a comma, and none with a point."""
    written = [cell for cell in ratings if isinstance(cell, str)]
    return any(DECIMAL_COMMA.fullmatch(cell.strip()) for cell in written) and not any(
        "." in cell for cell in written
    )


def _note_decimal_commas(read: Table) -> tuple[str, ...]:
    if "rating" not in read.columns:
        return ()
    column = read.columns["rating"]
    if isinstance(column, Cells) and pa.types.is_floating(column.values.type):
        return ()
    found = distinct(column)
    if not _has_decimal_commas(found.cells):
        return ()
    with_comma = found.rows(["," in str(cell) for cell in found.cells])
    first = int(np.flatnonzero(with_comma)[0])
    return (f"{read.at(first)}: rating: '{column[first]}' is read with a decimal comma",)


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
