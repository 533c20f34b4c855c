"""The interactions of ``runs/<name>/data`` as arrays on the disk that all processes map and share.

Written beside the tables, read without a copy: a process holds the pages that it looks at, and what
several processes look at is in memory once. Whatever was prepared without these arrays, or whose
tables are no longer those that they were made from, is read from the tables as before.

Shapes: n interactions, U users, S samples of a split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from minionerec.catalogue.arrays import by_first_rows, counts, gathered, inverse, stable_order
from minionerec.catalogue.compact import IntLists, SampleList, UserLog
from minionerec.catalogue.sources.columns import Cells
from minionerec.catalogue.sources.source import SPLITS
from minionerec.experiment.files import sha256_file, write_json

FOLDER = "sequences"
USER_IDS = "user_ids.arrow"
MADE_FROM = "made_from.json"
TABLES = ("interactions.parquet", "items.parquet")


@dataclass(frozen=True)
class UserArrays:
    """All interactions, user after user, and where samples and train sequences lie in them."""

    user_ids: Cells  # (U,)
    users: np.ndarray  # (n,) int32 number of the user
    items: np.ndarray  # (n,) int32 item index
    timestamps: np.ndarray  # (n,) int64
    starts: np.ndarray  # (U,) int64 where each user's interactions begin
    train: np.ndarray  # (S,) int32 of the targets of each split, in the order of the interactions
    valid: np.ndarray
    test: np.ndarray
    train_items: np.ndarray  # int32, of users in the order of their first train interactions
    train_lengths: np.ndarray  # int64, of these users

    def samples(self, max_history: int) -> dict[str, SampleList]:
        """The samples of each split."""
        log = UserLog(
            self.user_ids,
            self.users,
            self.items,
            self.timestamps,
            self.starts,
            max_history,
        )
        places = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: SampleList(log, places[name]) for name in SPLITS}

    def train_sequences(self) -> IntLists:
        """Each user's train items in order."""
        starts = np.concatenate([[0], np.cumsum(self.train_lengths)])
        return IntLists(self.train_items, starts)


ARRAYS = [name for name in UserArrays.__dataclass_fields__ if name != "user_ids"]


def arrays_of(
    users: np.ndarray,
    user_ids: pa.Array,
    items: np.ndarray,
    timestamps: np.ndarray,
    split: np.ndarray,
) -> UserArrays:
    """From interactions in global order.

    Args:
        users: ``(n,)`` numbers from 0, by first interactions.
        user_ids: ``(U,)``.
        items: ``(n,)`` item indexes.
        timestamps: ``(n,)``.
        split: ``(n,)`` 0, 1, 2 as in ``SPLITS``.
    """
    arrays = dict(_made(users, len(user_ids), items, timestamps, split))
    return UserArrays(Cells(pa.chunked_array([user_ids])), **arrays)


def _made(
    users: np.ndarray,
    num_users: int,
    items: np.ndarray,
    timestamps: np.ndarray,
    split: np.ndarray,
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays one after the other, so that whoever writes them holds one at a time."""
    # User after user; ``place`` leads from a row to where it stands then
    order = stable_order(users)
    yield "users", gathered(users, order).astype(np.int32, copy=False)
    yield "items", gathered(items, order).astype(np.int32, copy=False)
    yield "timestamps", gathered(timestamps, order).astype(np.int64, copy=False)
    place = inverse(order)
    del order
    sizes = counts(users, num_users)
    starts = np.cumsum(sizes) - sizes
    yield "starts", starts
    # The first interaction of a user is no target (``split.is_target``)
    first = starts.astype(np.int32)
    is_target = place > gathered(first, users)
    for number, name in enumerate(SPLITS):
        yield name, place[is_target & (split == number)]
    del place, is_target

    # Users in the order of their first train interactions
    in_train = split == 0
    of_user, found = by_first_rows(users[in_train], num_users)
    grouped = stable_order(of_user)
    yield "train_lengths", counts(of_user, len(found))
    del of_user
    in_order = gathered(items[in_train], grouped)
    yield "train_items", in_order.astype(np.int32, copy=False)


def write(
    data_dir: Path,
    users: np.ndarray,
    user_ids: pa.Array,
    items: np.ndarray,
    timestamps: np.ndarray,
    split: np.ndarray,
) -> None:
    """Write them beside the tables, which lie there already; arguments as of ``arrays_of``."""
    folder = data_dir / FOLDER
    folder.mkdir()
    for name, array in _made(users, len(user_ids), items, timestamps, split):
        np.save(folder / f"{name}.npy", array)
        del array  # before the next one is made
    table = pa.table({"user_id": user_ids})
    with pa.ipc.new_file(str(folder / USER_IDS), table.schema) as writer:
        writer.write_table(table)
    write_json(folder / MADE_FROM, _digests(data_dir))


def read(data_dir: Path) -> UserArrays | None:
    """Map them; None if there are none, or the tables beside them are others."""
    folder = data_dir / FOLDER
    if not folder.is_dir():
        return None
    made_from = json.loads((folder / MADE_FROM).read_text())
    if made_from != _digests(data_dir):
        return None
    file = pa.memory_map(str(folder / USER_IDS))
    ids = pa.ipc.open_file(file).read_all()
    found = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return UserArrays(Cells(ids.column("user_id")), **found)


def _digests(data_dir: Path) -> dict[str, str]:
    return {name: sha256_file(data_dir / name) for name in TABLES}
