"""Source ``amazon``: raw review and metadata files of Amazon Reviews 2014, 2018 and 2023, gzipped or not.

    data:
      source: amazon
      path: raw                                       # holds one review file and one metadata file
      interactions: Industrial_and_Scientific.json.gz
      items: meta_Industrial_and_Scientific.json.gz

    ========  ===========================================  =====================================================
    release   reviews                                      metadata
    ========  ===========================================  =====================================================
    2014      reviewerID asin unixReviewTime overall       Python literals: asin, title, brand, categories [[..]]
    2018      the same                                     JSON: asin, title, brand, category [..]
    2023      user_id parent_asin timestamp (ms) rating    JSON: parent_asin, title, store, categories [..]
    ========  ===========================================  =====================================================

The release is told from the first record of each file. Files are read line by line, and ids become numbers at once, so
memory grows with the kept reviews (about 20 bytes each) and the distinct ids, not with the file. The metadata are read
twice: first for titles, then, once the filters have run, for the texts of the items that are left.
"""

from __future__ import annotations

import ast
import gzip
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from minionerec.catalogue import split
from minionerec.catalogue.sources import cells, tables
from minionerec.errors import UserError
from minionerec.experiment.settings import DataSettings

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
BAD_TITLE = -1  # instead of an item's number: its reviews are dropped


class Layout(NamedTuple):
    """The field names of one release."""

    user: str
    item: str
    time: str
    rating: str
    brand: str
    time_units: int  # per second


OLD = Layout("reviewerID", "asin", "unixReviewTime", "overall", "brand", 1)  # 2014 and 2018
NEW = Layout("user_id", "parent_asin", "timestamp", "rating", "store", 1000)  # 2023


class Reviews(NamedTuple):
    """Reviews of items with a good title, all of shape (n,) in file order."""

    users: np.ndarray  # int32, into user_ids
    items: np.ndarray  # int32, as numbered in the metadata
    timestamps: np.ndarray  # int64 seconds
    ratings: np.ndarray  # float64
    user_ids: list[str]


def load(settings: DataSettings) -> tables.Source:
    """Read, filter and convert; see the module's description.

    Raises:
        UserError: a file is missing, damaged or not of a known layout.
    """
    reviews_path, metadata_path = find_files(settings)
    layout = detect(reviews_path, "user")
    if detect(metadata_path, "item") != layout:
        raise UserError(
            f"{metadata_path} and {reviews_path} are of different releases (2023 and an earlier one); "
            "take both from one"
        )
    numbers, dropped = number_items(metadata_path, layout, settings.max_title_words)
    reviews, unmatched = read_reviews(reviews_path, layout, numbers)
    dropped.update(unmatched)
    kept, filtered = split.select(
        reviews.users, reviews.items, reviews.timestamps, reviews.ratings, settings
    )
    dropped.update(filtered)
    item_ids = {number: item for item, number in numbers.items() if number != BAD_TITLE}
    surviving = {item_ids[number] for number in np.unique(reviews.items[kept]).tolist()}
    dropped["items with metadata but without interactions after that"] = len(item_ids) - len(
        surviving
    )
    interactions = pd.DataFrame(
        {
            "user_id": [reviews.user_ids[user] for user in reviews.users[kept].tolist()],
            "item_id": [item_ids[number] for number in reviews.items[kept].tolist()],
            "timestamp": reviews.timestamps[kept],
            "rating": reviews.ratings[kept],
            "split": "",
        }
    )
    return tables.Source(
        read_items(metadata_path, layout, surviving), interactions, dropped=dropped, filtered=True
    )


def find_files(settings: DataSettings) -> tuple[Path, Path]:
    """Paths of the reviews and of the metadata: named in the settings, or the one file of its kind in the folder."""
    folder = Path(settings.path)
    if not folder.is_dir():
        raise UserError(
            f"data.path: no folder '{folder}'; give the folder with the review and metadata files"
        )
    present = sorted(p.name for p in folder.iterdir() if p.name.endswith(SUFFIXES))
    paths = []
    for key, word, fits in (
        ("interactions", "review file", lambda name: not name.startswith("meta")),
        ("items", "metadata file (meta*)", lambda name: name.startswith("meta")),
    ):
        name = getattr(settings, key)
        found = [name] if name else [other for other in present if fits(other)]
        if len(found) != 1:
            raise UserError(
                f"data.{key}: is empty and {folder} should then hold exactly one {word} ({', '.join(SUFFIXES)}), "
                f"found {', '.join(found) or 'none'}; name it with data.{key}"
            )
        if not (folder / found[0]).is_file():
            raise UserError(
                f"data.{key}: {folder / found[0]}: no such file; the folder holds "
                f"{', '.join(present) or 'no such files'}"
            )
        paths.append(folder / found[0])
    return paths[0], paths[1]


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(line number, record)`` for every line, one at a time.

    Raises:
        UserError: a line is not a record, or the file is cut off.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as handle:
            for number, line in enumerate(
                tqdm(handle, desc=path.name, unit=" lines", disable=None), 1
            ):
                if line.strip():
                    yield number, parse(line, f"{path}:{number}")
    except (EOFError, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: is damaged or cut off after line {number} ({error}); download it again"
        ) from None
    if number == 0:
        raise UserError(f"{path}: is empty; download it again")


def parse(line: bytes, where: str) -> dict[str, Any]:
    """One record: JSON, or the Python literal that the 2014 metadata use.

    Raises:
        UserError: neither, or not a mapping.
    """
    try:
        text = line.decode("utf-8-sig").strip()
        try:
            record = json.loads(text)
        except ValueError:
            record = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        shown = cells.shorten(line.decode("utf-8", "replace").strip())
        raise UserError(
            f"{where}: got {shown}, expected one JSON object (2014 metadata: a Python literal) per line; "
            "the file is damaged or cut off"
        ) from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: got a {type(record).__name__}, expected one object per line")
    return record


def detect(path: Path, kind: str) -> Layout:
    """The layout whose ``kind`` field ("user" or "item") the first record has.

    Raises:
        UserError: it has none of them.
    """
    number, first = next(records(path))
    for layout in (NEW, OLD):
        if getattr(layout, kind) in first:
            return layout
    raise UserError(
        f"{path}:{number}: has no field '{getattr(OLD, kind)}' (2014, 2018) or '{getattr(NEW, kind)}' (2023); "
        f"its fields: {', '.join(list(first)[:12])}"
    )


def field(record: dict[str, Any], name: str, where: str) -> Any:
    """A field that every record must have."""
    if record.get(name) in (None, ""):
        raise UserError(f"{where}: has no '{name}'; its fields: {', '.join(list(record)[:12])}")
    return record[name]


def number_items(
    path: Path, layout: Layout, max_title_words: int
) -> tuple[dict[str, int], dict[str, int]]:
    """First reading of the metadata.

    Returns:
        Item id -> running number, or ``BAD_TITLE``; and counts of what is dropped.
    """
    numbers: dict[str, int] = {}
    repeated = untitled = long = 0
    for line, record in records(path):
        item = str(field(record, layout.item, f"{path}:{line}"))
        if item in numbers:
            repeated += 1
            continue
        title = cells.read_text(record.get("title"))
        kept = split.title_is_kept(title, max_title_words)
        untitled += not title
        long += bool(title) and not kept
        numbers[item] = len(numbers) if kept else BAD_TITLE
    return numbers, {
        "repeated metadata rows (the first of an item is kept)": repeated,
        "items without a title": untitled,
        "items with a title of more than data.max_title_words words": long,
    }


def read_reviews(
    path: Path, layout: Layout, numbers: dict[str, int]
) -> tuple[Reviews, dict[str, int]]:
    """All reviews of items that have a good title.

    Returns:
        The reviews, and counts of what is dropped.
    """
    users, items, times, ratings = array("i"), array("i"), array("q"), array("d")
    user_codes: dict[str, int] = {}
    unknown = untitled = 0
    for line, record in records(path):
        where = f"{path}:{line}"
        number = numbers.get(str(field(record, layout.item, where)))
        if number is None or number == BAD_TITLE:
            unknown += number is None
            untitled += number == BAD_TITLE
            continue
        user = str(field(record, layout.user, where))
        users.append(user_codes.setdefault(user, len(user_codes)))
        items.append(number)
        times.append(
            whole(field(record, layout.time, where), layout.time, where) // layout.time_units
        )
        ratings.append(rating_of(record.get(layout.rating), layout.rating, where))
    reviews = Reviews(
        np.array(users), np.array(items), np.array(times), np.array(ratings), list(user_codes)
    )
    return reviews, {
        "reviews of items without metadata": unknown,
        "reviews of items dropped for their title": untitled,
    }


def whole(value: Any, name: str, where: str) -> int:
    """A time as a whole number."""
    try:
        number = int(value)
        if isinstance(value, bool) or number < 0:
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise UserError(
            f"{where}: {name}: got {cells.shorten(value)}, expected a unix time"
        ) from None
    return number


def rating_of(value: Any, name: str, where: str) -> float:
    """A rating as a number; NaN if there is none."""
    if value is None:
        return float("nan")
    try:
        return float(value)
    except (ValueError, TypeError):
        raise UserError(f"{where}: {name}: got {cells.shorten(value)}, expected a number") from None


def read_items(path: Path, layout: Layout, surviving: set[str]) -> pd.DataFrame:
    """Second reading of the metadata: the texts of the surviving items, in file order."""
    rows: dict[str, tuple[str, ...]] = {}
    for line, record in records(path):
        item = str(field(record, layout.item, f"{path}:{line}"))
        if item not in surviving or item in rows:
            continue
        texts = [
            cells.read_text(record.get(name)) for name in ("title", "description", layout.brand)
        ]
        rows[item] = (
            item,
            *texts,
            cells.read_categories(record.get("category") or record.get("categories")),
        )
    return pd.DataFrame(list(rows.values()), columns=list(tables.ITEM_COLUMNS))
