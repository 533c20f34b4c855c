"""Reads single cells of the files that people bring: ids, times, texts, lists, categories. Nothing in a cell is executed."""

from __future__ import annotations

import ast
import html
import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd

MILLISECONDS_ABOVE = 1e11  # as seconds this is the year 5138, as milliseconds March 1973
NO_TIME_ABOVE = 1e14  # micro- and nanoseconds of our days lie above

SCRIPTS = re.compile(r"<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
TAGS = re.compile(r"</?[a-zA-Z][^<>]*>|<!--.*?-->", re.DOTALL)


def shorten(cell: Any) -> str:
    """A cell as shown in a message, at most 60 characters."""
    text = repr(cell)
    return text if len(text) <= 60 else text[:57] + "..."


def read_id(cell: Any) -> str:
    """An id as text, without surrounding blanks; whole floats (a nullable Parquet column) lose their ``.0``."""
    if cell is None or isinstance(cell, float) and math.isnan(cell):
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def read_timestamps(values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Unix seconds in UTC from numbers (seconds, or milliseconds above 1e11) or ISO dates (UTC unless they say otherwise).

    Returns:
        ``(n,)`` int64 seconds, 0 where unreadable, and ``(n,)`` bool: unreadable.
    """
    series = pd.Series(values, dtype=object)
    numbers = pd.to_numeric(series, errors="coerce").astype(float).to_numpy(copy=True)
    dates = ~np.isfinite(numbers) | np.array(
        [isinstance(cell, bool) or hasattr(cell, "year") for cell in values]
    )
    if dates.any():
        parsed = pd.to_datetime(
            series[dates].astype(str), format="ISO8601", utc=True, errors="coerce"
        )
        seconds = (parsed - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
        numbers[dates] = seconds.to_numpy(float)
    numbers = np.where((numbers > MILLISECONDS_ABOVE) & ~dates, numbers / 1000, numbers)
    bad = ~np.isfinite(numbers) | (numbers < 0) | (numbers > NO_TIME_ABOVE / 1000)
    return np.where(bad, 0, np.floor(np.where(bad, 0, numbers))).astype(np.int64), bad


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

    A literal that was cut off (real catalogues hold some) is read up to where it ends; ``tables.note_cut_lists`` reports them.

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
