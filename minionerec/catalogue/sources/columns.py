"""Columns of cells as Arrow holds them, and the distinct cells of a column.

Ten million cells are 80 to 140 MB this way, as Python objects half a gigabyte and more. What is
asked of every cell is asked of every distinct one: a table has far fewer users than rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from minionerec.catalogue.arrays import by_first_rows, gathered
from minionerec.catalogue.compact import MadeOnRead
from minionerec.catalogue.sources import growing

BLOCK = 65_536  # cells that are Python objects at a time
PLAIN_ID = r"^[!-~]([ -~]*[!-~])?$"
ARROW_TYPES = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
}


class Cells(MadeOnRead[Any]):
    """A column of a file; a cell becomes a Python object when it is asked for."""

    def __init__(self, values: pa.ChunkedArray):
        self.values = values

    def __len__(self) -> int:
        """How many cells there are."""
        return len(self.values)

    def entry(self, number: int) -> Any:
        """One cell."""
        return self.values[number].as_py()

    def __iter__(self) -> Iterator[Any]:
        """One cell after the other."""
        for start in range(0, len(self), BLOCK):
            yield from self.values.slice(start, BLOCK).to_pylist()


class Distinct(NamedTuple):
    """The distinct cells of a column in the order of their first rows; n rows, D cells."""

    cells: Sequence[Any]  # (D,)
    codes: np.ndarray  # (n,) int: which of them a row holds

    def rows(self, of_cells: Sequence[bool]) -> np.ndarray:
        """``(n,)`` bool, from ``(D,)`` flags of the distinct cells."""
        flags = np.asarray(of_cells, dtype=bool)
        if not flags.any():
            return np.zeros(len(self.codes), dtype=bool)
        return flags[self.codes]


def distinct(column: Sequence[Any]) -> Distinct:
    """The distinct cells of a column; 1, 1.0, True and "1" are four."""
    if isinstance(column, Cells):
        try:
            return _of_arrow(column.values)
        except pa.ArrowNotImplementedError:  # lists and other nested cells
            pass
    found: list[Any] = []
    codes = np.empty(len(column), dtype=np.int32)
    seen: dict[Any, int] = {}
    for row, cell in enumerate(column):
        key = (type(cell), cell)
        try:
            code = seen.setdefault(key, len(found))
        except TypeError:  # a list or a mapping: each stands for itself
            code = len(found)
        if code == len(found):
            found.append(cell)
        codes[row] = code
    return Distinct(found, codes)


def _of_arrow(values: pa.ChunkedArray) -> Distinct:
    """As ``distinct``, chunk by chunk."""
    if pa.types.is_dictionary(values.type):
        return _of_dictionaries(values)
    encoded = pc.dictionary_encode(values, null_encoding="encode")
    if not encoded.num_chunks:
        return Distinct([], np.empty(0, dtype=np.int32))
    codes = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    # The last chunk's dictionary holds what was found in all of them
    texts = encoded.chunks[-1].dictionary
    return Distinct(Cells(pa.chunked_array([texts])), np.concatenate(codes))


def _of_dictionaries(values: pa.ChunkedArray) -> Distinct:
    """As ``distinct`` for chunks that are numbers of texts already, each of its own texts."""
    if values.null_count:
        return _of_arrow(values.cast(values.type.value_type))
    unified = values if values.num_chunks == 1 else values.unify_dictionaries()
    indices = [chunk.indices.to_numpy() for chunk in unified.chunks]
    raw = indices[0]
    if len(indices) > 1:
        raw = np.concatenate(indices)
    texts = unified.chunks[-1].dictionary
    # By first rows, and without texts that no row holds
    codes, used = by_first_rows(raw, len(texts))
    if len(used) < len(texts) or codes is not raw:
        texts = texts.take(pa.array(used))
    return Distinct(Cells(pa.chunked_array([texts])), codes)


def is_text(kind: pa.DataType) -> bool:
    """Whether cells of this kind are texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def plain_ids(cells: Sequence[Any]) -> pa.LargeStringArray | None:
    """Cells that are ids as they stand: ASCII without blanks around it; None if any is not."""
    if not isinstance(cells, Cells) or not is_text(cells.values.type) or cells.values.null_count:
        return None
    texts = cells.values.cast(pa.large_string()).combine_chunks()
    are_plain = pc.all(pc.match_substring_regex(texts, PLAIN_ID))
    return texts if are_plain.as_py() else None


def packed(cells: list[Any]) -> pa.Array | list[Any]:
    """Cells of one kind as Arrow holds them; the list itself if Arrow would change a cell."""
    kinds = set(map(type, cells)) - {type(None)}
    kind = ARROW_TYPES.get(kinds.pop()) if len(kinds) == 1 else None
    if kind is None:
        return cells
    try:
        return pa.array(cells, kind)
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):  # half characters, huge numbers
        return cells


class Collected:
    """Columns that grow row by row; only the last ``BLOCK`` of rows are Python objects."""

    def __init__(self, names: Iterable[str]):
        self.block: dict[str, list[Any]] = {name: [] for name in names}  # to append cells to
        self._blocks: dict[str, list[pa.Array | list[Any]]] = {name: [] for name in self.block}

    def pack(self) -> None:
        """Hand what was appended to Arrow."""
        for name, cells in self.block.items():
            self._blocks[name].append(packed(cells))
            self.block[name] = []

    def whole(self) -> dict[str, Sequence[Any]]:
        """All columns, complete."""
        self.pack()
        return {name: joined(blocks) for name, blocks in self._blocks.items()}


def joined(blocks: Sequence[pa.Array | Sequence[Any]]) -> Sequence[Any]:
    """One column of blocks of cells, kept by Arrow if all of them are, and of one kind."""
    arrays: list[pa.Array] = []
    for block in blocks:
        if isinstance(block, Cells):
            arrays.extend(block.values.chunks)
        elif isinstance(block, pa.Array):
            arrays.append(block)
    kinds = {array.type for array in arrays}
    packed_cells = sum(map(len, arrays))
    all_cells = sum(map(len, blocks))
    if len(kinds) == 1 and packed_cells == all_cells:
        whole = growing.column_of(kinds.pop(), all_cells)
        for array in arrays:
            whole.append(array)
        return Cells(whole.whole())
    column: list[Any] = []
    for block in blocks:
        column.extend(block.to_pylist() if isinstance(block, pa.Array) else block)
    return column


class Ids(MadeOnRead[str]):
    """A column of ids as numbers of the distinct ones; n rows, D ids.

    In a frame it is a column of Arrow's dictionaries. The categories of pandas become Python
    objects when they are made: 130 bytes an id.
    """

    def __init__(self, texts: pa.LargeStringArray, codes: np.ndarray):
        self.texts = texts  # (D,)
        self.codes = codes  # (n,) int32

    @classmethod
    def merged(cls, texts: Sequence[str], codes: np.ndarray) -> Ids:
        """From ``(n,)`` codes of texts of which some may be equal."""
        number: dict[str, int] = {}
        new_codes = [number.setdefault(text, len(number)) for text in texts]
        if len(number) < len(texts):
            new_code = np.array(new_codes, dtype=np.int32)
            codes = new_code[codes]
        distinct_texts = list(number)
        return cls(pa.array(distinct_texts, pa.large_string()), codes)

    @classmethod
    def of(cls, column: pd.Series) -> Ids:
        """From the column of a frame."""
        if is_numbered(column):
            coded = pa.array(column.array)
            return cls(coded.dictionary, coded.indices.to_numpy())
        codes, texts = pd.factorize(column)
        return cls(pa.array(texts, pa.large_string()), codes.astype(np.int32))

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.codes)

    def entry(self, number: int) -> str:
        """The id of one row."""
        return self.texts[self.codes[number]].as_py()

    def whole(self) -> pa.LargeStringArray:
        """``(n,)`` every row's text."""
        return self.texts.take(pa.array(self.codes))

    def column(self) -> pd.Series:
        """For a frame, which shares the memory."""
        coded = pa.DictionaryArray.from_arrays(pa.array(self.codes), self.texts)
        kind = pd.ArrowDtype(coded.type)
        return pd.Series(pd.array(coded, dtype=kind))


def is_numbered(column: pd.Series) -> bool:
    """Whether a column is one of ``Ids``."""
    kind = column.dtype
    return isinstance(kind, pd.ArrowDtype) and pa.types.is_dictionary(kind.pyarrow_dtype)


def arrow_column(column: pd.Series, kind: pa.DataType) -> pa.Array:
    """A column of a frame as Arrow writes it."""
    if is_numbered(column):
        return Ids.of(column).whole().cast(kind)
    if isinstance(column.dtype, pd.CategoricalDtype):
        texts = pa.array(column.cat.categories, kind)
        return texts.take(pa.array(column.cat.codes.to_numpy()))
    if isinstance(column.dtype, (pd.StringDtype, pd.ArrowDtype)):
        return pa.array(column.array, kind)
    if column.dtype == object:
        return pa.array(column.tolist(), kind)
    return pa.array(column.to_numpy(), kind, from_pandas=False)


def taken(frame: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Rows of a frame, which is empty afterwards: no more than one column is there twice.

    Args:
        rows: their numbers, or a bool mask.
    """
    columns: dict[str, object] = {}
    for name in frame.columns.tolist():
        column = frame.pop(name)
        if is_numbered(column):
            ids = Ids.of(column)
            codes = gathered(ids.codes, rows)
            columns[name] = Ids(ids.texts, codes).column()
            del ids
        elif isinstance(column.array, pd.arrays.NumpyExtensionArray):
            columns[name] = gathered(column.to_numpy(), rows)
        else:
            columns[name] = column.array[rows]
        del column
    return pd.DataFrame(columns, copy=False)


def codes_of(column: pd.Series) -> np.ndarray:
    """``(n,)`` int32: equal where the texts of a column are."""
    return Ids.of(column).codes


def members(ids: pd.Series, of: pd.Series) -> np.ndarray:
    """``(n,)`` bool: which ``ids`` are among the distinct ids ``of``."""
    own = Ids.of(ids)
    known = pa.array(of, pa.large_string())
    found = pc.is_in(own.texts, value_set=known)
    flags = found.to_numpy(zero_copy_only=False)
    pa.default_memory_pool().release_unused()  # Arrow keeps what it looked up with otherwise
    return gathered(flags, own.codes)


def places_of(ids: pd.Series, of: pd.Series) -> np.ndarray:
    """``(n,)`` int: where ``ids`` stand among the distinct ids ``of``, -1 for those that do not."""
    if not is_numbered(ids):
        return pd.Index(of).get_indexer(ids)
    own = Ids.of(ids)
    known = pa.array(of, pa.large_string())
    found = pc.index_in(own.texts, value_set=known)
    places = found.fill_null(-1).to_numpy()
    pa.default_memory_pool().release_unused()
    return gathered(places, own.codes)
