"""Rows of a ``predictions.jsonl`` as arrays: fifty items are 0.6 kB so, as objects 7.7 kB.

Shapes: n rows, T items of all lists.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from minionerec.catalogue.compact import MadeOnRead

Row = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """Rows and what they name by its number."""

    users: np.ndarray  # (n,) int32 number of the user
    targets: np.ndarray  # (n,) int32 number of the item
    items: np.ndarray  # (T,) int32
    scores: np.ndarray  # (T,) float64
    ends: np.ndarray  # (n + 1,) int64 where each list ends
    user_ids: Sequence[str]
    item_ids: Sequence[str]


class Predictions(MadeOnRead[Row]):
    """Looks like a list of rows; a row is made when it is asked for, and changing it changes none.

    >>> row = {"user_id": "u", "target_item_id": "a", "item_ids": ["b", "a"], "scores": [2.0, 1.0]}
    >>> rows = Predictions.of([row, {**row, "item_ids": [], "scores": []}])
    >>> rows[0] == row, rows[1]["item_ids"], len(rows)
    (True, [], 2)
    """

    def __init__(self, columns: Columns):
        self.columns = columns

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Predictions:
        """From rows, each of which is let go before the next is asked for."""
        # A name that is not known yet gets the next number
        user_numbers: defaultdict[str, int] = defaultdict(count().__next__)
        item_numbers: defaultdict[str, int] = defaultdict(count().__next__)
        users = array("i")
        targets = array("i")
        items = array("i")
        scores = array("d")
        ends = array("q", [0])
        for row in rows:
            users.append(user_numbers[row["user_id"]])
            targets.append(item_numbers[row["target_item_id"]])
            numbers = map(item_numbers.__getitem__, row["item_ids"])
            # Whole lists at once: twice as fast as one number after the other
            items.fromlist(list(numbers))
            scores.fromlist(list(row["scores"]))
            ends.append(len(items))
        columns = Columns(
            np.asarray(users),
            np.asarray(targets),
            np.asarray(items),
            np.asarray(scores),
            np.asarray(ends),
            list(user_numbers),
            list(item_numbers),
        )
        return cls(columns)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.columns.users)

    def entry(self, number: int) -> Row:
        """One row."""
        all_rows = self.columns
        start = all_rows.ends[number]
        end = all_rows.ends[number + 1]
        listed = slice(start, end)
        user = all_rows.users[number]
        target = all_rows.targets[number]
        item_ids = all_rows.item_ids
        return {
            "user_id": all_rows.user_ids[user],
            "target_item_id": item_ids[target],
            "item_ids": [item_ids[item] for item in all_rows.items[listed].tolist()],
            "scores": all_rows.scores[listed].tolist(),
        }
