"""From interactions to samples: a target and the history before it.

A sample is one target with the items before it; a row is one prompt with its completion, for one
task. Which split a sample belongs to is the split of its target. Item ids become integers here
(their place in ``items.parquet``) and become ids again only when something is written for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minionerec.catalogue import mapped
from minionerec.catalogue.compact import IntLists, Sample, SampleList
from minionerec.catalogue.mapped import UserArrays
from minionerec.catalogue.sources.source import SPLITS
from minionerec.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """The data of one experiment as stages 2 to 4 and the baselines read it."""

    items: pd.DataFrame  # item_id, title, description, brand, categories; the row is the item index
    splits: Mapping[str, Sequence[Sample]]  # train, valid, test; in the order of the interactions
    train_sequences: Sequence[list[int]]  # each user's train items in order, the first one included

    @property
    def item_ids(self) -> list[str]:
        """Item ids in the order of the item indexes."""
        return self.items["item_id"].tolist()


def load_samples(data_dir: Path, max_history: int) -> Samples:
    """Read a committed ``runs/<name>/data`` directory.

    Raises:
        UserError: an item id occurs twice, or an interaction has an unknown item or split (the row
            is named).
    """
    items = read_items(data_dir)
    ids = items["item_id"]
    if len(pc.unique(pa.array(ids))) < len(ids):  # pandas would make an object of every id
        _refuse(data_dir / "items.parquet", ids, ids.duplicated(), "every id once")
    arrays = mapped.read(data_dir)
    if arrays is None:
        arrays = _read_tables(data_dir, items)
    pa.default_memory_pool().release_unused()  # Arrow keeps what it read with otherwise
    return Samples(items, arrays.samples(max_history), arrays.train_sequences())


def read_items(data_dir: Path) -> pd.DataFrame:
    """The items as Arrow holds them: of a million lists of categories none is a Python object."""
    file = pq.ParquetFile(data_dir / "items.parquet")
    columns = {}
    # All at once need three times what they are in the end
    for name in file.schema_arrow.names:
        columns[name] = file.read([name]).column(name)
    return pa.table(columns).to_pandas(types_mapper=_kept_in_arrow)


def _kept_in_arrow(kind: pa.DataType) -> pd.ArrowDtype | None:
    return pd.ArrowDtype(kind) if pa.types.is_list(kind) else None


def _read_tables(data_dir: Path, items: pd.DataFrame) -> UserArrays:
    """The interactions of a directory without arrays.

    Raises:
        UserError: an unknown item or split.
    """
    columns = ["user_id", "item_id", "timestamp", "split"]
    interactions = pd.read_parquet(data_dir / "interactions.parquet", columns=columns)
    # Of few rows in a large catalogue only their own ids are looked up, each once
    row_ids, own_ids = pd.factorize(interactions["item_id"])
    found = pc.index_in(pa.array(own_ids), value_set=pa.array(items["item_id"]))
    item_of_id = found.fill_null(-1).to_numpy(zero_copy_only=False)
    codes = item_of_id[row_ids]
    _refuse(
        data_dir / "interactions.parquet",
        interactions["item_id"],
        pd.Series(codes < 0),
        "an item_id of items.parquet",
    )
    _refuse(
        data_dir / "interactions.parquet",
        interactions["split"],
        ~interactions["split"].isin(SPLITS),
        "train, valid or test",
    )
    return _cut(interactions, codes)


def _refuse(
    file: Path,
    column: pd.Series,
    bad: pd.Series,
    expected: str,
) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{file}, row {row}: {column.name}: got '{column.iloc[row]}', expected {expected} "
            f"({int(bad.sum())} rows are wrong); delete {file.parent} and make it again"
        )


def build_samples(
    interactions: pd.DataFrame, item_index: dict[str, int], max_history: int
) -> tuple[dict[str, Sequence[Sample]], Sequence[list[int]]]:
    """Cut the interactions into samples, one for each target (``split.is_target``).

    Args:
        interactions: ``user_id, item_id, timestamp, split`` with each user's rows in the user's
            order.
        item_index: item id -> item index.
        max_history: the longest history, in items.

    Returns:
        The samples of each split in the order of their targets' rows, and each user's train items
        in order.
    """
    arrays = _cut(interactions, interactions["item_id"].map(item_index).to_numpy(np.int32))
    splits: dict[str, Sequence[Sample]] = {**arrays.samples(max_history)}
    return splits, arrays.train_sequences()


def _cut(interactions: pd.DataFrame, items: np.ndarray) -> UserArrays:
    """The interactions user after user; ``items`` are their item indexes."""
    users, user_ids = pd.factorize(interactions["user_id"])
    split = pd.Categorical(interactions["split"], categories=list(SPLITS)).codes
    timestamps = interactions["timestamp"].to_numpy(np.int64)
    return mapped.arrays_of(users, pa.array(user_ids, pa.string()), items, timestamps, split)


def histories_of(samples: Sequence[Sample]) -> Sequence[Sequence[int]]:
    """What came before each target."""
    if isinstance(samples, SampleList):
        return samples.histories()
    return [sample.history for sample in samples]


def targets_of(samples: Sequence[Sample]) -> np.ndarray:
    """``(S,)`` item indexes."""
    if isinstance(samples, SampleList):
        return samples.targets()
    return np.array([sample.target for sample in samples], dtype=np.int64)


def windows(
    sequences: Sequence[Sequence[int]], max_history: int, rng: np.random.Generator
) -> list[Sequence[int]]:
    """Cut every sequence into windows of at most ``max_history + 1`` items, in random order.

    Neighbours share one item, so each item but a sequence's first is a target exactly once. The
    first cut of a sequence that is too long for one window is random.

        >>> sorted(windows([[1, 2, 3, 4, 5]], 4, np.random.default_rng(0)))
        [[1, 2, 3, 4, 5]]
        >>> sorted(windows([[1, 2, 3, 4, 5]], 2, np.random.default_rng(0)))
        [[1, 2, 3], [3, 4, 5]]
    """
    cut = []
    for sequence in sequences:
        first = max_history
        if len(sequence) > max_history + 1:
            first = int(rng.integers(1, max_history + 1))
        for end in range(first, len(sequence) - 1 + max_history, max_history):
            start = max(0, end - max_history)
            cut.append(sequence[start : end + 1])
    shuffled = [cut[i] for i in rng.permutation(len(cut))]
    return [window for window in shuffled if len(window) > 1]


def seen_items(samples: Sequence[Sample]) -> IntLists:
    """For every sample all that its user had before, not only what a prompt shows.

    Raises:
        TypeError: they are a list of samples, which know no more than their histories.
    """
    if not isinstance(samples, SampleList):
        raise TypeError(f"got a {type(samples).__name__} of samples, expected a SampleList")
    return samples.seen()


def open_histories(
    sequences: Iterable[Sequence[int]],
    max_history: int,
) -> list[tuple[int, ...]]:
    """The train sequences as they end, each history once, in the order in which they come.

    What followed them lies in the validation or test rows, or nowhere: they are histories that no
    train row shows whole, and nothing held out is read.

        >>> open_histories([[1, 2, 3], [4], [2, 3]], 2)
        [(2, 3), (4,)]

    Args:
        sequences: each user's train items in order.
        max_history: the longest history, in items; only the latest are kept.
    """
    histories: dict[tuple[int, ...], None] = {}
    for sequence in sequences:
        if len(sequence):
            histories[tuple(sequence[-max_history:])] = None
    return list(histories)


def window_samples(
    sequences: Sequence[Sequence[int]],
    max_history: int,
    seed: int,
) -> list[Sample]:
    """The train targets once more, each with the history that its window holds.

    That is from one item up to ``max_history`` items.

    All targets of a window share one sequence, so that prefix trees compute it once, where
    histories that slide along a long sequence share nothing. ``user_id`` is the window's number,
    ``timestamp`` the place of the target in it.
    """
    found = []
    rng = np.random.default_rng(seed)
    for number, row in enumerate(windows(sequences, max_history, rng)):
        for place in range(1, len(row)):
            found.append(Sample(f"window {number}", tuple(row[:place]), row[place], place))
    return found


def fixed_subset(
    samples: Sequence[T],
    size: int,
    seed: int,
) -> list[T]:
    """The same random ``size`` samples for the same seed, in their order.

    All of them if ``size`` is 0 or too large. What belongs to samples row by row is cut alike.
    """
    if not size or size >= len(samples):
        return list(samples)
    order = np.random.default_rng(seed).permutation(len(samples))
    return [samples[i] for i in sorted(order[:size])]


def held_out(
    samples: Sequence[Sample],
    share: float,
) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The earlier and the later of some samples by the time of their targets, each in their order.

    Targets of one second stay together: on the later side if the cut falls among them.

        >>> rows = [Sample("u", (1,), 2, 30), Sample("v", (1,), 3, 10), Sample("w", (2,), 3, 20)]
        >>> [[row.user_id for row in part] for part in held_out(rows, 0.4)]
        [['v', 'w'], ['u']]

    Args:
        samples: of one split.
        share: of them that is kept out, the latest; 0 to less than 1.
    """
    count = round(share * len(samples))
    if not count:
        return samples, []
    since = sorted(sample.timestamp for sample in samples)[-count]
    earlier = [sample for sample in samples if sample.timestamp < since]
    later = [sample for sample in samples if sample.timestamp >= since]
    return earlier, later


def train_counts(sequences: Iterable[Sequence[int]], num_items: int) -> np.ndarray:
    """``(N,)`` how often each item occurs in the train interactions."""
    return np.bincount(IntLists.of(sequences).flat, minlength=num_items)
