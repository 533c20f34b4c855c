"""Interactions as mapped arrays: the same samples as from the tables, and never those of other tables.

python -m pytest tests/catalogue/test_mapped.py
"""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from minionerec.catalogue import mapped, prepared, rows, split
from minionerec.catalogue.rows import Row, Rows, users_of
from minionerec.catalogue.samples import load_samples
from minionerec.catalogue.sources.columns import Ids
from minionerec.training.batches import GroupedSampler

MAX_HISTORY = 3


def write(folder, seed=0, as_codes=False):
    """A prepared directory of 9 users, 7 items and 60 interactions at few different times."""
    rng = np.random.default_rng(seed)
    names = [f"i{number}" for number in range(7)]
    items = pd.DataFrame(
        {"item_id": names, "title": "T", "description": "", "brand": "", "categories": [[]] * 7}
    )
    frame = pd.DataFrame(
        {
            "user_id": [f"ü{number}" for number in rng.integers(0, 9, 60)],
            "item_id": [names[number] for number in rng.integers(0, 7, 60)],
            "timestamp": np.sort(rng.integers(0, 30, 60)),
            "rating": np.nan,
        }
    )
    if as_codes:
        for name in ("user_id", "item_id"):
            frame[name] = Ids.merged(frame[name].tolist(), np.arange(60, dtype=np.int32)).column()
    frame = frame.assign(split=split.named(np.repeat([0, 1, 2], 20)))
    folder.mkdir()
    prepared.write(folder, items, frame, {}, None)
    return folder


def loaded(folder):
    found = load_samples(folder, MAX_HISTORY)
    samples = {name: list(found.splits[name]) for name in ("train", "valid", "test")}
    return samples, list(found.train_sequences)


@pytest.mark.parametrize("as_codes", [False, True])
def test_mapped_samples_are_those_of_the_tables(tmp_path, as_codes):
    folder = write(tmp_path / "data", as_codes=as_codes)
    from_arrays = loaded(folder)
    shutil.rmtree(folder / mapped.FOLDER)
    assert mapped.read(folder) is None
    assert loaded(folder) == from_arrays
    assert sum(map(len, from_arrays[0].values())) == 60 - 9


def test_arrays_stay_on_the_disk_until_they_are_looked_at(tmp_path):
    arrays = mapped.read(write(tmp_path / "data"))
    for name in mapped.ARRAYS:
        assert isinstance(getattr(arrays, name), np.memmap), name


def test_arrays_of_other_tables_are_not_looked_at(tmp_path):
    folder = write(tmp_path / "data")
    other = write(tmp_path / "other", seed=1)
    shutil.copy(other / "interactions.parquet", folder / "interactions.parquet")
    assert mapped.read(folder) is None
    assert loaded(folder) == loaded(other)


def by_dictionary(groups, seed, epoch):
    """The order of rows as it is defined: groups in a random order, their rows in theirs."""
    members = {}
    for row, group in enumerate(groups):
        members.setdefault(group or f"row {row}", []).append(row)
    lists = list(members.values())
    order = np.random.default_rng((seed, epoch)).permutation(len(lists))
    return [row for group in order for row in lists[group]]


@pytest.mark.parametrize(
    "groups", [["b", "", "a", "b", "", "a", "c"], [""] * 5, ["x"] * 3, [], ["", "b"]]
)
def test_rows_come_in_the_order_of_their_groups(groups):
    sampler = GroupedSampler(groups, seed=3)
    codes = np.array([{"": -1, "a": 5, "b": 0, "c": 2, "x": 1}[group] for group in groups], int)
    numbered = GroupedSampler(codes, seed=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        numbered.set_epoch(epoch)
        assert list(sampler) == list(numbered) == by_dictionary(groups, 3, epoch)


def test_rows_know_their_users_without_being_rendered(tmp_path):
    """Rows of samples have their user's number, rows of items none; nothing renders them."""
    samples = load_samples(write(tmp_path / "data"), MAX_HISTORY).splits["train"]
    parts = [("sid_to_sid", range(len(samples))), ("title_to_sid", range(7))]
    parts.append(("sids_to_title", np.array([3, 1], dtype=np.int32)))
    found = Rows(parts, samples, renderer=None, more=[Row("codes", "", [1], [2], 0)])
    names = [sample.user_id for sample in samples]
    expected = [*names, *[""] * 7, names[3], names[1], ""]
    users = users_of(found)
    assert (users < 0).tolist() == [not name for name in expected]
    own = {(user, name) for user, name in zip(users.tolist(), expected, strict=True) if name}
    assert len(own) == len({name for _, name in own}) == len({user for user, _ in own})
    plain = [Row("sid_to_sid", name, [1], [2], 0) for name in expected]
    assert (users_of(plain) < 0).tolist() == (users < 0).tolist()


def test_a_row_is_found_in_its_part(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "row_of", lambda task, number, *_: (task, number))
    parts = [("a", range(3)), ("b", np.array([7, 9])), ("c", range(0)), ("d", range(1))]
    found = Rows(parts, [], renderer=None, more=["more"])
    expected = [("a", 0), ("a", 1), ("a", 2), ("b", 7), ("b", 9), ("d", 0), "more"]
    assert [found[place] for place in range(len(found))] == expected
    assert found[-1] == "more" and found[2:5] == expected[2:5]
