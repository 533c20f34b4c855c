"""Reads the wanted columns of one file or folder of part files.

CSV and its relatives, JSON, Parquet.

Everything is read as it stands: an id 001 stays 001. Columns that nobody wants are not looked at.
"""

from __future__ import annotations

import array
import gzip
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from minionerec.catalogue.compact import MadeOnRead
from minionerec.catalogue.sources import cells, dialect, files, growing, layouts, table
from minionerec.catalogue.sources.columns import BLOCK, Cells, Collected, joined
from minionerec.catalogue.sources.dialect import BadRowError, Dialect
from minionerec.catalogue.sources.table import Table
from minionerec.errors import UserError
from minionerec.experiment.files import RepeatedKeyError, read_json

TEXT_SUFFIXES = tuple(dialect.EXPECTED_BY_SUFFIX)
JSON_SUFFIXES = (".jsonl", ".json")
PLAIN_SUFFIXES = TEXT_SUFFIXES + JSON_SUFFIXES
SUFFIXES = (*PLAIN_SUFFIXES, *(f"{suffix}.gz" for suffix in PLAIN_SUFFIXES), ".parquet")
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
SEQUENCE = ":token_seq"  # RecBole: words with blanks between them
BATCH_ROWS = 2**20  # of a Parquet file, read at a time
REPEATED = ("user_id", "item_id", "split")  # texts that are many times in a table of interactions
WRAPPED_SHARE = 0.5  # of a column's cells stand in quotes: then they are no part of the text


def read_table(path: Path, wanted: dict[str, str]) -> Table:
    """Read the wanted columns of a file; a column that the file lacks is left out.

    Args:
        path: a file with one of ``SUFFIXES``, or a folder of such files.
        wanted: our name -> the file's name.

    Raises:
        UserError: wrong kind of file, no rows, damaged, not UTF-8, or rows that do not fit the
            header.
    """
    if path.is_dir():
        return _read_folder(path, wanted)
    kind = kind_of(path)
    try:
        if kind == ".parquet":
            read = _read_parquet(path, wanted)
        elif kind in JSON_SUFFIXES:
            read = _read_json(path, wanted)
        else:
            read = _read_text(path, wanted)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 text ({error.reason}); convert it to UTF-8 "
            "(in Excel: Save as, 'CSV UTF-8')"
        ) from None
    except DAMAGED as error:
        raise UserError(f"{path}: is damaged or cut off ({error}); copy it again") from None
    if not read.places:
        raise UserError(f"{path}: has no rows; expected at least one")
    return read


def kind_of(path: Path) -> str:
    """The suffix that says how to read a file, ``.gz`` aside.

    Raises:
        UserError: it is none of ``SUFFIXES``.
    """
    name = path.name.lower()
    for suffix in (*PLAIN_SUFFIXES, ".parquet"):
        if name.endswith((suffix, f"{suffix}.gz")) and not name.endswith(".parquet.gz"):
            return suffix
    hint = "; in Excel: Save as, 'CSV UTF-8'" if name.endswith((".xlsx", ".xls")) else ""
    raise UserError(f"{path}: unknown kind of table, expected one of {', '.join(SUFFIXES)}{hint}")


def is_table(path: Path) -> bool:
    """Whether a file, or some file of a folder of parts, has one of ``SUFFIXES``."""
    if path.is_dir():
        return bool(_parts(path))
    return path.name.lower().endswith(SUFFIXES)


# ---------------------------------------------------------------------------------- part files


def _parts(folder: Path) -> list[Path]:
    """The tables in a folder, by name.

    What begins with "_" or "." is another program's book-keeping.
    """
    return [
        file
        for file in sorted(folder.iterdir())
        if file.is_file()
        and not file.name.startswith(("_", "."))
        and file.name.lower().endswith(SUFFIXES)
    ]


def _read_folder(folder: Path, wanted: dict[str, str]) -> Table:
    """The parts of a folder (as Spark writes them) below each other.

    Raises:
        UserError: there are none, or they do not have the same columns.
    """
    parts = _parts(folder)
    if not parts:
        raise UserError(
            f"{folder}: is a folder without a table in it, expected part files "
            f"({', '.join(SUFFIXES)})"
        )
    blocks: dict[str, list[Sequence[Any]]] = {}
    header: list[str] = []
    places: list[tuple[str, Sequence[int | str]]] = []
    notes: list[str] = []
    for part in parts:
        read = read_table(part, wanted)
        if not blocks:
            blocks = {ours: [] for ours in read.columns}
            header = read.header
        if read.columns.keys() != blocks.keys():
            raise UserError(
                f"{part}: its columns are {', '.join(read.header)}, expected those of {parts[0]}: "
                f"{', '.join(header)}"
            )
        for ours, values in read.columns.items():
            blocks[ours].append(values)
        places.append((f"{part.name}{read.unit}", read.places))
        notes.extend(read.notes)
    notes.append(f"{folder}: {len(parts)} part files are read below each other")
    columns = {ours: joined(blocks.pop(ours)) for ours in list(blocks)}
    return Table(folder, columns, header, PlacesInParts(places), "/", tuple(notes))


class PlacesInParts(MadeOnRead[str]):
    """Where the rows of part files stand: ``part-3.csv:7``, written when it is asked for."""

    def __init__(self, parts: Sequence[tuple[str, Sequence[int | str]]]):
        self._parts = parts  # what stands in front of the place, and the places
        self._starts = np.cumsum([0, *(len(places) for _, places in parts)])

    def __len__(self) -> int:
        """How many rows there are."""
        return int(self._starts[-1])

    def entry(self, number: int) -> str:
        """The place of one row."""
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        start, places = self._parts[part]
        return f"{start}{places[number - int(self._starts[part])]}"


# ------------------------------------------------------------------------------- separated text


def _read_text(path: Path, wanted: dict[str, str]) -> Table:
    """A file of separated cells; see ``dialect``."""
    encoding = "utf-8-sig"
    notes = []
    if kind_of(path) == ".dat" and not files.is_utf8(path):
        encoding = "latin-1"  # as MovieLens' own movies.dat
        notes.append(f"{path}: is not UTF-8; read as Latin-1, as MovieLens' files are")
    with files.open_text(path, encoding) as handle:
        first_lines = list(itertools.islice(files.lines(handle, path), 2))
    expected = dialect.EXPECTED_BY_SUFFIX[kind_of(path)]
    found = dialect.detect(first_lines, expected, wanted.values())
    if found.separator != expected:
        notes.append(f"{path}: its cells are separated by {dialect.NAMES[found.separator]}")
    try:
        read = _read_rows(path, wanted, found, encoding)
    except BadRowError as error:
        read = _read_escaped(path, wanted, found, encoding, error)
    return read._replace(notes=(*notes, *read.notes))


def _read_escaped(
    path: Path, wanted: dict[str, str], found: Dialect, encoding: str, reason: BadRowError
) -> Table:
    """The file once more, with a backslash in front of quotes.

    If that fails too, the first reason counts.
    """
    try:
        read = _read_rows(path, wanted, found._replace(escape="\\"), encoding)
    except (BadRowError, UserError):
        raise UserError(
            f"{path}:{reason.line}: not valid CSV ({reason}); a quote is not closed or not "
            "doubled, or the file is cut off"
        ) from None
    note = (
        f"{path}: quotes inside quotes have a backslash in front of them, "
        f"from line {reason.line} on"
    )
    return read._replace(notes=(*read.notes, note))


def _read_rows(path: Path, wanted: dict[str, str], found: Dialect, encoding: str) -> Table:
    """The wanted columns of all rows.

    Raises:
        BadRowError: a row's quotes.
        UserError: a repeated column, or a row whose cells do not fit the header.
    """
    with files.open_text(path, encoding) as handle:
        rows = dialect.rows(files.lines(handle, path), found)
        first = next(rows, None)
        if first is None:
            raise UserError(f"{path}: is empty; expected a header line and rows")
        header = [name.strip() for name in first.cells]
        use = _positions(path, first.first_line, header, wanted)
        first_line = ""
        orders: tuple[tuple[str, ...], ...] = ()
        if not use and table.looks_like_data(header):
            first_line = found.separator.join(first.cells)
            orders = layouts.without_header(first.cells, found.separator, wanted)
        if orders:
            use = {ours: place for place, ours in enumerate(orders[0]) if ours in wanted}
            rows = itertools.chain([first], rows)
        columns, places, several = _collect(path, rows, use, len(header))
    notes = []
    if len(orders) == 1:
        notes.append(f"{path}: has no header; read as {', '.join(orders[0])}, MovieLens' layout")
    if several:
        notes.append(
            f"{path}:{several[0]}: a cell in quotes spans several lines ({len(several)} such rows)"
        )
    if places and not files.ends_with_a_line_end(path):
        last = ", ".join(values[len(values) - 1] for values in columns.values())
        notes.append(
            f"{path}:{places[-1]}: the last line has no end ({cells.shorten(last)}); if the file "
            "was cut off there, copy it again"
        )
    if "categories" in use and header[use["categories"]].endswith(SEQUENCE):
        columns["categories"] = [cell.split() for cell in columns["categories"]]
    if not found.quoted:
        notes.extend(_note_wrapped(path, columns, places))
    return Table(path, columns, header, places, ":", tuple(notes), first_line, orders)


def _positions(path: Path, line: int, header: list[str], wanted: dict[str, str]) -> dict[str, int]:
    """Our name -> place in a row. A name is the file's own, or RecBole's without its type.

    Raises:
        UserError: a wanted column is there twice.
    """
    plain = [dialect.plain_name(name) for name in header]
    known = layouts.known_names(header, wanted)
    use = {}
    for ours, theirs in wanted.items():
        names = header if theirs in header else plain
        if theirs not in names and theirs == ours:
            theirs = known.get(ours, theirs)
        if names.count(theirs) > 1:
            raise UserError(
                f"{path}:{line}: column '{theirs}' appears twice in the header; rename one"
            )
        if theirs in names:
            use[ours] = names.index(theirs)
    return use


def _collect(
    path: Path, rows: Iterator[dialect.Row], use: dict[str, int], width: int
) -> tuple[dict[str, Sequence[Any]], Sequence[int], list[int]]:
    """The wanted cells, the line of every row, and the lines of rows that span several."""
    columns = Collected(use)
    places = array.array("q")
    several: list[int] = []
    for row in rows:
        if len(row.cells) != width:
            raise UserError(
                f"{path}:{row.first_line}: got {len(row.cells)} cells, expected {width} as in the "
                "header; quote cells that hold the separator, and check that the file is not cut "
                "off"
            )
        places.append(row.first_line)
        if row.last_line > row.first_line:
            several.append(row.first_line)
        for ours, at in use.items():
            columns.block[ours].append(row.cells[at])
        if len(places) % BLOCK == 0:
            columns.pack()
    return columns.whole(), places, several


def _note_wrapped(
    path: Path, columns: Mapping[str, Sequence[Any]], places: Sequence[int]
) -> list[str]:
    """A line per column whose cells stand in quotes, which tab-separated text has not."""
    notes = []
    for ours, values in columns.items():
        rows = [row for row, cell in enumerate(values) if cell[:1] == '"' == cell[-1:]]
        if len(rows) > WRAPPED_SHARE * len(values):
            notes.append(
                f"{path}:{places[rows[0]]}: {ours}: stands in quotes, which are kept: text "
                f"separated by {dialect.NAMES[dialect.TAB]} has no quoting ({len(rows)} such rows)"
            )
    return notes


# ------------------------------------------------------------------------------------------ JSON


def parse_record(text: str) -> dict[str, Any]:
    """One record of a file: a JSON object, or the Python literal of a dict; nothing is executed.

    Raises:
        ValueError: neither. Its text is the JSON reader's reason.
        TypeError: a literal of another kind. Its text is that kind.
    """
    try:
        record = read_json(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except RepeatedKeyError:
        raise
    except ValueError as error:
        if not text.lstrip().startswith("{"):
            raise
        try:
            record = cells.read_literal(text)
        except ValueError:
            raise error from None
    if not isinstance(record, dict):
        raise TypeError(type(record).__name__)
    return record


def _read_json(path: Path, wanted: dict[str, str]) -> Table:
    """JSON lines, or one JSON array of objects."""
    with files.open_text(path) as handle:
        if kind_of(path) == ".json" and _begins_with_bracket(handle):
            return _collect_records(path, wanted, _records_of_array(path), ": record ")
    return _collect_records(path, wanted, _records_of_lines(path), ":")


def _begins_with_bracket(handle: Iterator[str]) -> bool:
    for line in handle:
        if line.strip():
            return line.lstrip().startswith("[")
    return False


def _records_of_array(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with files.open_text(path) as handle:
        try:
            values = read_json(handle.read())
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: not valid JSON ({error}); expected an array of objects or one object "
                "per line"
            ) from None
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise UserError(
                f"{path}: record {number}: got a {type(value).__name__}, expected a JSON object"
            )
        yield number, value


def _records_of_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with files.open_text(path) as handle:
        for number, line in enumerate(files.lines(handle, path), 1):
            if not line.strip():
                continue
            try:
                yield number, parse_record(line)
            except ValueError as error:
                raise UserError(
                    f"{path}:{number}: not valid JSON ({error}); expected one object per line"
                ) from None
            except TypeError as error:
                raise UserError(
                    f"{path}:{number}: got a {error}, expected one JSON object per line"
                ) from None


def _collect_records(
    path: Path, wanted: dict[str, str], records: Iterator[tuple[int, dict[str, Any]]], unit: str
) -> Table:
    """The wanted fields of all records; a field that some record lacks is None there."""
    columns = Collected(())
    places = array.array("q")
    header: dict[str, None] = {}
    names = dict(wanted)
    for number, record in records:
        if not places:
            names.update(_known_names(record, wanted))
            columns = Collected(names)
        places.append(number)
        header.update(dict.fromkeys(record))
        for ours, theirs in names.items():
            columns.block[ours].append(record.get(theirs))
        if len(places) % BLOCK == 0:
            columns.pack()
    found = columns.whole()
    present = {ours: values for ours, values in found.items() if names[ours] in header}
    return Table(path, present, list(header), places, unit)


def _known_names(record: dict[str, Any], wanted: dict[str, str]) -> dict[str, str]:
    """The names of a known data set for the columns that ``data.columns`` does not name."""
    known = layouts.known_names(record, wanted)
    return {ours: theirs for ours, theirs in known.items() if wanted[ours] == ours}


# --------------------------------------------------------------------------------------- Parquet


def _read_parquet(path: Path, wanted: dict[str, str]) -> Table:
    try:
        metadata = pq.read_metadata(path)
        coded = _coded_columns(metadata.schema, wanted)
        with pq.ParquetFile(
            path, metadata=metadata, read_dictionary=coded, pre_buffer=False
        ) as file:
            header = file.schema_arrow.names
            use = {ours: theirs for ours, theirs in wanted.items() if theirs in header}
            for theirs in use.values():
                if header.count(theirs) > 1:
                    raise UserError(f"{path}: column '{theirs}' is there twice; rename one")
            read = _read_columns(file, sorted(set(use.values())))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]}); "
            "it is damaged or cut off"
        ) from None
    columns: dict[str, Sequence[Any]] = {
        ours: Cells(_decoded(path, theirs, read[theirs])) for ours, theirs in use.items()
    }
    return Table(path, columns, header, range(1, metadata.num_rows + 1), ": row ")


def _read_columns(file: pq.ParquetFile, names: list[str]) -> dict[str, pa.ChunkedArray]:
    """Whole columns, one after the other and each some rows at a time.

    Those of texts that are numbered come first: they need most while they are read.
    """
    kinds = {name: file.schema_arrow.field(name).type for name in names}
    texts_first = sorted(names, key=lambda name: not pa.types.is_dictionary(kinds[name]))
    columns = {}
    for name in texts_first:
        column = growing.column_of(kinds[name], file.metadata.num_rows)
        for batch in file.iter_batches(BATCH_ROWS, columns=[name]):
            column.append(batch.column(name))
        columns[name] = column.whole()
    return columns


def _coded_columns(schema: pq.ParquetSchema, wanted: dict[str, str]) -> list[str]:
    """The columns that are read as numbers of their distinct texts: those of interactions."""
    if "user_id" not in wanted:
        return []
    present = {schema.column(number).path for number in range(len(schema))}
    named = {wanted[ours] for ours in REPEATED if ours in wanted}
    return sorted(named & present)


def _decoded(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of bytes, or of lists of bytes, as text; every other as it is.

    Raises:
        UserError: the bytes are no UTF-8 text.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    target = None
    if _is_bytes(kind):
        target = pa.large_string()
    elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_bytes(kind.value_type):
        target = pa.large_list(pa.large_string())
    if target is None:
        return column
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(kind)
        return column.cast(target)
    except pa.ArrowInvalid:
        raise UserError(
            f"{path}: column '{name}' holds bytes that are not UTF-8 text; write it as text"
        ) from None


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_binary_view,
    )
    return any(test(kind) for test in tests)
