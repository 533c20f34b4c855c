"""Reads single cells of the files that people bring: ids, texts, lists, categories.

Nothing in a cell is executed.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import re
import unicodedata
import warnings
from typing import Any

from minionerec.catalogue.sources.text import LONE_SURROGATE, clean_text

SEPARATORS = (" > ", "|", ";", ",")  # of category names in one text, the first that occurs
EXACT = 2**53  # above, not every whole number is a float: neighbours become one
UNREADABLE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


def shorten(cell: Any) -> str:
    """A cell as shown in a message, at most 60 characters."""
    text = _repr(cell)
    return text if len(text) <= 60 else text[:57] + "..."


def _repr(cell: Any) -> str:
    try:
        return repr(cell)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        return f"a {type(cell).__name__} too large to show"


def is_missing(cell: Any) -> bool:
    """Whether a cell holds nothing: null, or the NaN that other programs write for it."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def read_id(cell: Any) -> str:
    """An id as text, without surrounding blanks.

    Whole floats (a nullable Parquet column) lose their ``.0``; a missing id is "".
    """
    if isinstance(cell, str):
        return cell.strip()
    if is_missing(cell):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def lost_digits(cell: Any) -> bool:
    """Whether an id is a number that has no room for all digits of one, or true or false."""
    return isinstance(cell, bool) or (isinstance(cell, float) and abs(cell) >= EXACT)


def as_seen(text: str) -> str:
    """An id without what no reader sees: its Unicode form, and characters without a width."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(letter for letter in composed if unicodedata.category(letter) != "Cf")


def has_half_characters(text: str) -> bool:
    """Whether a text holds a lone surrogate, which no file can store."""
    return not text.isascii() and LONE_SURROGATE.search(text) is not None


def read_literal(text: str) -> Any:
    """A JSON or Python literal; nothing is executed.

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except UNREADABLE:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "invalid escape sequence", about other people's text
            return ast.literal_eval(text)
    except UNREADABLE:
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
    """Plain text of a cell: text, a list of paragraphs, or the literal of such a list.

    Nothing at all gives "". A literal that was cut off (real catalogues hold some) is read up to
    where it ends; ``table.note_cut_lists`` reports them.

    Raises:
        ValueError: a mapping, or a list of anything but texts and numbers.
    """
    if is_missing(cell):
        return ""
    if isinstance(cell, str):
        if not looks_like_texts(cell):
            return clean_text(cell)
        try:
            cell = read_list(cell)
        except ValueError:
            cell = re.split(r"""['"], ['"]""", cell[2:])
    if isinstance(cell, (list, tuple)):
        return clean_text(" ".join(_plain(part) for part in cell if not is_missing(part)))
    return clean_text(_plain(cell))


def _plain(value: Any) -> str:
    """A text or a number as text.

    Raises:
        ValueError: it has parts.
    """
    if isinstance(value, (list, tuple, dict, set)):
        raise ValueError("a list or mapping is not text")
    return str(value)


def looks_like_texts(cell: str) -> bool:
    """Whether a cell begins like the literal of a list of texts."""
    return cell.startswith(("['", '["')) or cell.strip() == "[]"


def read_categories(cell: Any) -> list[str]:
    """Category names from broad to narrow: a list, its literal, or separated text.

    Text is cleaned first and then split at the first of ``" > "``, ``|``, ``;``, ``,`` that it
    holds. Of several paths (a list of lists, as in Amazon 2014) the first is taken.

        >>> read_categories("Tools &amp; Home > Drills"), read_categories("['Tools', 'Drills']")
        (['Tools & Home', 'Drills'], ['Tools', 'Drills'])

    Raises:
        ValueError: it begins like a list but is none, or is neither a list nor text.
    """
    if is_missing(cell):
        return []
    if isinstance(cell, str):
        text = cell.strip()
        names = read_list(text) if text.startswith("[") else _split(clean_text(text))
    elif isinstance(cell, (list, tuple)):
        names = list(cell)
    else:
        raise ValueError(f"{shorten(cell)} is not a list of names")
    if names and isinstance(names[0], (list, tuple)):
        names = list(names[0])
    cleaned = [_clean_name(name) for name in names if not is_missing(name)]
    return [name for name in cleaned if name]


def _clean_name(name: Any) -> str:
    return _clean_category(name) if isinstance(name, str) else clean_text(_plain(name))


@functools.lru_cache(maxsize=2**14)
def _clean_category(name: str) -> str:
    """A category's name; a catalogue repeats few of them."""
    return clean_text(name)


def _split(text: str) -> list[str]:
    for separator in SEPARATORS:
        if separator in text:
            return text.split(separator)
    return [text]
