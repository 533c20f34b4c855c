"""The cells of one file under our column names, and how a mistake in them is reported."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minionerec.catalogue.sources import cells, columns
from minionerec.catalogue.sources.columns import Distinct, Ids
from minionerec.catalogue.sources.source import INTERACTION_COLUMNS, ITEM_COLUMNS
from minionerec.catalogue.sources.text import whole_characters
from minionerec.errors import UserError

SHOWN = 5  # rows named per kind of mistake
NUMBER = re.compile(r"-?\d+(\.\d+)?")
SHORTENED = r"^\p{Nd}\.\p{Nd}+[eE]\+\p{Nd}+$"  # of Arrow, whose \d is ASCII's
SAYS_MISSING = pa.array(("nan", "none", "null", "<na>", "n/a", "undefined"), pa.large_string())


class Table(NamedTuple):
    """Columns of one file; a column that the file lacks is not there."""

    path: Path
    columns: Mapping[str, Sequence[Any]]  # our name -> cells: str (CSV), or what JSON, Parquet hold
    header: list[str]  # the file's own column names
    places: Sequence[int | str]  # where each row stands: line, row from 1, item id
    unit: str = ":"  # between path and place: ":", ": row ", ": item ", "/" for a folder's parts
    notes: tuple[str, ...] = ()  # how the file was read, where that is worth knowing
    first_line: str = ""  # of a text file without a header, as far as one can tell
    orders: tuple[
        tuple[str, ...], ...
    ] = ()  # orders of columns that a file without header may have

    def at(self, row: int) -> str:
        """``items.csv:7``, or ``items.parquet: row 7``."""
        return f"{self.path}{self.unit}{self.places[row]}"


def complain(
    table: Table,
    column: str,
    bad: np.ndarray,
    expected: str,
    problems: list[str],
) -> None:
    """Append one line for all rows where ``bad`` is true.

    It shows the first of them in full, the next few by place, and the count.
    """
    rows = np.flatnonzero(bad)
    if not len(rows):
        return
    cell = table.columns[column][rows[0]]
    line = f"{table.at(rows[0])}: {column}: got {cells.shorten(cell)}, expected {expected}"
    if len(rows) > 1:
        others = ", ".join(str(table.places[row]) for row in rows[1:SHOWN])
        more = ", ..." if len(rows) > SHOWN else ""
        line += f" ({len(rows)} rows in all, next: {others}{more})"
    problems.append(line)


def read_column(
    table: Table,
    column: str,
    read: Callable[[Any], Any],
    expected: str,
    problems: list[str],
) -> list[Any]:
    """``read`` applied to every cell; [] if there is no such column.

    Cells that it refuses (ValueError) are complained about and read as None.
    """
    values = []
    bad = []
    for cell in table.columns.get(column, []):
        try:
            values.append(read(cell))
            bad.append(False)
        except ValueError:
            values.append(None)
            bad.append(True)
    complain(table, column, np.array(bad, dtype=bool), expected, problems)
    return values


def read_ids(table: Table, column: str, problems: list[str]) -> Ids:
    """The ids of a column; empty ones and halves of characters are complained about."""
    found = columns.distinct(table.columns[column])
    plain = columns.plain_ids(found.cells)
    if plain is not None:
        return Ids(plain, found.codes)
    ids = [cells.read_id(cell) for cell in found.cells]
    empty = found.rows([not text for text in ids])
    complain(table, column, empty, "an id", problems)
    lost = found.rows(list(map(cells.lost_digits, found.cells)))
    exact = (
        "text or a whole number; true, false and fractions from 2^53 on cannot tell ids apart: "
        "export them as text"
    )
    complain(table, column, lost, exact, problems)
    _complain_about_look_alikes(table, column, ids, found, problems)
    broken = found.rows(list(map(cells.has_half_characters, ids)))
    whole = "an id of whole characters; half of a pair (a lone surrogate) cannot be stored"
    complain(table, column, broken, whole, problems)
    if broken.any():
        ids = [whole_characters(text) for text in ids]
    return Ids.merged(ids, found.codes)


def _complain_about_look_alikes(
    table: Table, column: str, ids: Sequence[str], found: Distinct, problems: list[str]
) -> None:
    """One line on ids that differ in nothing that can be seen: they are one id, written twice.

    Args:
        ids: of the distinct cells.
    """
    if all(map(str.isascii, ids)):
        return
    seen_as: dict[str, str] = {}  # id -> what is seen of it
    spelt: dict[str, str] = {}  # what is seen -> the id that is written so first
    for text in dict.fromkeys(ids):
        seen_as[text] = text if text.isascii() else cells.as_seen(text)
        spelt.setdefault(seen_as[text], text)
    if len(spelt) == len(seen_as):
        return
    other = found.rows([spelt[seen_as[text]] != text for text in ids])
    text = ids[found.codes[np.flatnonzero(other)[0]]]
    first = spelt[seen_as[text]]
    expected = (
        f"{ascii(first)}, from which {ascii(text)} differs in nothing that can be seen (its "
        "Unicode form, or characters without a width); write every id in one way"
    )
    complain(table, column, other, expected, problems)


def require_columns(table: Table, needed: Sequence[str], names: dict[str, str]) -> None:
    """Refuse a table without a needed column, or without one that ``data.columns`` names.

    Raises:
        UserError: one line per column, with the nearest name in the file.
    """
    item_side = "title" in needed
    ours_here = ITEM_COLUMNS if item_side else INTERACTION_COLUMNS
    # A column that is named as it is anyway is no demand for one
    named = [name for name, theirs in names.items() if theirs != name and name in ours_here]
    wanted = [*needed, *named]
    lacking = [ours for ours in dict.fromkeys(wanted) if ours not in table.columns]
    if lacking and table.first_line:
        raise UserError(
            f"{table.path}: this file seems to have no header: its first line is "
            f"{cells.shorten(table.first_line)}; write the column names into a line above it, "
            f"such as {','.join(needed)}"
        )
    problems = [_lack(table, ours, item_side, names) for ours in lacking]
    if problems:
        raise UserError("\n".join(problems))


def _lack(table: Table, ours: str, item_side: bool, names: dict[str, str]) -> str:
    """The line about one column that is not there."""
    key = ours
    if item_side and ours == "item_id" and "items_item_id" in names:
        key = "items_item_id"
    theirs = names.get(key, ours)
    hint = ""
    for name in (theirs, ours):
        near = difflib.get_close_matches(name, table.header, n=1, cutoff=0.5)
        if near and not hint:
            hint = f"; did you mean '{near[0]}'?"
            if unicodedata.normalize("NFC", near[0]) == unicodedata.normalize("NFC", theirs):
                hint = (
                    f"; the file writes '{near[0]}' in another Unicode form (NFC against NFD): "
                    "copy the name from the file"
                )
    return (
        f"{table.path}: has no column '{theirs}' for {ours}{hint} (its columns: "
        f"{', '.join(table.header)}); set data.columns.{key}"
    )


def looks_like_data(header: Sequence[str]) -> bool:
    """Whether a first line is a row rather than column names: some cell is a number."""
    return any(NUMBER.fullmatch(name) for name in header)


# ------------------------------------------------------------------------------------------ notes


def note_cut_lists(table: Table, column: str, changed: Iterable[int]) -> tuple[str, ...]:
    """A line on the cells that begin like a list of texts but are none.

    ``cells.read_text`` reads them as far as they go.

    Args:
        changed: the rows that reading may have changed.
    """
    cut = []
    for row in changed:
        cell = table.columns[column][row]
        if isinstance(cell, str) and cells.looks_like_texts(cell):
            try:
                cells.read_list(cell)
            except ValueError:
                cut.append(row)
    if not cut:
        return ()
    return (
        f"{table.at(cut[0])}: {column}: begins like a list but is cut off or damaged; "
        f"its text was kept as far as it goes ({len(cut)} such rows)",
    )


def note_half_characters(
    table: Table,
    column: str,
    read: Sequence[Any],
    changed: Iterable[int],
) -> tuple[str, ...]:
    """A line on texts in which half of a character became U+FFFD.

    Args:
        read: what was made of every cell of the column.
        changed: the rows in which it may be something else than the cell.
    """
    rows = []
    for row in changed:
        value = read[row]
        if "\ufffd" in str(value) and "\ufffd" not in str(table.columns[column][row]):
            rows.append(row)
    if not rows:
        return ()
    return (
        f"{table.at(rows[0])}: {column}: holds half of a character (a lone surrogate), "
        f"replaced by U+FFFD ({len(rows)} such rows)",
    )


def note_shortened_ids(table: Table, column: str, ids: Ids) -> tuple[str, ...]:
    """A line on ids such as 1.23E+12, to which a spreadsheet shortens long numbers."""
    rows = _rows_of(ids, pc.match_substring_regex(ids.texts, SHORTENED))
    if not len(rows):
        return ()
    return (
        f"{table.at(rows[0])}: {column}: '{ids[rows[0]]}' looks like a number that a spreadsheet "
        f"shortened, so that different ids may have become one ({len(rows)} such rows); export "
        "the column as text",
    )


def note_missing_ids(table: Table, column: str, ids: Ids) -> tuple[str, ...]:
    """A line on ids such as "nan", which other programs write where there is none."""
    rows = _rows_of(ids, pc.is_in(pc.utf8_lower(ids.texts), SAYS_MISSING))
    if not len(rows):
        return ()
    return (
        f"{table.at(rows[0])}: {column}: '{ids[rows[0]]}' is taken as an id like any other; other "
        f"programs write it where there is none ({len(rows)} such rows)",
    )


def _rows_of(ids: Ids, strange: pa.BooleanArray) -> np.ndarray:
    """The rows whose id is strange; ``strange`` says so of the distinct ones."""
    if not pc.any(strange).as_py():
        return np.empty(0, dtype=int)
    flags = strange.to_numpy(zero_copy_only=False)
    return np.flatnonzero(flags[ids.codes])
