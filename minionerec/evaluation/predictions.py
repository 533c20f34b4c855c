"""Rows of a ``predictions.jsonl`` as arrays: fifty items are 0.6 kB so, as objects 7.7 kB.

Shapes: n rows, T items of all lists.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

from minionerec.catalogue.compact import MadeOnRead

Row = dict[str, Any]


class Predictions(MadeOnRead[Row]):
    """Looks like a list of rows; a row is made when it is asked for, and changing it changes none.

    >>> row = {"user_id": "u", "target_item_id": "a", "item_ids": ["b", "a"], "scores": [2.0, 1.0]}
    >>> rows = Predictions([row, {**row, "item_ids": [], "scores": []}])
    >>> rows[0] == row, rows[1]["item_ids"], len(rows)
    (True, [], 2)
    """

    def __init__(self, rows: Iterable[Row]):
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        self._users = array("i")  # (n,) number of the user
        self._targets = array("i")  # (n,) number of the item
        self._items = array("i")  # (T,)
        self._scores = array("d")  # (T,)
        self._ends = array("q", [0])  # (n + 1,) where each list ends
        for row in rows:
            user = users.setdefault(row["user_id"], len(users))
            self._users.append(user)
            target = items.setdefault(row["target_item_id"], len(items))
            self._targets.append(target)
            for item in row["item_ids"]:
                number = items.setdefault(item, len(items))
                self._items.append(number)
            self._scores.extend(row["scores"])
            self._ends.append(len(self._items))
        self._user_ids = list(users)
        self._item_ids = list(items)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._users)

    def entry(self, number: int) -> Row:
        """One row."""
        start = self._ends[number]
        end = self._ends[number + 1]
        listed = slice(start, end)
        user = self._users[number]
        target = self._targets[number]
        return {
            "user_id": self._user_ids[user],
            "target_item_id": self._item_ids[target],
            "item_ids": [self._item_ids[item] for item in self._items[listed]],
            "scores": self._scores[listed].tolist(),
        }
