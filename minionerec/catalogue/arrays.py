"""Work on long columns a block of rows at a time, so that no second copy of one is ever held.

Fifty million rows are 200 MB as int32. Where numpy is given all of them at once, ``values[rows]``
and ``np.bincount`` first make 400 MB of int64 numbers of the rows; a block of them is nothing.

Shapes: n rows, D distinct codes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK_ROWS = 2**20


def blocks(length: int) -> Iterator[slice]:
    """The rows of a column of this length, one block after the other."""
    for start in range(0, length, BLOCK_ROWS):
        end = min(start + BLOCK_ROWS, length)
        yield slice(start, end)


def gathered(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``values[rows]``; ``rows`` are numbers, or a bool mask."""
    if rows.dtype == bool:
        return values[rows]
    found = np.empty(len(rows), values.dtype)
    for block in blocks(len(rows)):
        some = rows[block]
        found[block] = values[some]
    return found


def inverse(order: np.ndarray) -> np.ndarray:
    """``(n,)`` int32 the place of each row in an order.

    >>> inverse(np.array([2, 0, 1])).tolist()
    [1, 2, 0]
    """
    place = np.empty(len(order), dtype=np.int32)
    for block in blocks(len(order)):
        rows = order[block]
        place[rows] = np.arange(block.start, block.stop, dtype=np.int32)
    return place


def counts(codes: np.ndarray, length: int, keep: np.ndarray | None = None) -> np.ndarray:
    """``(length,)`` how often each code occurs, among the rows that a ``(n,)`` mask keeps.

    >>> codes = np.array([2, 0, 2])
    >>> counts(codes, 4), counts(codes, 3, codes > 0)
    (array([1, 0, 2, 0]), array([0, 0, 2]))
    """
    found = np.zeros(length, dtype=np.int64)
    for rows in blocks(len(codes)):
        some = codes[rows]
        if keep is not None:
            some = some[keep[rows]]
        if len(some):
            of_block = np.bincount(some)
            size = len(of_block)
            found[:size] += of_block
    return found


def size_of(codes: np.ndarray) -> int:
    """One more than the largest code; 0 if there are none."""
    return int(codes.max(initial=-1)) + 1


def first_rows(codes: np.ndarray, length: int) -> np.ndarray:
    """``(length,)`` the first row of each code; n for a code that no row has.

    >>> first_rows(np.array([2, 0, 2]), 4)
    array([1, 3, 0, 3])
    """
    found = np.full(length, len(codes))
    last_first = list(blocks(len(codes)))[::-1]
    for rows in last_first:
        # Of several rows with one code numpy keeps the last that it writes
        backwards = np.arange(rows.start, rows.stop)[::-1]
        of_block = codes[rows][::-1]
        found[of_block] = backwards
    return found


def by_first_rows(codes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes numbered anew in the order of their first rows, as ``pd.factorize`` does.

    >>> by_first_rows(np.array([2, 0, 2]), 4)
    (array([0, 1, 0], dtype=int32), array([2, 0]))

    Args:
        codes: ``(n,)`` from 0 to less than ``length``.

    Returns:
        ``(n,)`` int32 new codes, and ``(D,)`` the old code of each.
    """
    first = first_rows(codes, length)
    used = np.flatnonzero(first < len(codes))
    order = np.argsort(first[used])
    used = used[order]
    numbers = np.arange(len(used), dtype=np.int32)
    if np.array_equal(used, numbers):
        return codes.astype(np.int32, copy=False), used
    new_code = np.empty(length, dtype=np.int32)
    new_code[used] = numbers
    return gathered(new_code, codes), used


def stable_order(values: np.ndarray) -> np.ndarray:
    """``(n,)`` the rows by value, equal values in their order: as a stable ``np.argsort``.

    A number and its row fit into 64 bits unless a table is absurd; sorting those is five times as
    fast as sorting rows by their numbers. Rows are int32 where that holds them.

    >>> stable_order(np.array([7, 5, 7, 5])).tolist()
    [1, 3, 0, 2]
    """
    length = len(values)
    kind = np.int32 if length <= np.iinfo(np.int32).max else np.int64
    if not length:
        return np.empty(0, dtype=kind)
    row_bits = length.bit_length()
    low = int(values.min())
    if (int(values.max()) - low).bit_length() + row_bits > 63:
        return np.argsort(values, kind="stable").astype(kind)
    keys = values.astype(np.int64)
    keys -= low
    keys <<= row_bits
    for rows in blocks(length):
        keys[rows] |= np.arange(rows.start, rows.stop)
    keys.sort()
    keys &= (1 << row_bits) - 1
    return keys.astype(kind)
