"""``predictions.jsonl``, and beside it a copy of its rows that is read eight times as fast.

The lines are what a ranking is: anybody can write them, and change them. ``predictions.parquet``
says of which bytes it is the copy. Where the lines are others by now, or nobody wrote a copy, the
lines are read.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from minionerec.evaluation.predictions import Predictions, Row

LINES = "predictions.jsonl"
TABLE = "predictions.parquet"
ROWS = 32_768  # that are copied at a time


def with_lines(rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    """Every row behind its line."""
    for row in rows:
        yield json.dumps(row, ensure_ascii=False), row


def write(folder: Path, rows: Iterable[tuple[str, Row]]) -> None:
    """Write both files.

    Args:
        folder: without them so far.
        rows: each behind its line; they are let go one after the other.
    """
    from minionerec.evaluation import prediction_table  # Arrow, which reading lines does without

    digest = hashlib.sha256()
    with (
        open(folder / LINES, "wb") as handle,
        prediction_table.opened(folder / TABLE) as table,
    ):

        def written() -> Iterator[Row]:
            for line, row in rows:
                content = f"{line}\n".encode()
                handle.write(content)
                digest.update(content)
                yield row

        found = written()
        while block := Predictions.of(itertools.islice(found, ROWS)):
            prediction_table.append(table, block.columns)
        prediction_table.say_copy_of(table, digest.hexdigest())


def read(file: Path) -> Predictions:
    """The rows of a ``predictions.jsonl`` that a stage has written; lines are not checked."""
    copied = copy_of(file)
    if copied is not None:
        return copied
    with open(file, "rb") as lines:
        return Predictions.of(map(json.loads, lines))


def copy_of(file: Path) -> Predictions | None:
    """The rows of a ``predictions.jsonl`` from the copy beside it.

    None where there is no copy, it is one of other lines, or a row is not as it should be: the
    lines say more about that.
    """
    table = file.with_name(TABLE)
    if file.name != LINES or not table.is_file():
        return None
    from minionerec.evaluation import prediction_table

    return prediction_table.read(table, file)
