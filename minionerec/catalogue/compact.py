"""Samples and sequences that look like lists of objects and are kept as arrays.

A million interactions are 20 MB this way; a tuple with a history for each would be 380 MB. What
shares no Python object is not copied page by page either when a process is forked.

Shapes: n interactions, U users, S samples of a split.
"""

from __future__ import annotations

import array
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, overload

import numpy as np

T = TypeVar("T")


class MadeOnRead(Sequence[T]):
    """Looks like a list; an entry is made when it is asked for. Has ``__len__`` and ``entry``."""

    @abstractmethod
    def entry(self, number: int) -> T:
        """One entry; ``number`` is from 0 to less than the length."""

    @overload
    def __getitem__(self, number: int) -> T: ...

    @overload
    def __getitem__(self, number: slice) -> list[T]: ...

    def __getitem__(self, number: int | slice) -> T | list[T]:
        """One entry, or a list of several."""
        places = range(len(self))
        if isinstance(number, slice):
            return [self.entry(place) for place in places[number]]
        return self.entry(places[number])


class Sample(NamedTuple):
    """One target and what came before it in the user's sequence.

    ``history`` holds item indexes, oldest first, at most ``max_history`` of them, repeats kept.
    """

    user_id: str
    history: tuple[int, ...]
    target: int
    timestamp: int


@dataclass(frozen=True)
class UserLog:
    """All interactions, user after user, each user's in order."""

    user_ids: Sequence[str]  # (U,)
    users: np.ndarray  # (n,) int32 number of the user
    items: np.ndarray  # (n,) int32 item index
    timestamps: np.ndarray  # (n,) int64
    starts: np.ndarray  # (U,) where each user's interactions begin
    max_history: int

    def sample(self, place: int) -> Sample:
        """The interaction at a place as the target of what came before it."""
        user = int(self.users[place])
        first = max(int(self.starts[user]), place - self.max_history)
        history = tuple(self.items[first:place].tolist())
        target = int(self.items[place])
        timestamp = int(self.timestamps[place])
        return Sample(self.user_ids[user], history, target, timestamp)


class SampleList(Sequence[Sample]):
    """The samples of one split; each is made when it is asked for."""

    def __init__(self, log: UserLog, places: np.ndarray):
        self.log = log
        self.places = places  # (S,) of the targets in the log

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.places)

    @overload
    def __getitem__(self, number: int) -> Sample: ...

    @overload
    def __getitem__(self, number: slice) -> SampleList: ...

    def __getitem__(self, number: int | slice) -> Sample | SampleList:
        """One sample, or a part of them."""
        if isinstance(number, slice):
            return SampleList(self.log, self.places[number])
        return self.log.sample(int(self.places[number]))

    def users(self) -> np.ndarray:
        """``(S,)`` the number of each sample's user."""
        return self.log.users[self.places]

    def targets(self) -> np.ndarray:
        """``(S,)`` item indexes."""
        return self.log.items[self.places]

    def times(self) -> np.ndarray:
        """``(S,)`` times of the targets."""
        return self.log.timestamps[self.places]

    def histories(self) -> IntLists:
        """What came before each target."""
        first = self.log.starts[self.users()]
        return self._between(np.maximum(first, self.places - self.log.max_history))

    def seen(self) -> IntLists:
        """All that each target's user had before it, oldest first."""
        return self._between(self.log.starts[self.users()])

    def _between(self, first: np.ndarray) -> IntLists:
        """The items from these places of the log up to each target."""
        lengths = self.places - first
        ends = np.cumsum(lengths)
        flat = self.log.items[runs(first, lengths)]
        return IntLists(flat, np.concatenate([[0], ends]))

    def __iter__(self) -> Iterator[Sample]:
        """One sample after the other."""
        return map(self.log.sample, map(int, self.places))

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same samples."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def runs(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers of several runs of numbers, one run after the other.

    >>> runs(np.array([3, 0]), np.array([3, 2])).tolist()
    [3, 4, 5, 0, 1]
    """
    written = np.cumsum(lengths) - lengths  # before each run
    numbers = np.repeat(starts - written, lengths)
    numbers += np.arange(len(numbers))
    return numbers


class IntRows(Sequence[tuple[int, ...]]):
    """Short rows of numbers from 0, one per item; a tuple is made when it is asked for.

    >>> rows = IntRows.of([(3, 1), (2,)])
    >>> rows[1], list(rows), rows.table.tolist()
    ((2,), [(3, 1), (2,)], [[3, 1], [2, -1]])
    """

    def __init__(self, table: np.ndarray):
        self.table = table  # (N, longest) int32, -1 behind shorter rows
        self._is_ragged = bool((table[:, -1] < 0).any())

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> IntRows:
        """From rows as lists or tuples; such rows themselves are given back."""
        if isinstance(rows, IntRows):
            return rows
        longest = max(map(len, rows), default=1)
        table = np.full((len(rows), longest), -1, dtype=np.int32)
        for padded, row in zip(table, rows, strict=True):
            padded[: len(row)] = row
        return cls(table)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.table)

    @overload
    def __getitem__(self, number: int) -> tuple[int, ...]: ...

    @overload
    def __getitem__(self, number: slice) -> IntRows: ...

    def __getitem__(self, number: int | slice) -> tuple[int, ...] | IntRows:
        """One row, or a part of them."""
        if isinstance(number, slice):
            return IntRows(self.table[number])
        row = tuple(self.table[number].tolist())
        return tuple(value for value in row if value >= 0) if self._is_ragged else row

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same rows."""
        if isinstance(other, IntRows):
            return np.array_equal(self.table, other.table)
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class IntLists(MadeOnRead[list[int]]):
    """Lists of numbers, end to end in one array; a list is made when it is asked for.

    >>> lists = IntLists.of([[3, 1], [], [2]])
    >>> lists[0], list(lists), lists.longest(), list(lists.take(np.array([2, 0])))
    ([3, 1], [[3, 1], [], [2]], 2, [[2], [3, 1]])
    >>> lists.owners().tolist()
    [0, 0, 2]
    """

    def __init__(self, flat: np.ndarray, starts: np.ndarray):
        self.flat = flat  # int32
        self.starts = starts  # of each list, and where the last one ends

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> IntLists:
        """From any lists, one after the other; such lists themselves are given back."""
        if isinstance(lists, IntLists):
            return lists
        flat = array.array("i")
        starts = array.array("q", [0])
        for numbers in lists:
            flat.extend(numbers)
            starts.append(len(flat))
        numbers_of_all = np.frombuffer(flat or b"", np.int32)
        return cls(numbers_of_all, np.frombuffer(starts, np.int64))

    def __len__(self) -> int:
        """How many lists there are."""
        return len(self.starts) - 1

    def take(self, numbers: np.ndarray) -> IntLists:
        """Some of the lists."""
        starts = self.starts[numbers]
        lengths = self.starts[numbers + 1] - starts
        ends = np.cumsum(lengths)
        flat = self.flat[runs(starts, lengths)]
        return IntLists(flat, np.concatenate([[0], ends]))

    def owners(self) -> np.ndarray:
        """``(T,)`` int32: in which list each number of ``flat`` stands."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.starts))

    def longest(self) -> int:
        """Numbers in the longest list."""
        return int(np.diff(self.starts).max(initial=0))

    def entry(self, number: int) -> list[int]:
        """One list."""
        start = self.starts[number]
        end = self.starts[number + 1]
        return self.flat[start:end].tolist()

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same lists."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
