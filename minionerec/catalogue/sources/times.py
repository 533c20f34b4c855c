"""Times as people write them, to unix seconds in UTC: whole columns at once.

The unit of numbers is recognised by their size, whatever the file is: as seconds, numbers of 10
digits are our days, as milliseconds those of 13, as microseconds of 16, as nanoseconds of 19. A
column has one unit, and a date that could be read in two ways is refused: nothing is guessed cell
by cell.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from minionerec.catalogue.sources.columns import BLOCK, Cells

# unit -> (per second, numbers from here on are in it): 1e11 is the year 5138 in seconds, March 1973
# in milliseconds
UNITS = {
    "seconds": (1, 0.0),
    "milliseconds": (10**3, 1e11),
    "microseconds": (10**6, 1e14),
    "nanoseconds": (10**9, 1e17),
}
NO_TIME_ABOVE = 10**20
LATEST = 10**11  # seconds; "9999-12-31" stands for "never" in many databases and is no time
FIRST_LIKELY = int(datetime(1995, 1, 1, tzinfo=UTC).timestamp())  # the first shops on the web
DAY = 86_400
EXPECTED = "unix seconds, unix milliseconds or an ISO date such as 2024-05-31T12:00:00Z"

# Formats that are tried where a column is neither numbers nor ISO dates; it must be read by just
# one of them.
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
DAYS = ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m-%d-%Y", "%d-%m-%Y", "%Y/%m/%d", "%d-%b-%Y")
WRITTEN_OUT = (
    "%a %b %d %H:%M:%S %z %Y",
    "%a %b %d %H:%M:%S %Y",
    "%a, %d %b %Y %H:%M:%S %z",
    "%b %d, %Y",
    "%d %b %Y",
    "%B %d, %Y",
    "%m %d, %Y",
)
FORMATS = WRITTEN_OUT + tuple(day + clock for day in DAYS for clock in CLOCKS)
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second, of Arrow's timestamps
WHOLE_NUMBER = "^-?[0-9]{1,18}$"  # that 64 bits hold
ISO_DATE = "^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?$"  # no number looks so
TRIED = 200  # cells that a format must read before it is tried on all


class Times(NamedTuple):
    """A column of times; n cells."""

    seconds: np.ndarray  # (n,) int64, 0 where unreadable
    unreadable: np.ndarray  # (n,) bool
    early: np.ndarray  # (n,) bool: a time, but before 1970
    unit: str  # what the column holds: "seconds", "dates", "dates as %d.%m.%Y", ...
    mixed: dict[str, int] = {}  # unit -> first cell in it, where a column holds several
    formats: tuple[str, ...] = ()  # formats that could all be meant


def read_times(values: Sequence[Any], time_format: str = "") -> Times:
    """Read a column of times.

    Args:
        values: numbers, texts or dates; without a zone they are UTC.
        time_format: ``data.time_format``, how every cell is written; empty: recognised.
    """
    if not time_format and isinstance(values, Cells):
        found = _read_whole_column(values.values)
        if found is not None:
            return found
    series = pd.Series(list(values), dtype=object)
    if time_format:
        seconds = _parse(series, time_format)
        return _finish(seconds, f"dates as {time_format}")
    numbers = _numbers(series)
    is_number = np.isfinite(numbers)
    if not is_number.any():
        seconds, unit, formats = _read_dates(series, alone=True)
        return _finish(seconds, unit, formats)
    units = units_of(numbers[is_number])
    if len(units) > 1:
        rows = np.flatnonzero(is_number)
        mixed = {unit: int(rows[first]) for unit, first in units.items()}
        return _finish(np.full(len(series), np.nan), "", mixed=mixed)
    unit = next(iter(units), "seconds")
    seconds = np.floor(numbers / UNITS[unit][0])
    if unit == "nanoseconds":  # a float has no room for all of their digits
        exact = pd.to_numeric(series[is_number])
        seconds[is_number] = exact.to_numpy() // UNITS[unit][0]
    if not is_number.all():
        dates, _, _ = _read_dates(series[~is_number], alone=False)
        seconds[~is_number] = dates
        if np.isfinite(dates).any():
            unit += " and dates"
    return _finish(seconds, unit)


def _read_whole_column(cells: pa.ChunkedArray) -> Times | None:
    """A column in which every cell is a whole number, or every cell a date; None for any other.

    What any other column holds is found out cell by cell; these two never become Python objects.
    """
    kind = cells.type
    if cells.null_count or not len(cells):
        return None
    if pa.types.is_timestamp(kind):
        ticks = cells.cast(pa.int64()).to_numpy()
        return _of_seconds(ticks // TICKS[kind.unit], "dates")
    if pa.types.is_string(kind) and _all_match(cells, WHOLE_NUMBER):
        cells = cells.cast(pa.int64())
    if pa.types.is_integer(cells.type) and kind != pa.uint64():
        return _read_whole_numbers(cells.to_numpy().astype(np.int64, copy=False))
    if pa.types.is_string(kind) and _all_match(cells, ISO_DATE):
        blocks = [_parse(pd.Series(block.to_pylist()), "ISO8601") for block in _blocks(cells)]
        seconds = np.concatenate(blocks)
        if np.isfinite(seconds).all():
            return _finish(seconds, "dates")
    return None


def _all_match(cells: pa.ChunkedArray, pattern: str) -> bool:
    return all(pc.all(pc.match_substring_regex(block, pattern)).as_py() for block in _blocks(cells))


def _blocks(cells: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    for start in range(0, len(cells), BLOCK):
        yield cells.slice(start, BLOCK)


def _read_whole_numbers(numbers: np.ndarray) -> Times | None:
    """``(n,)`` int64 in one unit; None if they are in several."""
    units: set[str] = set()
    for start in range(0, len(numbers), BLOCK):
        units.update(units_of(numbers[start : start + BLOCK]))
    if len(units) > 1:
        return None
    unit = next(iter(units), "seconds")
    per_second, _ = UNITS[unit]
    return _of_seconds(numbers if per_second == 1 else numbers // per_second, unit)


def _of_seconds(seconds: np.ndarray, unit: str) -> Times:
    """As ``_finish``, for ``(n,)`` int64 seconds."""
    early = seconds < 0
    late = seconds > LATEST
    if early.any() or late.any():
        seconds = np.where(early | late, 0, seconds)
    return Times(seconds, late, early, unit)


def units_of(numbers: np.ndarray) -> dict[str, int]:
    """The units in which ``(n,)`` numbers stand, each with the first number in it; zeros fit all.

    >>> units_of(np.array([0, 1538352000, 1538352001]))
    {'seconds': 1}
    """
    size = np.abs(numbers)
    starts = [start for _, start in UNITS.values()]
    place = np.searchsorted(starts, size, side="right") - 1
    place[size == 0] = -1
    found = {}
    for number, unit in enumerate(UNITS):
        rows = np.flatnonzero(place == number)
        if len(rows):
            found[unit] = int(rows[0])
    return found


def _numbers(series: pd.Series) -> np.ndarray:
    """``(n,)`` float64, NaN where a cell is no number or one beyond all times."""
    is_date = series.map(lambda cell: isinstance(cell, bool) or hasattr(cell, "year"))
    is_huge = series.map(lambda cell: isinstance(cell, int) and abs(cell) > NO_TIME_ABOVE)
    numbers = pd.to_numeric(series.where(~(is_date | is_huge), None), errors="coerce")
    found = numbers.astype(float).to_numpy(copy=True)
    found[np.abs(found) > NO_TIME_ABOVE] = np.nan
    return found


def _read_dates(series: pd.Series, alone: bool) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """Seconds as float64, NaN where unreadable; what was read; formats that could all be meant.

    Formats other than ISO are tried only where the whole column is written so (``alone``).
    """
    seconds = _parse(series, "ISO8601")
    if not alone or np.isfinite(seconds).any() or not len(series):
        return seconds, "dates", ()
    start = series[:TRIED]
    likely = [name for name in FORMATS if np.isfinite(_parse(start, name)).all()]
    read = {}
    for name in likely:
        found = _parse(series, name)
        if np.isfinite(found).all():
            read[name] = found
    different = {found.tobytes() for found in read.values()}
    if len(different) == 1:
        name = next(iter(read))
        return read[name], f"dates as {name}", ()
    return seconds, "dates", tuple(read)


def _parse(series: pd.Series, time_format: str) -> np.ndarray:
    """``(n,)`` float64 seconds of dates in one format, NaN where a cell is not written so."""
    parsed = pd.to_datetime(series.astype(str), format=time_format, utc=True, errors="coerce")
    epoch = pd.Timestamp(0, tz="UTC").as_unit("s")  # in nanoseconds the year 9999 does not exist
    return ((parsed - epoch) / pd.Timedelta(seconds=1).as_unit("s")).to_numpy(float)


def _finish(
    seconds: np.ndarray,
    unit: str,
    formats: tuple[str, ...] = (),
    mixed: dict[str, int] | None = None,
) -> Times:
    readable = np.isfinite(seconds)
    early = readable & (np.where(readable, seconds, 0) < 0)
    bad = ~readable | early | (np.where(readable, seconds, 0) > LATEST)
    whole = np.floor(np.where(bad, 0, seconds)).astype(np.int64)
    return Times(whole, bad & ~early, early, unit, mixed or {}, formats)


def expected(times: Times) -> str:
    """What a cell that cannot be read should have held, for a message."""
    if times.unit.startswith("dates as"):
        return f"a date as data.time_format says, {times.unit.removeprefix('dates as ')!r}"
    if times.formats:
        first, second = times.formats[:2]
        return f"one way to read it: both '{first}' and '{second}' fit; set data.time_format to one"
    return EXPECTED


def source_of(unit: str) -> str:
    """How ``stats.json`` and the summary name the times.

    Always seconds, maybe read from other things.
    """
    return "unix seconds UTC" if unit == "seconds" else f"unix seconds UTC, read from {unit}"


def day_of(seconds: int) -> str:
    """``2018-10-01 18:41:31``, or the number itself where no calendar reaches."""
    try:
        return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} seconds"


def range_of(seconds: np.ndarray) -> str:
    """``2018-10-01 18:41:31 to 2018-11-22 17:53:29``."""
    return f"{day_of(int(seconds.min()))} to {day_of(int(seconds.max()))}"


class Doubt(NamedTuple):
    """Times that are probably not what was meant."""

    row: int  # the first of them
    rows: int  # how many they are
    reason: str


def doubt(seconds: np.ndarray, unit: str) -> Doubt | None:
    """Times before 1995 or after tomorrow, and what numbers such as these usually are.

    None if all are likely.

    Args:
        seconds: ``(n,)`` as read.
        unit: ``Times.unit``.
    """
    if not len(seconds):
        return None
    tomorrow = time.time() + DAY
    rows = np.flatnonzero((seconds < FIRST_LIKELY) | (seconds > tomorrow))
    if not len(rows):
        return None
    low = int(seconds.min())
    high = int(seconds.max())
    if unit == "seconds" and low >= 1900 and high <= 2100:
        reason = "if these are years, write dates such as 2001-01-01"
    elif unit == "seconds" and low >= 20_000 and high <= 80_000:
        reason = (
            "if these are a spreadsheet's day numbers, format the column as yyyy-mm-dd there and "
            "export it again"
        )
    elif unit == "seconds" and low >= 19_000_101 and high <= 29_991_231:
        reason = "if these are dates, write them as 2024-05-31"
    else:
        reason = "before 1995 or after tomorrow; is that the right column and unit?"
    return Doubt(int(rows[0]), len(rows), reason)
