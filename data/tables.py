"""Source ``tables``: two files of your own, one of interactions and one of items, as CSV, TSV, JSONL or Parquet.

    data:
      source: tables
      path: my_shop                       # holds interactions.csv and items.jsonl, say
      columns: {user_id: customer, item_id: sku, timestamp: bought_at, title: name}

Everything is read as text first, so an id 001 stays 001. Nothing is repaired or skipped: every mistake is reported with
file, row, column, value and what was expected, all kinds together. The cell readers here (``clean_text``,
``read_list``, ``read_categories``) also serve the other sources.
"""

from __future__ import annotations

import ast
import csv
import difflib
import gzip
import html
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from minionerec.config import UserError
from minionerec.settings import DataSettings

ITEM_COLUMNS = ("item_id", "title", "description", "brand", "categories")
INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp", "rating", "split")
SPLITS = ("train", "valid", "test")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet")
MILLISECONDS_ABOVE = 1e11    # as seconds this is the year 5138, as milliseconds March 1973
NO_TIME_ABOVE = 1e14         # micro- and nanoseconds of our days lie above
SHOWN = 5                    # rows named per kind of mistake

SCRIPTS = re.compile(r"<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
TAGS = re.compile(r"</?[a-zA-Z][^<>]*>|<!--.*?-->", re.DOTALL)


class Source(NamedTuple):
    """What every source hands to ``prepare.py``.

    ``items`` has the columns of ``ITEM_COLUMNS``; ``interactions`` has user_id, item_id, timestamp (int64 seconds),
    rating (float64, NaN if unknown) and split ("" where the source carries none), in source order.
    """

    items: pd.DataFrame
    interactions: pd.DataFrame
    given_sids: dict[str, list[int]] | None = None    # codes from 0 that came with the data
    dropped: dict[str, int] = {}                      # what a documented filter of the source left out, by reason
    timestamps: str = "unix seconds UTC"              # or "order only"
    notes: tuple[str, ...] = ()                       # what is legal but worth knowing, one line each
    filtered: bool = False                            # the filters of the settings have run already


class Table(NamedTuple):
    """Cells of one file under our column names, and where each row stands in it."""

    path: Path
    columns: dict[str, list[Any]]    # our name -> cells: str (CSV), or what JSON or Parquet hold
    header: list[str]                # the file's own column names
    places: list[int] | list[str]    # line (CSV, JSONL), row from 1 (Parquet) or item id
    unit: str = ""                   # "" for lines, else "row " or "item "

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
    items = read_table(items_path, {**{name: names.get(name, name) for name in ITEM_COLUMNS},
                                    "item_id": names.get("items_item_id", names.get("item_id", "item_id"))})
    interactions = read_table(interactions_path, {name: names.get(name, name) for name in INTERACTION_COLUMNS})
    require_columns(items, ["item_id", "title"], names)
    require_columns(interactions, ["user_id", "item_id", "timestamp", *(["split"] if settings.split == "own" else [])], names)
    problems: list[str] = []
    item_frame = convert_items(items, problems)
    interaction_frame = convert_interactions(interactions, settings.split == "own", problems)
    if not problems:
        known = interaction_frame["item_id"].isin(item_frame["item_id"]).to_numpy()
        complain(interactions, "item_id", ~known, f"an item_id of {items_path}", problems)
    if problems:
        raise UserError("\n".join(problems))
    notes = note_cut_lists(items, "description") + note_calendar_numbers(interactions, interaction_frame["timestamp"].to_numpy())
    return Source(item_frame, interaction_frame, notes=notes)


def find_file(folder: Path, name: str, word: str) -> Path:
    """``folder/name``, or the one table in the folder whose name holds ``word``.

    Raises:
        UserError: there is no such file or folder, or more than one table could be meant.
    """
    if not folder.is_dir():
        raise UserError(f"data.path: no folder '{folder}'; give the folder that holds the {word} file")
    present = sorted(p.name for p in folder.iterdir() if p.is_file())
    if name:
        if name in present or (folder / name).is_file():
            return folder / name
        near = difflib.get_close_matches(name, present, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; the folder holds {', '.join(present[:SHOWN]) or 'no files'}"
        raise UserError(f"data.{word}: {folder / name}: no such file{hint}")
    found = [p for p in present if word in p.lower() and p.lower().endswith(SUFFIXES)]
    if len(found) != 1:
        got = f"found {len(found)} ({', '.join(found)})" if found else "found none"
        raise UserError(f"data.{word}: is empty and {folder} should then hold exactly one table named *{word}* "
                        f"({', '.join(SUFFIXES)}), {got}; name the file with data.{word}")
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
        raise UserError(f"{path}: is not UTF-8 text ({error.reason}); convert it to UTF-8") from None
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
            raise UserError(f"{path}:{number}: holds a NUL byte, so it is damaged or not UTF-8 text; export it again")
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
                raise UserError(f"{path}:1: column '{repeated[0]}' appears twice in the header; rename one")
            use = {ours: header.index(theirs) for ours, theirs in wanted.items() if theirs in header}
            columns: dict[str, list[Any]] = {ours: [] for ours in use}
            places: list[int] = []
            shared: dict[str, str] = {}
            start = reader.line_num
            for cells in reader:
                if len(cells) != len(header) and cells:
                    raise UserError(f"{path}:{start + 1}: got {len(cells)} cells, expected {len(header)} as in the header; "
                                    "quote cells that hold the separator, and check that the file is not cut off")
                if cells:
                    places.append(start + 1)
                    for ours, at in use.items():
                        columns[ours].append(shared.setdefault(cells[at], cells[at]))
                start = reader.line_num
        except csv.Error as error:
            raise UserError(f"{path}:{start + 1}: not valid CSV ({error}); a quote is not closed or not doubled, "
                            "or the file is cut off") from None
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
                raise UserError(f"{path}:{number}: not valid JSON ({error}); expected one object per line") from None
            if not isinstance(record, dict):
                raise UserError(f"{path}:{number}: got a {type(record).__name__}, expected one JSON object per line")
            places.append(number)
            header.update(dict.fromkeys(record))
            for ours, theirs in wanted.items():
                columns[ours].append(record.get(theirs))
    return Table(path, {ours: cells for ours, cells in columns.items() if wanted[ours] in header}, list(header), places)


def _read_parquet(path: Path, wanted: dict[str, str]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            header = file.schema_arrow.names
            use = {ours: theirs for ours, theirs in wanted.items() if theirs in header}
            table = file.read(columns=sorted(set(use.values())))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]}); it is damaged or cut off") from None
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
        key = "items_item_id" if item_side and ours == "item_id" and "items_item_id" in names else ours
        theirs = names.get(key, ours)
        near = difflib.get_close_matches(theirs, table.header, n=1, cutoff=0.5) or difflib.get_close_matches(ours, table.header, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        problems.append(f"{table.path}: has no column '{theirs}' for {ours}{hint} (its columns: {', '.join(table.header)}); "
                        f"set data.columns.{key}")
    if problems:
        raise UserError("\n".join(problems))


def complain(table: Table, column: str, bad: np.ndarray, expected: str, problems: list[str]) -> None:
    """Append one line for all rows where ``bad`` is true: the first in full, the next few by place, and the count."""
    rows = np.flatnonzero(bad)
    if not len(rows):
        return
    cell = table.columns[column][rows[0]]
    line = f"{table.at(rows[0])}: {column}: got {shorten(cell)}, expected {expected}"
    if len(rows) > 1:
        others = ", ".join(str(table.places[row]) for row in rows[1:SHOWN])
        line += f" ({len(rows)} rows in all, next: {others}{', ...' if len(rows) > SHOWN else ''})"
    problems.append(line)


def shorten(cell: Any) -> str:
    """A cell as shown in a message, at most 60 characters."""
    text = repr(cell)
    return text if len(text) <= 60 else text[:57] + "..."


def convert_items(table: Table, problems: list[str]) -> pd.DataFrame:
    """Checked items with cleaned texts; mistakes are appended to ``problems``."""
    ids = [read_id(cell) for cell in table.columns["item_id"]]
    complain(table, "item_id", np.array([not item for item in ids]), "an id", problems)
    seen: dict[str, int] = {}
    twice = np.array([seen.setdefault(item, row) != row for row, item in enumerate(ids)])
    if twice.any():
        first = seen[ids[int(np.flatnonzero(twice)[0])]]
        complain(table, "item_id", twice, f"every id once, but it is already at {table.at(first)}; keep one", problems)
    blank = [""] * len(ids)
    titles = _column(table, "title", read_text, "text", problems)
    complain(table, "title", np.array([title == "" for title in titles]), "a title; fill it in, or remove the item", problems)
    return pd.DataFrame({
        "item_id": ids,
        "title": titles,
        "description": _column(table, "description", read_text, "text or a list of texts", problems) or blank,
        "brand": _column(table, "brand", read_text, "text", problems) or blank,
        "categories": _column(table, "categories", read_categories, "a list, or names between ' > ', '|', ';' or ','", problems)
        or [[] for _ in ids],
    })


def convert_interactions(table: Table, own_split: bool, problems: list[str]) -> pd.DataFrame:
    """Checked interactions in file order; mistakes are appended to ``problems``."""
    frame = {}
    for column in ("user_id", "item_id"):
        frame[column] = [read_id(cell) for cell in table.columns[column]]
        complain(table, column, np.array([not text for text in frame[column]]), "an id", problems)
    seconds, bad = read_timestamps(table.columns["timestamp"])
    complain(table, "timestamp", bad, "unix seconds, unix milliseconds or an ISO date such as 2024-05-31T12:00:00Z", problems)
    frame["timestamp"] = seconds
    frame["rating"] = np.full(len(seconds), np.nan)
    if "rating" in table.columns:
        cells = pd.Series(table.columns["rating"], dtype=object)
        numbers = pd.to_numeric(cells, errors="coerce").to_numpy(float)
        empty = (cells.isna() | (cells == "")).to_numpy()
        complain(table, "rating", ~empty & ~np.isfinite(numbers), "a number, or nothing", problems)
        frame["rating"] = numbers
    frame["split"] = [""] * len(seconds)
    if own_split:
        frame["split"] = table.columns["split"]
        complain(table, "split", ~np.isin(np.array(frame["split"], dtype=object), SPLITS), "train, valid or test", problems)
    return pd.DataFrame(frame)


def _column(table: Table, column: str, read: Callable[[Any], Any], expected: str, problems: list[str]) -> list[Any]:
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


def read_id(cell: Any) -> str:
    """An id as text, without surrounding blanks; whole floats (a nullable Parquet column) lose their ``.0``."""
    if cell is None or isinstance(cell, float) and math.isnan(cell):
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def read_timestamps(cells: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Unix seconds in UTC from numbers (seconds, or milliseconds above 1e11) or ISO dates (UTC unless they say otherwise).

    Returns:
        ``(n,)`` int64 seconds, 0 where unreadable, and ``(n,)`` bool: unreadable.
    """
    series = pd.Series(cells, dtype=object)
    numbers = pd.to_numeric(series, errors="coerce").astype(float).to_numpy(copy=True)
    dates = ~np.isfinite(numbers) | np.array([isinstance(cell, bool) or hasattr(cell, "year") for cell in cells])
    if dates.any():
        parsed = pd.to_datetime(series[dates].astype(str), format="ISO8601", utc=True, errors="coerce")
        seconds = (parsed - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
        numbers[dates] = seconds.to_numpy(float)
    numbers = np.where((numbers > MILLISECONDS_ABOVE) & ~dates, numbers / 1000, numbers)
    bad = ~np.isfinite(numbers) | (numbers < 0) | (numbers > NO_TIME_ABOVE / 1000)
    return np.where(bad, 0, np.floor(np.where(bad, 0, numbers))).astype(np.int64), bad


def note_calendar_numbers(table: Table, seconds: np.ndarray) -> tuple[str, ...]:
    """A line if every timestamp reads like a date 20240531 written as a number, which is taken as seconds of August 1970."""
    if len(seconds) and seconds.min() >= 19_000_101 and seconds.max() <= 29_991_231:
        return (f"{table.at(0)}: timestamp: {table.columns['timestamp'][0]} is read as unix seconds (August 1970), as are all others; "
                "if these are dates, write them as 2024-05-31",)
    return ()


def clean_text(text: str) -> str:
    """One line of plain text: entities resolved, scripts and tags removed, white space collapsed.

        >>> clean_text("Bolts &amp; nuts<br>5 &lt; 6")
        'Bolts & nuts 5 < 6'
    """
    if "&" in text or "<" in text:
        text = TAGS.sub(" ", SCRIPTS.sub(" ", html.unescape(text)))
    return " ".join(text.split())


def read_literal(text: str) -> Any:
    """A JSON or Python literal; nothing is executed.

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"{shorten(text)} is not a list") from None


def read_list(cell: Any) -> list[Any]:
    """A list cell: a list already, or the text of one.

    Raises:
        ValueError: anything else.
    """
    value = read_literal(cell) if isinstance(cell, str) else cell
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{shorten(cell)} is not a list")
    return list(value)


def read_text(cell: Any) -> str:
    """Plain text of a cell: text, a list of paragraphs, or the literal of such a list; nothing at all gives "".

    A literal that was cut off (real catalogues hold some) is read up to where it ends; ``note_cut_lists`` reports them.

    Raises:
        ValueError: a mapping.
    """
    if cell is None or isinstance(cell, float) and math.isnan(cell):
        return ""
    if isinstance(cell, str) and looks_like_texts(cell):
        try:
            cell = read_list(cell)
        except ValueError:
            cell = re.split(r"""['"], ['"]""", cell[2:])
    if isinstance(cell, (list, tuple)):
        return clean_text(" ".join(str(part) for part in cell if part is not None))
    if isinstance(cell, dict):
        raise ValueError("a mapping is not text")
    return clean_text(str(cell))


def looks_like_texts(cell: str) -> bool:
    """Whether a cell begins like the literal of a list of texts."""
    return cell.startswith(("['", '["')) or cell.strip() == "[]"


def note_cut_lists(table: Table, column: str) -> tuple[str, ...]:
    """A line on the cells that begin like a list of texts but are none, which ``read_text`` read as far as they go."""
    cut = []
    for row, cell in enumerate(table.columns.get(column, [])):
        if isinstance(cell, str) and looks_like_texts(cell):
            try:
                read_list(cell)
            except ValueError:
                cut.append(row)
    if not cut:
        return ()
    return (f"{table.at(cut[0])}: {column}: begins like a list but is cut off or damaged; its text was kept as far as it goes "
            f"({len(cut)} such rows)",)


def read_categories(cell: Any) -> list[str]:
    """Category names from broad to narrow: a list, its literal, or text split at ``" > "``, ``|``, ``;`` or ``,``.

    Of several paths (a list of lists, as in Amazon 2014) the first is taken.

        >>> read_categories("Tools &amp; Home > Drills"), read_categories("['Tools', 'Drills']")
        (['Tools & Home', 'Drills'], ['Tools', 'Drills'])

    Raises:
        ValueError: it begins like a list but is none.
    """
    if cell is None or isinstance(cell, float) and math.isnan(cell):
        return []
    if isinstance(cell, str):
        if cell.strip().startswith("["):
            return read_categories(read_list(cell.strip()))
        text = clean_text(cell)
        separator = next((mark for mark in (" > ", "|", ";", ",") if mark in text), None)
        cell = text.split(separator) if separator else [text]
    if cell and isinstance(cell[0], (list, tuple)):
        cell = cell[0]
    names = [clean_text(str(name)) for name in cell if name is not None]
    return [name for name in names if name]
