"""Taking over a MiniOneRec folder: sequences rebuilt from overlapping rows, SIDs, and every contradiction refused.

python -m pytest tests/catalogue/test_data_minionerec.py
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from minionerec.catalogue.sources import minionerec_csv
from minionerec.errors import UserError
from minionerec.experiment.settings import DataSettings

INDEX = {str(item): [f"<a_{item}>", f"<b_{7 - item}>"] for item in range(6)}
ITEMS = {
    str(item): {
        "title": f"Thing {item}",
        "description": "['It is', 'good']",
        "brand": "Q",
        "categories": "A,B",
    }
    for item in range(6)
}
HEADER = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid"
Sample = tuple[str, str, list[int], int]  # split, user, history, target


def line(user: str, history: list[int], target: int) -> str:
    """One row as MiniOneRec writes it: list cells are Python literals."""
    titles, sids = (
        [f"Thing {item}" for item in history],
        ["".join(INDEX[str(item)]) for item in history],
    )
    return f'{user},"{titles}",Thing {target},"{history}",{target},"{sids}",{"".join(INDEX[str(target)])}'


def folder(path: Path, samples: list[Sample], nested: bool = False) -> DataSettings:
    """A data folder with these rows, flat or in subfolders as in the original repository."""
    for split in ("train", "valid", "test"):
        name = path / split / "Toys_5_2016-10-2018-11.csv" if nested else path / f"Toys_{split}.csv"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(
            "\n".join([HEADER, *(line(*sample[1:]) for sample in samples if sample[0] == split)])
            + "\n"
        )
    index = path / "index" / "Toys.index.json" if nested else path / "Toys.index.json"
    index.parent.mkdir(exist_ok=True)
    index.write_text(json.dumps(INDEX))
    index.with_name("Toys.item.json").write_text(json.dumps(ITEMS))
    return DataSettings(source="minionerec", path=str(path))


WORLD: list[Sample] = [
    ("train", "u", [0], 1),
    ("train", "u", [0, 1], 1),
    ("train", "v", [2, 3], 4),
    ("valid", "u", [0, 1, 1], 5),
    ("valid", "w", [5], 0),
    ("test", "v", [2, 3, 4], 0),
    ("test", "w", [5, 0], 2),
]


@pytest.mark.parametrize("nested", [False, True])
def test_sequences_are_rebuilt_from_overlapping_rows(tmp_path, nested):
    source = minionerec_csv.load(folder(tmp_path, WORLD, nested))
    rows = source.interactions[["user_id", "item_id", "split"]].values.tolist()
    assert rows == [
        ["u", "0", "train"],
        ["u", "1", "train"],
        ["u", "1", "train"],
        ["v", "2", "train"],
        ["v", "3", "train"],
        ["v", "4", "train"],
        ["w", "5", "train"],
        ["u", "5", "valid"],
        ["w", "0", "valid"],
        ["v", "0", "test"],
        ["w", "2", "test"],
    ]
    assert (
        source.interactions["timestamp"].tolist() == list(range(1, 12))
        and source.timestamps == "order only"
    )


def test_items_and_codes_come_along(tmp_path):
    source = minionerec_csv.load(folder(tmp_path, WORLD))
    assert source.items.iloc[3].to_dict() == {
        "item_id": "3",
        "title": "Thing 3",
        "description": "It is good",
        "brand": "Q",
        "categories": ["A", "B"],
    }
    assert source.given_sids == {str(item): [item, 7 - item] for item in range(6)}


@pytest.mark.parametrize("limit", [3, 10])
def test_random_sequences_survive_the_cut_into_rows(tmp_path, limit):
    """Cut histories overlap by less than the sequence; chaining must still give back every
    purchase.
    """
    rng = random.Random(limit)
    samples, sequences = [], {}
    for user in (f"u{number}" for number in range(12)):
        sequences[user] = items = [rng.randrange(6) for _ in range(rng.randint(2, 25))]
        first, second = sorted(rng.choices(range(1, len(items) + 1), k=2))
        for at in range(1, len(items)):
            split = "train" if at < first else "valid" if at < second else "test"
            samples.append((split, user, items[max(0, at - limit) : at], items[at]))
    source = minionerec_csv.load(folder(tmp_path, samples))
    rebuilt = source.interactions.groupby("user_id")["item_id"].agg(list).to_dict()
    assert rebuilt == {user: [str(item) for item in items] for user, items in sequences.items()}


def test_a_history_that_does_not_continue_the_sequence_names_file_and_row(tmp_path):
    settings = folder(tmp_path, [*WORLD[:3], ("train", "u", [0, 1, 2], 5), *WORLD[4:]])
    with pytest.raises(
        UserError,
        match="^"
        + re.escape(
            f"{tmp_path}/Toys_train.csv:5: history_item_id: got ['0', '1', '2'], expected ['0', '1', '1'], the items that "
            f"earlier rows of "
            "user 'u' (train, valid, test) add up to"
        )
        + "$",
    ):
        minionerec_csv.load(settings)


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BAD = {
    "history is no list": (
        "Toys_train.csv",
        '"[0]"',
        '"[0"',
        "{0}/Toys_train.csv:2: history_item_id: got '[0', expected a list such as [12, 7]",
    ),
    "history would run code": (
        "Toys_train.csv",
        '"[0]"',
        '"[exit()]"',
        "{0}/Toys_train.csv:2: history_item_id: got '[exit()]', expected a list such as [12, 7]",
    ),
    "history is empty": (
        "Toys_train.csv",
        '"[0]"',
        "[]",
        "{0}/Toys_train.csv:2: history_item_id: is empty, expected at least one item",
    ),
    "no user": (
        "Toys_valid.csv",
        "\nw,",
        "\n,",
        "{0}/Toys_valid.csv:3: user_id: is empty, expected a user",
    ),
    "unknown target": (
        "Toys_test.csv",
        ",0,",
        ",99,",
        "{0}/Toys_test.csv:2: got item '99', expected an item of *item.json; the files do not belong together",
    ),
    "unknown history item": (
        "Toys_train.csv",
        '"[0]"',
        '"[6]"',
        "{0}/Toys_train.csv:2: got item '6', expected an item of *item.json; the files do not belong together",
    ),
    "other SIDs": (
        "Toys_train.csv",
        "<a_1><b_6>",
        "<a_1><b_5>",
        "{0}/Toys_train.csv:2: item_sid: got '<a_1><b_5>' for item '1', expected '<a_1><b_6>' as in "
        "*index.json; the files do not belong together",
    ),
    "missing column": (
        "Toys_train.csv",
        "history_item_id",
        "history",
        "{0}/Toys_train.csv: has no column 'history_item_id' (its columns: user_id, "
        "history_item_title, item_title, history, item_id, history_item_sid, item_sid); expected MiniOneRec's CSV",
    ),
    "index of fewer items": (
        "Toys.index.json",
        '"5": ["<a_5>", "<b_2>"]',
        '"9": ["<a_5>", "<b_2>"]',
        "{0}/Toys.index.json: has no SID for 1 items of the catalogue, e.g. '5'; use the index file that belongs to these items",
    ),
    "no SID token": (
        "Toys.index.json",
        "<a_0>",
        "a_0",
        "{0}/Toys.index.json: item '0': got ['a_0', '<b_7>'], expected tokens such as ['<a_1>', '<b_2>', '<c_3>']",
    ),
    "levels in another order": (
        "Toys.index.json",
        '"<a_0>", "<b_7>"',
        '"<b_7>", "<a_0>"',
        "{0}/Toys.index.json: item '0': got ['<b_7>', '<a_0>'], expected tokens such as ['<a_1>', '<b_2>', '<c_3>']",
    ),
    "cut off index": (
        "Toys.index.json",
        '"]}',
        "",
        "{0}/Toys.index.json: not valid JSON (Unterminated string starting at: line 1 column 142 (char 141)); it is "
        "damaged or cut off",
    ),
    "item without title": (
        "Toys.item.json",
        '"Thing 4"',
        '""',
        "{0}/Toys.item.json: item 4: title: got '', expected a title; fill it in, or remove the item",
    ),
    "item is text": (
        "Toys.item.json",
        json.dumps(ITEMS["0"]),
        '"Thing 0"',
        "{0}/Toys.item.json: item '0': got 'Thing 0', expected an object with a title",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_one_line_with_file_row_and_value(tmp_path, case):
    name, old, new, message = BAD[case]
    settings = folder(tmp_path, WORLD)
    replaced(tmp_path / name, old, new)
    with pytest.raises(UserError, match="^" + re.escape(message.format(tmp_path)) + "$"):
        minionerec_csv.load(settings)


def test_two_data_sets_in_one_folder_are_ambiguous(tmp_path):
    settings = folder(tmp_path, WORLD)
    (tmp_path / "Books_train.csv").write_text(HEADER)
    with pytest.raises(
        UserError,
        match=re.escape(
            f"data.path: {tmp_path} should hold exactly one *train*.csv or train/*.csv, found Books_train.csv, "
            "Toys_train.csv; put each data set into a folder of its own"
        ),
    ):
        minionerec_csv.load(settings)


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path):
    settings = folder(tmp_path, WORLD)
    (tmp_path / "Toys_test.csv").unlink()
    with pytest.raises(
        UserError, match=re.escape("should hold exactly one *test*.csv or test/*.csv, found none")
    ):
        minionerec_csv.load(settings)
    with pytest.raises(
        UserError, match=r"^data.path: no folder '/no/such'; give the folder with \*item.json"
    ):
        minionerec_csv.load(DataSettings(source="minionerec", path="/no/such"))
