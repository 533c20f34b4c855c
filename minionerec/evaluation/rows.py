"""Test rows and their ranked lists as numbers: what everything that is measured is measured on.

A million rows with fifty items each are 200 MB this way; as objects of Python they are 8 GB.

Shapes: n rows, W items of the longest list, N items of the catalogue, T items of all histories.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minionerec.catalogue.compact import Sample, SampleList
from minionerec.errors import UserError

ROW_KEYS = ("user_id", "target_item_id", "item_ids", "scores")
NOTHING = -1  # where a list has ended
ROWS_AT_ONCE = 65_536  # of (rows, W) blocks: bounds memory

Prediction = Mapping[str, Any]


class Histories(NamedTuple):
    """Item indexes before each row's target, oldest first, one row after the other."""

    items: np.ndarray  # (T,)
    lengths: np.ndarray  # (n,)

    @classmethod
    def of(cls, histories: Iterable[Sequence[int]]) -> Histories:
        """The histories end to end."""
        items = array("q")
        lengths = array("q")
        for history in histories:
            items.extend(history)
            lengths.append(len(history))
        return cls(np.frombuffer(items, np.int64), np.frombuffer(lengths, np.int64))

    @property
    def rows(self) -> np.ndarray:
        """``(T,)`` whose history an item stands in."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def last(self) -> np.ndarray:
        """``(n,)`` the latest item, ``NOTHING`` of an empty history."""
        ends = np.cumsum(self.lengths)
        found = np.full(
            len(self.lengths),
            NOTHING,
            np.int64,
        )
        there = self.lengths > 0
        found[there] = self.items[ends[there] - 1]
        return found


@dataclass(frozen=True)
class RankedRows:
    """Rows of a split and the list that each has got.

    ``item_ids`` begins with the catalogue's N; what else was recommended comes after them.
    """

    users: np.ndarray  # (n,) number of each row's user, in the order of the user ids
    targets: np.ndarray  # (n,) item indexes
    items: np.ndarray  # (n, W) item indexes, best first, NOTHING where a list has ended
    item_ids: Sequence[str]
    num_items: int  # N
    histories: Histories | None = None

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.targets)

    def canonical_order(self) -> np.ndarray:
        """``(n,)`` numbers of the rows in an order that depends on their content alone.

        By user, target, list and history, each compared by ids. Sums over the rows in this order
        are the same to the last bit however the rows came.
        """
        rank = np.empty(len(self.item_ids), np.int64)  # of each item among the sorted ids
        rank[sorted(range(len(rank)), key=self.item_ids.__getitem__)] = np.arange(len(rank))
        order = np.lexsort((rank[self.targets], self.users))
        users = self.users[order]
        targets = self.targets[order]
        same = (users[1:] == users[:-1]) & (targets[1:] == targets[:-1])
        if not same.any():
            return order
        # Only rows of one user with one target are told apart by what they show
        tied = np.append(same, False) | np.append(False, same)
        group = np.cumsum(np.append(True, ~same))[tied]  # numbers users with targets
        rows = order[tied]
        shown = self._shown(rows, rank)
        order[tied] = rows[np.lexsort((shown, group))]
        return order

    def _shown(
        self,
        rows: np.ndarray,
        rank: np.ndarray,
    ) -> np.ndarray:
        """``(rows,)`` list and history as strings of bytes that sort as their ids do."""
        columns = [
            np.where(
                self.items[rows] >= 0,
                rank[self.items[rows]] + 1,
                0,
            )
        ]
        if self.histories is not None:
            ends = np.cumsum(self.histories.lengths)[rows]
            lengths = self.histories.lengths[rows]
            for place in range(int(lengths.max(initial=0))):
                there = place < lengths
                at = np.where(
                    there,
                    ends - lengths + place,
                    0,
                )
                column = np.where(
                    there,
                    rank[self.histories.items[at]] + 1,
                    0,
                )
                columns.append(column[:, None])
        # Big-endian, so that bytes compare as numbers; 0 stands after the end of a list
        table = np.ascontiguousarray(np.concatenate(columns, axis=1), dtype=">u4")
        return table.view(f"S{table.itemsize * table.shape[1]}").ravel()


def rows_of_samples(
    samples: Sequence[Sample], items: np.ndarray, item_ids: Sequence[str]
) -> RankedRows:
    """Rows of a catalogue's own split.

    Args:
        samples: of the split.
        items: ``(n, W)`` item indexes, best first, negative where a list has ended.
        item_ids: the catalogue.
    """
    if isinstance(samples, SampleList):
        distinct, of_row = np.unique(samples.users(), return_inverse=True)
        names = [samples.log.user_ids[user] for user in distinct.tolist()]
        users = numbered(names)[of_row]
        targets = samples.targets().astype(np.int64)
        shown = samples.histories()
        histories = Histories(shown.flat, np.diff(shown.starts))
    else:
        users = numbered([sample.user_id for sample in samples])
        targets = np.array([sample.target for sample in samples], dtype=np.int64)
        histories = Histories.of(sample.history for sample in samples)
    ranked = np.asarray(items, dtype=np.int32)
    return RankedRows(users, targets, ranked, item_ids, len(item_ids), histories)


def rows_of_records(
    predictions: Sequence[Prediction],
    catalogue: Sequence[str],
    histories: Sequence[Sequence[str]] | None = None,
) -> RankedRows:
    """Rows of ``predictions.jsonl``, with the item ids before each target.

    Raises:
        UserError: a row lacks a key or names a target outside the catalogue (the first such row is
            named, counted from 1), there is no row, or not one history per row.
    """
    if not predictions:
        raise UserError("predictions: there is no row to score; the split that was ranked is empty")
    index = {item: number for number, item in enumerate(catalogue)}
    for number, row in enumerate(predictions, start=1):
        check_prediction(
            row,
            number,
            index,
        )
    if histories is not None and len(histories) != len(predictions):
        raise UserError(
            f"histories: got {len(histories)} for {len(predictions)} predictions; "
            "expected one per row"
        )
    num_items = len(index)

    def numbers(items: Sequence[str]) -> list[int]:
        return [index.setdefault(item, len(index)) for item in items]

    items = as_table([numbers(row["item_ids"]) for row in predictions])
    shown = None
    if histories is not None:
        shown = Histories.of([numbers(history) for history in histories])
    return RankedRows(
        numbered([row["user_id"] for row in predictions]),
        np.array([index[row["target_item_id"]] for row in predictions], dtype=np.int64),
        items,
        list(index),
        num_items,
        shown,
    )


def check_prediction(
    row: Prediction,
    number: int,
    catalogue: Mapping[str, int],
) -> None:
    """Refuse a row that cannot be scored.

    Raises:
        UserError: naming the row, counted from 1.
    """
    for key in ROW_KEYS:
        if key not in row:
            raise UserError(
                f"predictions, row {number}: has no '{key}'; expected {', '.join(ROW_KEYS)}"
            )
    if len(row["item_ids"]) != len(row["scores"]):
        raise UserError(
            f"predictions, row {number}: {len(row['item_ids'])} item_ids but "
            f"{len(row['scores'])} scores; expected one score per item"
        )
    if row["target_item_id"] not in catalogue:
        raise UserError(
            f"predictions, row {number}: target '{row['target_item_id']}' is not in the "
            "catalogue; these predictions belong to other data, make them again"
        )


def as_table(lists: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """Lists of different lengths as ``(n, W)``, at least one wide, filled up with ``NOTHING``.

    >>> as_table([[3], [], [1, 2]]).tolist()
    [[3, -1], [-1, -1], [1, 2]]
    """
    width = max(map(len, lists), default=0)
    table = np.full(
        (len(lists), max(1, width)),
        NOTHING,
        np.int32,
    )
    for row, items in zip(
        table,
        lists,
        strict=True,
    ):
        row[: len(items)] = items
    return table


def numbered(names: Sequence[str]) -> np.ndarray:
    """``(n,)`` number of each name among the distinct ones in their order.

    >>> numbered(["b", "a", "b"]).tolist()
    [1, 0, 1]
    """
    number = {name: place for place, name in enumerate(sorted(set(names)))}
    return np.fromiter(
        map(number.__getitem__, names),
        np.int64,
        len(names),
    )
