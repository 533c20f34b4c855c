"""Samples and sequences that look like lists of objects and are kept as arrays.

A million interactions are 20 MB this way; a tuple with a history for each would be 380 MB. What
shares no Python object is not copied page by page either when a process is forked.

Shapes: n interactions, U users, S samples of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np


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

    user_ids: list[str]  # (U,)
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
        return Sample(
            self.user_ids[user], history, int(self.items[place]), int(self.timestamps[place])
        )


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

    def __iter__(self) -> Iterator[Sample]:
        """One sample after the other."""
        return map(self.log.sample, map(int, self.places))

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same samples."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Sequences(Sequence[list[int]]):
    """Item indexes of users, each user's in order; a list is made when it is asked for."""

    def __init__(self, items: np.ndarray, lengths: np.ndarray):
        self.items = items  # of all users, end to end
        self.ends = np.cumsum(lengths)
        self.lengths = lengths

    def __len__(self) -> int:
        """How many users there are."""
        return len(self.lengths)

    @overload
    def __getitem__(self, number: int) -> list[int]: ...

    @overload
    def __getitem__(self, number: slice) -> list[list[int]]: ...

    def __getitem__(self, number: int | slice) -> list[int] | list[list[int]]:
        """One user's items, or those of several."""
        if isinstance(number, slice):
            return [self[place] for place in range(len(self))[number]]
        end = int(self.ends[number])
        return self.items[end - int(self.lengths[number]) : end].tolist()

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same lists."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]
