"""Source ``tables``: two files of your own, one of interactions and one of items, as CSV, TSV, JSONL or Parquet.

    data:
      source: tables
      path: my_shop                       # holds interactions.csv and items.jsonl, say
      columns: {user_id: customer, item_id: sku, timestamp: bought_at, title: name}

Everything is read as text first, so an id 001 stays 001. Nothing is repaired or skipped: every mistake is reported with
file, row, column, value and what was expected, all kinds together.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from minionerec.catalogue.sources import cells
from minionerec.errors import UserError
from minionerec.experiment.settings import DataSettings

ITEM_COLUMNS = ("item_id", "title", "description", "brand", "categories")
INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp", "rating", "split")
SPLITS = ("train", "valid", "test")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet")
SHOWN = 5  # rows named per kind of mistake


class Source(NamedTuple):
    """What every source hands to ``prepare.py``.

    ``items`` has the columns of ``ITEM_COLUMNS``; ``interactions`` has user_id, item_id, timestamp (int64 seconds),
    rating (float64, NaN if unknown) and split ("" where the source carries none), in source order.
    """

    items: pd.DataFrame
    interactions: pd.DataFrame
    given_sids: dict[str, list[int]] | None = None  # codes from 0 that came with the data
    dropped: dict[str, int] = {}  # what a documented filter of the source left out, by reason
    timestamps: str = "unix seconds UTC"  # or "order only"
    notes: tuple[str, ...] = ()  # what is legal but worth knowing, one line each
    filtered: bool = False  # the filters of the settings have run already


class Table(NamedTuple):
    """Cells of one file under our column names, and where each row stands in it."""

    path: Path
    columns: dict[str, list[Any]]  # our name -> cells: str (CSV), or what JSON or Parquet hold
    header: list[str]  # the file's own column names
    places: list[int] | list[str]  # line (CSV, JSONL), row from 1 (Parquet) or item id
    unit: str = ""  # "" for lines, else "row " or "item "

    def at(self, row: int) -> str:
        """``items.csv:7``, or ``items.parquet: row 7``."""
        return f"{self.path}:{' ' if self.unit else ''}{self.unit}{self.places[row]}"


def load(settings: DataSettings) -> Source:
    """Read, check and convert both files.

    Raises:
        UserError: one line per kind of mistake.
    """
    folder = Path(settings.path)
    names = settings.columns
    interactions_path = find_file(folder, settings.interactions, "interactions")
    items_path = find_file(folder, settings.items, "items")
    items = read_items(items_path, names)
    interactions = read_table(
        interactions_path, {name: names.get(name, name) for name in INTERACTION_COLUMNS}
    )
    require_columns(
        interactions,
        ["user_id", "item_id", "timestamp", *(["split"] if settings.split == "own" else [])],
        names,
    )
    problems: list[str] = []
    item_frame = convert_items(items, problems)
    interaction_frame = convert_interactions(interactions, settings.split == "own", problems)
    if not problems:
        known = members(interaction_frame["item_id"], item_frame["item_id"])
        complain(interactions, "item_id", ~known, f"an item_id of {items_path}", problems)
    if problems:
        raise UserError("\n".join(problems))
    notes = note_cut_lists(items, "description") + note_calendar_numbers(
        interactions, interaction_frame["timestamp"].to_numpy()
    )
    return Source(item_frame, interaction_frame, notes=notes)


def read_items(path: Path, names: dict[str, str]) -> Table:
    """The item columns of a file; ``names`` is ``data.columns``.

    Raises:
        UserError: it cannot be read, or lacks ids, titles or a column that ``names`` mentions.
    """
    items = read_table(
        path,
        {
            **{name: names.get(name, name) for name in ITEM_COLUMNS},
            "item_id": names.get("items_item_id", names.get("item_id", "item_id")),
        },
    )
    require_columns(items, ["item_id", "title"], names)
    return items


def find_file(folder: Path, name: str, word: str) -> Path:
    """``folder/name``, or the one table in the folder whose name holds ``word``.

    Raises:
        UserError: there is no such file or folder, or more than one table could be meant.
    """
    if not folder.is_dir():
        raise UserError(
            f"data.path: no folder '{folder}'; give the folder that holds the {word} file"
        )
    present = sorted(p.name for p in folder.iterdir() if p.is_file())
    if name:
        if name in present or (folder / name).is_file():
            return folder / name
        near = difflib.get_close_matches(name, present, n=1)
        hint = (
            f"; did you mean '{near[0]}'?"
            if near
            else f"; the folder holds {', '.join(present[:SHOWN]) or 'no files'}"
        )
        raise UserError(f"data.{word}: {folder / name}: no such file{hint}")
    found = [p for p in present if word in p.lower() and p.lower().endswith(SUFFIXES)]
    if len(found) != 1:
        got = f"found {len(found)} ({', '.join(found)})" if found else "found none"
        raise UserError(
            f"data.{word}: is empty and {folder} should then hold exactly one table named *{word}* "
            f"({', '.join(SUFFIXES)}), {got}; name the file with data.{word}"
        )
    return folder / found[0]


def read_table(path: Path, wanted: dict[str, str]) -> Table:
    """Read the wanted columns of a file; a column that the file lacks is left out.

    Args:
        path: a file with one of ``SUFFIXES``.
        wanted: our name -> the file's name.

    Raises:
        UserError: wrong kind of file, no rows, damaged, not UTF-8, or rows that do not fit the header.
    """
    lower = path.name.lower()
    if not lower.endswith(SUFFIXES):
        raise UserError(f"{path}: unknown kind of table, expected one of {', '.join(SUFFIXES)}")
    try:
        if lower.endswith(".parquet"):
            table = _read_parquet(path, wanted)
        elif ".jsonl" in lower:
            table = _read_jsonl(path, wanted)
        else:
            table = _read_csv(path, wanted, "\t" if ".tsv" in lower else ",")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 text ({error.reason}); convert it to UTF-8"
        ) from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: is damaged or cut off ({error}); copy it again") from None
    if not table.places:
        raise UserError(f"{path}: has no rows; expected at least one")
    return table


def _open_text(path: Path) -> Any:
    """Text handle that undoes gzip and a byte order mark."""
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _lines(handle: Iterator[str], path: Path) -> Iterator[str]:
    """Lines of a text file, refusing the NUL bytes that a crash or a wrong encoding leaves behind."""
    for number, line in enumerate(handle, 1):
        if "\0" in line:
            raise UserError(
                f"{path}:{number}: holds a NUL byte, so it is damaged or not UTF-8 text; export it again"
            )
        yield line


def _read_csv(path: Path, wanted: dict[str, str], delimiter: str) -> Table:
    csv.field_size_limit(2**31 - 1)
    with _open_text(path) as handle:
        reader = csv.reader(_lines(handle, path), delimiter=delimiter, strict=True)
        start = 0
        try:
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise UserError(f"{path}: is empty; expected a header line and rows")
            repeated = [name for name in header if header.count(name) > 1]
            if repeated:
                raise UserError(
                    f"{path}:1: column '{repeated[0]}' appears twice in the header; rename one"
                )
            use = {
                ours: header.index(theirs) for ours, theirs in wanted.items() if theirs in header
            }
            columns: dict[str, list[Any]] = {ours: [] for ours in use}
            places: list[int] = []
            shared: dict[str, str] = {}
            start = reader.line_num
            for row in reader:
                if len(row) != len(header) and row:
                    raise UserError(
                        f"{path}:{start + 1}: got {len(row)} cells, expected {len(header)} as in the header; "
                        "quote cells that hold the separator, and check that the file is not cut off"
                    )
                if row:
                    places.append(start + 1)
                    for ours, at in use.items():
                        columns[ours].append(shared.setdefault(row[at], row[at]))
                start = reader.line_num
        except csv.Error as error:
            raise UserError(
                f"{path}:{start + 1}: not valid CSV ({error}); a quote is not closed or not doubled, "
                "or the file is cut off"
            ) from None
    return Table(path, columns, header, places)


def _read_jsonl(path: Path, wanted: dict[str, str]) -> Table:
    columns: dict[str, list[Any]] = {ours: [] for ours in wanted}
    places: list[int] = []
    header: dict[str, None] = {}
    with _open_text(path) as handle:
        for number, line in enumerate(_lines(handle, path), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{path}:{number}: not valid JSON ({error}); expected one object per line"
                ) from None
            if not isinstance(record, dict):
                raise UserError(
                    f"{path}:{number}: got a {type(record).__name__}, expected one JSON object per line"
                )
            places.append(number)
            header.update(dict.fromkeys(record))
            for ours, theirs in wanted.items():
                columns[ours].append(record.get(theirs))
    return Table(
        path,
        {ours: values for ours, values in columns.items() if wanted[ours] in header},
        list(header),
        places,
    )


def _read_parquet(path: Path, wanted: dict[str, str]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            header = file.schema_arrow.names
            use = {ours: theirs for ours, theirs in wanted.items() if theirs in header}
            table = file.read(columns=sorted(set(use.values())))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]}); it is damaged or cut off"
        ) from None
    columns = {ours: table.column(theirs).to_pylist() for ours, theirs in use.items()}
    return Table(path, columns, header, list(range(1, table.num_rows + 1)), "row ")


def require_columns(table: Table, needed: list[str], names: dict[str, str]) -> None:
    """Refuse a table without a needed column, or without one that ``data.columns`` names.

    Raises:
        UserError: one line per column, with the nearest name in the file.
    """
    item_side = "title" in needed
    ours_here = ITEM_COLUMNS if item_side else INTERACTION_COLUMNS
    problems = []
    for ours in dict.fromkeys([*needed, *(name for name in names if name in ours_here)]):
        if ours in table.columns:
            continue
        key = (
            "items_item_id"
            if item_side and ours == "item_id" and "items_item_id" in names
            else ours
        )
        theirs = names.get(key, ours)
        near = [
            match
            for name in (theirs, ours)
            for match in difflib.get_close_matches(name, table.header, n=1, cutoff=0.5)
        ]
        hint = f"; did you mean '{near[0]}'?" if near else ""
        problems.append(
            f"{table.path}: has no column '{theirs}' for {ours}{hint} (its columns: {', '.join(table.header)}); "
            f"set data.columns.{key}"
        )
    if problems:
        raise UserError("\n".join(problems))


def members(ids: pd.Series, of: pd.Series) -> np.ndarray:
    """``(n,)`` bool: which ``ids`` are among the distinct ids ``of``."""
    return pd.Index(of).get_indexer(ids) >= 0


def complain(
    table: Table, column: str, bad: np.ndarray, expected: str, problems: list[str]
) -> None:
    """Append one line for all rows where ``bad`` is true: the first in full, the next few by place, and the count."""
    rows = np.flatnonzero(bad)
    if not len(rows):
        return
    cell = table.columns[column][rows[0]]
    line = f"{table.at(rows[0])}: {column}: got {cells.shorten(cell)}, expected {expected}"
    if len(rows) > 1:
        others = ", ".join(str(table.places[row]) for row in rows[1:SHOWN])
        line += f" ({len(rows)} rows in all, next: {others}{', ...' if len(rows) > SHOWN else ''})"
    problems.append(line)


def convert_items(table: Table, problems: list[str]) -> pd.DataFrame:
    """Checked items with cleaned texts; mistakes are appended to ``problems``."""
    ids = [cells.read_id(cell) for cell in table.columns["item_id"]]
    complain(table, "item_id", np.array([not item for item in ids]), "an id", problems)
    seen: dict[str, int] = {}
    twice = np.array([seen.setdefault(item, row) != row for row, item in enumerate(ids)])
    if twice.any():
        first = seen[ids[int(np.flatnonzero(twice)[0])]]
        complain(
            table,
            "item_id",
            twice,
            f"every id once, but it is already at {table.at(first)}; keep one",
            problems,
        )
    blank = [""] * len(ids)
    titles = _column(table, "title", cells.read_text, "text", problems)
    complain(
        table,
        "title",
        np.array([title == "" for title in titles]),
        "a title; fill it in, or remove the item",
        problems,
    )
    separated = "a list, or names between ' > ', '|', ';' or ','"
    categories = _column(table, "categories", cells.read_categories, separated, problems)
    return pd.DataFrame(
        {
            "item_id": ids,
            "title": titles,
            "description": _column(
                table, "description", cells.read_text, "text or a list of texts", problems
            )
            or blank,
            "brand": _column(table, "brand", cells.read_text, "text", problems) or blank,
            "categories": categories or [[] for _ in ids],
        }
    )


def convert_interactions(table: Table, own_split: bool, problems: list[str]) -> pd.DataFrame:
    """Checked interactions in file order; mistakes are appended to ``problems``."""
    frame = {}
    for column in ("user_id", "item_id"):
        frame[column] = [cells.read_id(cell) for cell in table.columns[column]]
        complain(table, column, np.array([not text for text in frame[column]]), "an id", problems)
    seconds, bad = cells.read_timestamps(table.columns["timestamp"])
    complain(
        table,
        "timestamp",
        bad,
        "unix seconds, unix milliseconds or an ISO date such as 2024-05-31T12:00:00Z",
        problems,
    )
    frame["timestamp"] = seconds
    frame["rating"] = np.full(len(seconds), np.nan)
    if "rating" in table.columns:
        given = pd.Series(table.columns["rating"], dtype=object)
        numbers = pd.to_numeric(given, errors="coerce").to_numpy(float)
        empty = (given.isna() | (given == "")).to_numpy()
        complain(table, "rating", ~empty & ~np.isfinite(numbers), "a number, or nothing", problems)
        frame["rating"] = numbers
    frame["split"] = [""] * len(seconds)
    if own_split:
        frame["split"] = table.columns["split"]
        complain(
            table,
            "split",
            ~np.isin(np.array(frame["split"], dtype=object), SPLITS),
            "train, valid or test",
            problems,
        )
    return pd.DataFrame(frame)


def _column(
    table: Table, column: str, read: Callable[[Any], Any], expected: str, problems: list[str]
) -> list[Any]:
    """``read`` applied to every cell; cells that it refuses (ValueError) are complained about. [] if there is no column."""
    values, bad = [], []
    for cell in table.columns.get(column, []):
        try:
            values.append(read(cell))
            bad.append(False)
        except ValueError:
            values.append(None)
            bad.append(True)
    complain(table, column, np.array(bad, dtype=bool), expected, problems)
    return values


def note_cut_lists(table: Table, column: str) -> tuple[str, ...]:
    """A line on the cells that begin like a list of texts but are none, which ``cells.read_text`` read as far as they go."""
    cut = []
    for row, cell in enumerate(table.columns.get(column, [])):
        if isinstance(cell, str) and cells.looks_like_texts(cell):
            try:
                cells.read_list(cell)
            except ValueError:
                cut.append(row)
    if not cut:
        return ()
    return (
        f"{table.at(cut[0])}: {column}: begins like a list but is cut off or damaged; its text was kept as far as it goes "
        f"({len(cut)} such rows)",
    )


def note_calendar_numbers(table: Table, seconds: np.ndarray) -> tuple[str, ...]:
    """A line if every timestamp reads like a date 20240531 written as a number, which is taken as seconds of August 1970."""
    if len(seconds) and seconds.min() >= 19_000_101 and seconds.max() <= 29_991_231:
        first = table.columns["timestamp"][0]
        return (
            f"{table.at(0)}: timestamp: {first} is read as unix seconds (August 1970), as are all others; "
            "if these are dates, write them as 2024-05-31",
        )
    return ()
