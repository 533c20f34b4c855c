"""The interactions of ``runs/<name>/data`` as arrays on the disk that all processes map and share.

Written beside the tables, read without a copy: a process holds the pages that it looks at, and what
several processes look at is in memory once. Whatever was prepared without these arrays, or whose
tables are no longer those that they were made from, is read from the tables as before.

Shapes: n interactions, U users, S samples of a split.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from minionerec.catalogue.compact import IntLists, SampleList, UserLog
from minionerec.catalogue.sources.columns import Cells
from minionerec.catalogue.sources.source import SPLITS
from minionerec.catalogue.split import stable_order
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
    # User after user; ``place`` leads from a row to where it stands then
    order = stable_order(users)
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    sizes = np.bincount(users, minlength=len(user_ids))
    starts = np.cumsum(sizes) - sizes
    in_order = users[order].astype(np.int32)
    # The first interaction of a user is no target (``split.is_target``)
    is_target = place > starts[users]
    train = place[is_target & (split == 0)]
    valid = place[is_target & (split == 1)]
    test = place[is_target & (split == 2)]

    # Users in the order of their first train interactions
    in_train = np.flatnonzero(split == 0)
    of_user, _ = pd.factorize(users[in_train])
    grouped = stable_order(of_user)
    return UserArrays(
        Cells(pa.chunked_array([user_ids])),
        in_order,
        items[order].astype(np.int32),
        timestamps[order].astype(np.int64),
        starts,
        train,
        valid,
        test,
        items[in_train][grouped].astype(np.int32),
        np.bincount(of_user),
    )


def write(data_dir: Path, arrays: UserArrays) -> None:
    """Write them beside the tables, which lie there already."""
    folder = data_dir / FOLDER
    folder.mkdir()
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(arrays, name))
    table = pa.table({"user_id": arrays.user_ids.values})
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
