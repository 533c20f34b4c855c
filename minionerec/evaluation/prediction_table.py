"""``predictions.parquet``: the columns of ``predictions.jsonl`` under their names.

Ids are texts, stored as numbers of the distinct ones of a row group, and scores are float64: what
is read from it is what is read from the lines, and any program can read it.

Shapes: n rows, T items of all lists, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minionerec.catalogue.sources.growing import Numbered, Numbers
from minionerec.evaluation.predictions import Columns, Predictions
from minionerec.evaluation.row_places import repeats
from minionerec.evaluation.rows import NOTHING
from minionerec.experiment.files import sha256_file

COPY_OF = b"sha256 of predictions.jsonl"
IDS = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "user_id": IDS,
        "target_item_id": IDS,
        "item_ids": pa.list_(IDS),
        "scores": pa.list_(pa.float64()),
    }
)
CODED = ["user_id", "target_item_id", "item_ids.list.element"]  # as paths of Parquet
SCORES = "scores.list.element"
MOST_DICTIONARY = 2**30  # bytes: ids are numbers however many there are
BATCH_ROWS = 16_384  # read at a time


def opened(file: Path) -> pq.ParquetWriter:
    """A table without rows; the kinds of its columns are those of texts, not of their numbers."""
    return pq.ParquetWriter(
        file,
        SCHEMA,
        store_schema=False,
        compression="zstd",
        use_dictionary=CODED,
        dictionary_pagesize_limit=MOST_DICTIONARY,
        column_encoding={SCORES: "BYTE_STREAM_SPLIT"},
        write_statistics=False,
    )


def append(table: pq.ParquetWriter, rows: Columns) -> None:
    """Write rows as a row group."""
    user_ids = pa.array(rows.user_ids, pa.string())
    item_ids = pa.array(rows.item_ids, pa.string())
    ends = pa.array(rows.ends.astype(np.int32))
    items = numbered(rows.items, item_ids)
    columns = [
        numbered(rows.users, user_ids),
        numbered(rows.targets, item_ids),
        pa.ListArray.from_arrays(ends, items),
        pa.ListArray.from_arrays(ends, pa.array(rows.scores)),
    ]
    group = pa.table(columns, schema=SCHEMA)
    table.write_table(group, row_group_size=len(group))


def numbered(numbers: np.ndarray, texts: pa.StringArray) -> pa.DictionaryArray:
    """Ids by their numbers, without those that no row has."""
    is_used = np.zeros(len(texts), dtype=bool)
    is_used[numbers] = True
    new_number = np.cumsum(is_used, dtype=np.int32) - 1
    used = texts.filter(pa.array(is_used))
    indices = pa.array(new_number[numbers], pa.int32())
    return pa.DictionaryArray.from_arrays(indices, used)


def say_copy_of(table: pq.ParquetWriter, digest: str) -> None:
    """Note of which ``predictions.jsonl`` all rows are, by its sha256."""
    table.add_key_value_metadata({COPY_OF: digest.encode()})


def read(file: Path, lines: Path) -> Predictions | None:
    """The rows of a table; None where it is no copy of ``lines``, or a row is no proper one."""
    try:
        with pq.ParquetFile(
            file,
            read_dictionary=CODED,
            pre_buffer=False,
        ) as table:
            notes = table.metadata.metadata or {}
            noted = notes.get(COPY_OF, b"")
            if noted.decode() != sha256_file(lines):
                return None
            columns = _read_columns(table)
        pa.default_memory_pool().release_unused()  # Arrow keeps what it read with otherwise
    except (pa.ArrowException, OSError):
        return None
    return Predictions(columns) if _are_proper(columns) else None


def _read_columns(table: pq.ParquetFile) -> Columns:
    num_rows = table.metadata.num_rows
    listed = 0  # items, at most: an empty list counts as one
    for group in range(table.num_row_groups):
        column = table.metadata.row_group(group).column(2)
        listed += column.num_values
    users = Numbered(IDS, num_rows)
    for batch in _batches(table, "user_id"):
        users.append(batch)
    # Targets, and then what lists hold, are numbers of the same texts
    items = Numbered(IDS, num_rows + listed)
    for batch in _batches(table, "target_item_id"):
        items.append(batch)
    lengths = [np.zeros(1, dtype=np.int64)]
    for batch in _batches(table, "item_ids"):
        of_batch = pc.list_value_length(batch)
        lengths.append(of_batch.to_numpy())
        items.append(batch.flatten())
    scores = Numbers(pa.float64(), listed)
    for batch in _batches(table, "scores"):
        scores.append(batch.flatten())
    all_users = users.whole().chunk(0)
    all_items = items.whole().chunk(0)
    numbers = all_items.indices.to_numpy()
    return Columns(
        all_users.indices.to_numpy(),
        numbers[:num_rows],
        numbers[num_rows:],
        scores.numbers[: scores.rows],
        np.cumsum(np.concatenate(lengths)),
        all_users.dictionary.to_pylist(),
        all_items.dictionary.to_pylist(),
    )


def _batches(table: pq.ParquetFile, name: str) -> Iterator[pa.Array]:
    """A column; a batch of two row groups would have lists of two kinds of numbers."""
    for group in range(table.num_row_groups):
        batches = table.iter_batches(
            BATCH_ROWS,
            row_groups=[group],
            columns=[name],
        )
        for batch in batches:
            yield batch.column(name)


def _are_proper(rows: Columns) -> bool:
    """Whether every item has a number as its score, and no list holds an item twice."""
    if len(rows.scores) != len(rows.items):
        return False
    for start in range(0, len(rows.users), BATCH_ROWS):
        ends = rows.ends[start : start + BATCH_ROWS + 1]
        lengths = np.diff(ends)
        width = int(lengths.max())
        lists = np.full(
            (len(lengths), width),
            NOTHING,
            np.int32,
        )  # (B, width)
        is_there = np.arange(width) < lengths[:, None]
        lists[is_there] = rows.items[ends[0] : ends[-1]]
        if repeats(lists).any():
            return False
    return bool(np.isfinite(rows.scores).all())
