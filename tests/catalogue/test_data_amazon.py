"""Amazon review files of the three releases: small files in each layout, what is dropped, and damaged lines.

python -m pytest tests/catalogue/test_data_amazon.py
"""

from __future__ import annotations

import gzip
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from minionerec.catalogue.sources import amazon
from minionerec.errors import UserError
from minionerec.experiment.settings import DataSettings

# (user, item, unix seconds, rating): users a and b buy both items twice or more, c once.
START = 1_538_352_000  # October 2018; numbers of 1970 would be another unit's
BOUGHT = [
    ("a", "B1", START + 100, 5.0),
    ("b", "B2", START + 90, 4.0),
    ("a", "B2", START + 80, 3.0),
    ("a", "B1", START + 100, 1.0),
    ("b", "B1", START + 95, 2.0),
    ("b", "B2", START + 99, 5.0),
    ("c", "B1", START + 50, 5.0),
    ("a", "B3", START + 70, 5.0),
    ("b", "B4", START + 71, 5.0),
    ("a", "B9", START + 72, 5.0),
]
LONG = " ".join(["word"] * 21)
GOODS = {"B1": "Saw &amp; Blade", "B2": "Oil<br>can", "B3": "", "B4": LONG, "B5": "Never bought"}


def write(path: Path, lines: list[str]) -> None:
    text = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def old_review(user: str, item: str, time: int, rating: float) -> dict:
    return {
        "reviewerID": user,
        "asin": item,
        "overall": rating,
        "unixReviewTime": time,
        "reviewText": "fine",
        "verified": True,
    }


def new_review(user: str, item: str, time: int, rating: float) -> dict:
    return {
        "user_id": user,
        "asin": item + "-variant",
        "parent_asin": item,
        "rating": rating,
        "timestamp": time * 1000 + 7,
        "text": "fine",
    }


def meta_2014(item: str, title: str) -> str:
    return repr(
        {
            "asin": item,
            "title": title,
            "brand": "Q",
            "categories": [["Tools", "Saws"], ["Garden"]],
            "description": 'It\'s a "good" one',
        }
    )


def meta_2018(item: str, title: str) -> str:
    return json.dumps(
        {
            "asin": item,
            "title": title,
            "brand": "Q",
            "category": ["Tools", "Saws"],
            "description": ["It's a", '"good" one'],
            "tech1": None,
        }
    )


def meta_2023(item: str, title: str) -> str:
    return json.dumps(
        {
            "parent_asin": item,
            "title": title,
            "store": "Q",
            "categories": ["Tools", "Saws"],
            "description": ['It\'s a "good" one'],
            "main_category": "Tools",
            "details": {"Brand": "not this one"},
        }
    )


RELEASES: dict[str, tuple[Callable, Callable, str]] = {
    "2014": (old_review, meta_2014, ".json.gz"),
    "2018": (old_review, meta_2018, ".json.gz"),
    "2018 unpacked": (old_review, meta_2018, ".json"),
    "2023": (new_review, meta_2023, ".jsonl.gz"),
    "2023 unpacked": (new_review, meta_2023, ".jsonl"),
}


def release(folder: Path, name: str, **settings) -> DataSettings:
    """The world above in the files of one release; B1's metadata are there twice."""
    review, meta, suffix = RELEASES[name]
    write(folder / f"Tools{suffix}", [json.dumps(review(*row)) for row in BOUGHT])
    write(
        folder / f"meta_Tools{suffix}",
        [*(meta(item, title) for item, title in GOODS.items()), meta("B1", "Another title")],
    )
    return DataSettings(**{"source": "amazon", "path": str(folder), "k_core": 2, **settings})


@pytest.mark.parametrize("name", RELEASES)
def test_every_release_gives_the_same_tables(tmp_path, name):
    source = amazon.load(release(tmp_path, name))
    assert source.items.values.tolist() == [
        ["B1", "Saw & Blade", 'It\'s a "good" one', "Q", ["Tools", "Saws"]],
        ["B2", "Oil can", 'It\'s a "good" one', "Q", ["Tools", "Saws"]],
    ]
    rows = source.interactions[["user_id", "item_id", "timestamp", "rating"]].values.tolist()
    assert rows == [list(row) for row in BOUGHT[:6]]
    assert source.filtered


@pytest.mark.parametrize("name", RELEASES)
def test_everything_that_is_dropped_is_counted(tmp_path, name):
    assert amazon.load(release(tmp_path, name)).dropped == {
        "metadata rows without an item id": 0,
        "repeated metadata rows (the first of an item is kept)": 1,
        "items without a title": 1,
        "items with a title of more than data.max_title_words words": 1,
        "reviews of items without metadata": 1,
        "reviews of items dropped for their title": 2,
        "reviews without a user id": 0,
        "interactions outside data.start .. data.end": 0,
        "interactions of users with fewer than 2": 1,
        "interactions outside the 2-core": 0,
        "items with metadata but without interactions after that": 1,
    }


def test_titles_of_any_length_are_kept_when_the_limit_is_off(tmp_path):
    source = amazon.load(release(tmp_path, "2018", max_title_words=0, k_core=0))
    assert (
        source.items["item_id"].tolist() == ["B1", "B2", "B4"]
        and source.items["title"].tolist()[2] == LONG
    )


def test_reviews_without_rating_are_kept_with_none(tmp_path):
    settings = release(tmp_path, "2018")
    write(
        tmp_path / "Tools.json.gz",
        [json.dumps({**old_review(*row), "overall": None}) for row in BOUGHT],
    )
    assert amazon.load(settings).interactions["rating"].isna().all()


def test_memory_does_not_grow_with_the_text_of_the_files(tmp_path):
    """40 MB of review text and 20 MB of descriptions of items that nobody buys are read in far
    less.
    """
    settings = release(tmp_path, "2018 unpacked")
    with open(tmp_path / "Tools.json", "a") as handle:
        for _ in range(400):
            handle.write(
                json.dumps({**old_review("a", "B1", 1, 5.0), "reviewText": "x" * 100_000}) + "\n"
            )
    with open(tmp_path / "meta_Tools.json", "a") as handle:
        for item in range(200):
            handle.write(
                json.dumps({"asin": f"C{item}", "title": "t", "description": ["x" * 100_000]})
                + "\n"
            )
    tracemalloc.start()
    amazon.load(settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


BAD = {
    "cut off line": (
        "Tools.json",
        '{"reviewerID": "a", "asi',
        ':11: got \'{"reviewerID": "a", "asi\', expected one JSON object (2014 metadata: a Python literal) '
        "per line; the file is damaged or cut off",
    ),
    "code instead of data": (
        "meta_Tools.json",
        "{'asin': open('x')}",
        ":7: got \"{'asin': open('x')}\", expected one JSON object (2014 metadata: a Python literal) per "
        "line; the file is damaged or cut off",
    ),
    "a list": ("Tools.json", "[1]", ":11: got a list, expected one object per line"),
    "no user": (
        "Tools.json",
        '{"asin": "B1", "unixReviewTime": 5}',
        ":11: has no 'reviewerID'; its fields: asin, unixReviewTime",
    ),
    "no item": ("meta_Tools.json", '{"title": "x"}', ":7: has no 'asin'; its fields: title"),
    "no time": (
        "Tools.json",
        '{"asin": "B1", "reviewerID": "a"}',
        ":11: has no 'unixReviewTime'; its fields: asin, reviewerID",
    ),
    "bad time": (
        "Tools.json",
        '{"asin": "B1", "reviewerID": "a", "unixReviewTime": "May"}',
        ":11: unixReviewTime: got 'May', expected a unix time",
    ),
    "bad rating": (
        "Tools.json",
        '{"asin": "B1", "reviewerID": "a", "unixReviewTime": 1, "overall": "good"}',
        ":11: overall: got 'good', expected a number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path, case):
    name, line, message = BAD[case]
    settings = release(tmp_path, "2018 unpacked")
    with open(tmp_path / name, "a") as handle:
        handle.write(line + "\n")
    with pytest.raises(UserError, match="^" + re.escape(f"{tmp_path / name}{message}") + "$"):
        amazon.load(settings)


def test_a_cut_off_download_is_refused_with_the_last_good_line(tmp_path):
    settings = release(tmp_path, "2018")
    path = tmp_path / "Tools.json.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        UserError,
        match="^"
        + re.escape(f"{path}")
        + r": is damaged or cut off after line \d+ \(.*\); download it again$",
    ):
        amazon.load(settings)


def test_a_file_that_is_not_gzip_or_empty_is_refused(tmp_path):
    settings = release(tmp_path, "2018")
    (tmp_path / "Tools.json.gz").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match="is damaged or cut off after line 0"):
        amazon.load(settings)
    (tmp_path / "Tools.json.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="is empty; download it again"):
        amazon.load(settings)


def test_files_of_two_releases_do_not_mix(tmp_path):
    settings = release(tmp_path, "2018")
    write(tmp_path / "Tools.json.gz", [json.dumps(new_review(*row)) for row in BOUGHT])
    with pytest.raises(UserError, match="are of different releases"):
        amazon.load(settings)


def test_files_of_another_kind_are_refused_with_their_fields(tmp_path):
    settings = release(tmp_path, "2018")
    write(tmp_path / "Tools.json.gz", ['{"who": "a", "what": "B1"}'])
    with pytest.raises(
        UserError,
        match=re.escape(
            f"{tmp_path}/Tools.json.gz:1: has no field 'reviewerID' (2014, 2018) or 'user_id' (2023); its fields: who, what"
        ),
    ):
        amazon.load(settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"path": "/no/such"},
            "data.path: no folder '/no/such'; give the folder with the review and metadata files",
        ),
        (
            {},
            "data.interactions: is empty and {0} should then hold exactly one review file (.json, .jsonl, .json.gz, .jsonl.gz), "
            "found Toys.json.gz, "
            "Tools.json.gz; name it with data.interactions",
        ),
        (
            {"interactions": "Tool.json.gz"},
            "data.interactions: {0}/Tool.json.gz: no such file; the folder holds Toys.json.gz, Tools.json.gz, meta_Tools.json.gz",
        ),
    ],
)
def test_missing_and_ambiguous_files_are_named(tmp_path, settings, message):
    whole = release(tmp_path, "2018", **settings)
    write(tmp_path / "Toys.json.gz", ["{}"])
    listed = ", ".join(sorted(["Toys.json.gz", "Tools.json.gz"]))
    with pytest.raises(
        UserError,
        match="^"
        + re.escape(message.format(tmp_path).replace("Toys.json.gz, Tools.json.gz", listed))
        + "$",
    ):
        amazon.load(whole)
