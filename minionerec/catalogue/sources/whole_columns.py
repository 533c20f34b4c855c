"""Columns of texts that Arrow keeps as it read them, since reading changes next to none of them.

Five million titles are 0.3 GB this way, as Python objects twice that and half a minute of work.
Whether reading may change a cell is asked of all cells at once; those that it may change are read
one by one (``cells.py``), so that the result is what it would be without this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from minionerec.catalogue.sources import cells, columns
from minionerec.catalogue.sources.columns import Cells
from minionerec.catalogue.sources.table import Table, read_column

# What ``cells.read_text`` leaves alone: words with single blanks between, and no beginning of an
# entity, of a tag or of a list
WORD = r"[\p{L}\p{M}\p{N}\p{P}\p{S}]+"
WORDS = f"^({WORD}( {WORD})*)?$"
MARKED = r"""[&<]|^\[['"]|^\[\]$"""
MOST_NAMES = 2**14  # distinct names of categories that are looked at one by one


class Column(NamedTuple):
    """A column as it is read."""

    values: Sequence[Any]  # ``Cells`` where Arrow keeps it
    changed: Iterable[int]  # rows that were read one by one; no other differs from its cell


def read_texts(
    table: Table,
    column: str,
    expected: str,
    problems: list[str],
) -> Column:
    """``cells.read_text`` of every cell; cells that it refuses are complained about."""
    texts = _texts_of(table, column)
    if texts is None:
        return _read_all(table, column, cells.read_text, expected, problems)
    is_plain = pc.match_substring_regex(texts, WORDS)
    is_marked = pc.match_substring_regex(texts, MARKED)
    is_strange = pc.or_(pc.invert(is_plain), is_marked)
    flags = is_strange.to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(flags).tolist()
    if not rows:
        return Column(Cells(pa.chunked_array([texts])), rows)
    some = Table(
        table.path,
        {column: texts.take(pa.array(rows)).to_pylist()},
        table.header,
        [table.places[row] for row in rows],
        table.unit,
    )
    read = read_column(some, column, cells.read_text, expected, problems)
    texts = pc.replace_with_mask(texts, is_strange, pa.array(read, texts.type))
    return Column(Cells(pa.chunked_array([texts])), rows)


def read_names(
    table: Table,
    column: str,
    expected: str,
    problems: list[str],
) -> Column:
    """``cells.read_categories`` of every cell, likewise."""
    found = table.columns.get(column)
    if isinstance(found, Cells) and pa.types.is_list(found.values.type):
        lists = found.values.combine_chunks()
        if _are_plain(lists):
            return Column(Cells(pa.chunked_array([lists])), ())
    return _read_all(table, column, cells.read_categories, expected, problems)


def _are_plain(lists: pa.ListArray) -> bool:
    """Whether every list is one of names, and every name as clean as it would be read."""
    names = lists.flatten()
    if lists.null_count or names.null_count or not pa.types.is_string(names.type):
        return False
    distinct = pc.unique(names)
    if len(distinct) > MOST_NAMES:
        return False
    return all(cells.read_categories([name]) == [name] for name in distinct.to_pylist())


def _texts_of(table: Table, column: str) -> pa.LargeStringArray | None:
    """A column of texts, "" where there is none; None for any other."""
    found = table.columns.get(column)
    if not isinstance(found, Cells) or not columns.is_text(found.values.type):
        return None
    whole = found.values.cast(pa.large_string()).combine_chunks()
    return whole.fill_null("") if whole.null_count else whole


def _read_all(
    table: Table,
    column: str,
    read: Callable[[Any], Any],
    expected: str,
    problems: list[str],
) -> Column:
    """A column read cell by cell."""
    values = read_column(table, column, read, expected, problems)
    return Column(values, range(len(values)))


def are_empty(texts: Sequence[Any]) -> np.ndarray:
    """``(n,)`` bool: which texts are ""; one that could not be read is not."""
    if isinstance(texts, Cells):
        found = pc.equal(texts.values, "").fill_null(False)
        return found.to_numpy()
    return np.array([text == "" for text in texts], dtype=bool)


def as_series(values: Sequence[Any]) -> pd.Series:
    """A column for a frame, which shares what Arrow keeps."""
    if not isinstance(values, Cells):
        return pd.Series(values)
    if columns.is_text(values.values.type):
        return values.values.to_pandas()
    return pd.Series(pd.array(values.values, dtype=pd.ArrowDtype(values.values.type)))
