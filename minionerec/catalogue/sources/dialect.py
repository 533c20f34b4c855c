"""How a text table is written: its separator, its quotes, the lines in front of its header."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

COMMA, TAB, DOUBLE_COLON = ",", "\t", "::"
SEPARATORS = (COMMA, ";", TAB, "|", DOUBLE_COLON)
EXPECTED_BY_SUFFIX = {".csv": COMMA, ".tsv": TAB, ".inter": TAB, ".item": TAB, ".dat": DOUBLE_COLON}
QUOTED = (COMMA, ";", "|")  # tab-separated text has no quoting: a quote in it is a character
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # what Excel writes and understands
RECBOLE_TYPES = frozenset(("token", "token_seq", "float", "float_seq"))
NAMES = {TAB: "a tab", COMMA: "','", ";": "';'", "|": "'|'", DOUBLE_COLON: "'::'"}

csv.field_size_limit(2**31 - 1)


class Dialect(NamedTuple):
    """How the lines of one file become cells."""

    separator: str
    escape: str | None = None  # what stands in front of a quote inside quotes, if it is not doubled
    skipped: int = 0  # lines in front of the header

    @property
    def quoted(self) -> bool:
        """Whether a cell may stand in quotes."""
        return self.separator in QUOTED


class BadRowError(Exception):
    """A row that cannot be read: a quote is not closed or not doubled."""

    def __init__(self, line: int, reason: str):
        super().__init__(reason)
        self.line = line


class Row(NamedTuple):
    """The cells of one row and the lines that it takes, from 1."""

    first_line: int
    last_line: int
    cells: list[str]


def detect(first_lines: list[str], expected: str, wanted: Collection[str]) -> Dialect:
    """The dialect of a file.

    Args:
        first_lines: the first two lines of the file.
        expected: the separator that the file's name promises. Another one is taken only if the
            header gives more of the wanted names with it, or if it alone cuts the header at all.
        wanted: names of columns that the header should hold.
    """
    said = SEPARATOR_LINE.fullmatch(first_lines[0].strip()) if first_lines else None
    if said:
        return Dialect(said[1], skipped=1)
    header = first_lines[0] if first_lines else ""
    found = {}
    cut = {}
    for separator in SEPARATORS:
        found[separator], cut[separator] = _score(header, separator, wanted)
    best = max(SEPARATORS, key=lambda mark: (found[mark], mark == expected))
    if not found[best] and cut[expected] < 2:
        best = max(SEPARATORS, key=lambda mark: (cut[mark], mark == expected))
    return Dialect(best)


def _score(header: str, separator: str, wanted: Collection[str]) -> tuple[int, int]:
    """How many wanted names a separator finds in the header, and how many cells it cuts."""
    found = next(rows([header], Dialect(separator), strict=False), None)
    names = found.cells if found else []
    return sum(plain_name(name) in wanted or name in wanted for name in names), len(names)


def plain_name(name: str) -> str:
    """A column's name without RecBole's type: ``user_id:token`` is ``user_id``."""
    start, _, kind = name.rpartition(":")
    return start if kind in RECBOLE_TYPES and start else name


def rows(lines: Iterable[str], dialect: Dialect, strict: bool = True) -> Iterator[Row]:
    """The rows of a file, header included; empty lines are none.

    Raises:
        BadRowError: with the row's first line.
    """
    if not dialect.quoted:
        for number, line in enumerate(lines, 1):
            text = line.rstrip("\r\n")
            if number > dialect.skipped and text:
                yield Row(number, number, text.split(dialect.separator))
        return
    reader = csv.reader(
        _without_first(lines, dialect.skipped),
        delimiter=dialect.separator,
        escapechar=dialect.escape,
        strict=strict,
    )
    start = dialect.skipped
    try:
        for found in reader:
            end = dialect.skipped + reader.line_num
            if found:
                yield Row(start + 1, end, found)
            start = end
    except csv.Error as error:
        raise BadRowError(start + 1, str(error)) from None


def _without_first(lines: Iterable[str], count: int) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number >= count:
            yield line
