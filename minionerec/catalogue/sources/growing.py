"""Columns that grow batch by batch into memory that they keep.

Of numbers and of texts that are numbered there is one copy at any time, in an array of numpy whose
memory goes back to the system once nobody needs it. Whole columns of Arrow would be there twice
while their parts are joined, and every part would bring a list of texts of its own.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa

LEAST_MERGED = 2**20  # texts


class Column(Protocol):
    """What takes the batches of a column."""

    def append(self, batch: pa.Array) -> None:
        """The next rows."""

    def whole(self) -> pa.ChunkedArray:
        """All rows."""


def column_of(kind: pa.DataType, length: int) -> Column:
    """A column of a kind that will have so many rows."""
    if pa.types.is_dictionary(kind):
        return Numbered(kind, length)
    kinds_of_numbers = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_timestamp,
    )
    for is_kind in kinds_of_numbers:
        if is_kind(kind):
            return Numbers(kind, length)
    return Chunks(kind)


class Chunks:
    """Any column, as Arrow gives its parts."""

    def __init__(self, kind: pa.DataType):
        self._kind = kind
        self._parts: list[pa.Array] = []

    def append(self, batch: pa.Array) -> None:
        """The next rows."""
        self._parts.append(batch)

    def whole(self) -> pa.ChunkedArray:
        """All rows."""
        return pa.chunked_array(self._parts, self._kind)


class Numbers:
    """A column of numbers or times, of which some may be null."""

    def __init__(self, kind: pa.DataType, length: int):
        self._kind = kind
        self._stored = kind
        if pa.types.is_timestamp(kind):
            self._stored = pa.int64()  # of ticks
        dtype = self._stored.to_pandas_dtype()
        self.numbers = np.empty(length, dtype)
        self._is_null: np.ndarray | None = None  # (n,) bool
        self.rows = 0  # that are there

    def append(self, batch: pa.Array) -> None:
        """The next rows."""
        stored = batch.cast(self._stored)
        end = self.rows + len(stored)
        rows = slice(self.rows, end)
        self.rows = end
        if stored.null_count:
            if self._is_null is None:
                length = len(self.numbers)
                self._is_null = np.zeros(length, dtype=bool)
            nulls = stored.is_null()
            self._is_null[rows] = nulls.to_numpy(zero_copy_only=False)
            stored = stored.fill_null(0)
        self.numbers[rows] = stored.to_numpy()

    def whole(self) -> pa.ChunkedArray:
        """All rows, as one chunk that numpy need not copy."""
        array = pa.array(
            self.numbers[: self.rows],
            self._stored,
            mask=self._is_null,
        )
        return pa.chunked_array([array]).cast(self._kind)


class Numbered:
    """A column in which each batch is numbers of texts of its own; the whole has one list of them.

    Texts wait until they are twice as many as all before: so what waits is never much more than
    what is there, and what is there is not looked up again too often.
    """

    def __init__(self, kind: pa.DictionaryType, length: int):
        self._texts = pa.array([], kind.value_type)  # of the batches that do not wait
        self._numbers = Numbers(pa.int32(), length)
        self._waiting: list[pa.Array] = []  # the texts of batches
        self._waiting_texts = 0
        self._rows: list[slice] = []  # of these batches: they hold numbers of their own texts

    def append(self, batch: pa.DictionaryArray) -> None:
        """The next rows."""
        start = self._numbers.rows
        self._numbers.append(batch.indices)
        texts = batch.dictionary
        if not len(texts):  # all rows are null
            return
        self._waiting.append(texts)
        self._waiting_texts += len(texts)
        self._rows.append(slice(start, self._numbers.rows))
        enough = 2 * len(self._texts)
        if self._waiting_texts > max(enough, LEAST_MERGED):
            self._merge()

    def _merge(self) -> None:
        chunks = []
        for texts in (self._texts, *self._waiting):
            own = np.arange(len(texts), dtype=np.int32)
            chunk = pa.DictionaryArray.from_arrays(pa.array(own), texts)
            chunks.append(chunk)
        self._waiting = []
        self._waiting_texts = 0
        unified = pa.chunked_array(chunks).unify_dictionaries()
        self._texts = unified.chunk(0).dictionary
        for rows, chunk in zip(self._rows, unified.chunks[1:], strict=True):
            new_number = chunk.indices.to_numpy()
            numbers = self._numbers.numbers[rows]
            numbers[:] = new_number[numbers]
        self._rows = []

    def whole(self) -> pa.ChunkedArray:
        """All rows, as one chunk."""
        self._merge()
        indices = self._numbers.whole().chunk(0)
        array = pa.DictionaryArray.from_arrays(indices, self._texts)
        return pa.chunked_array([array])
