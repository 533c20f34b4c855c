"""Source ``amazon``: raw files of Amazon Reviews 2014, 2018 and 2023, gzipped or not.

    data:
      source: amazon
      path: raw                                       # holds one review file and one metadata file
      interactions: Industrial_and_Scientific.json.gz
      items: meta_Industrial_and_Scientific.json.gz

    ========  =====================================  =============================================
    release   reviews                                metadata
    ========  =====================================  =============================================
    2014      reviewerID asin unixReviewTime overall Python literals: asin, title, brand, categories
    2018      the same                               JSON: asin, title, brand, category [..]
    2023      user_id parent_asin timestamp rating   JSON: parent_asin, title, store, categories
    ========  =====================================  =============================================

The release is told from the first record of each file, the unit of the times (seconds until 2018,
milliseconds in 2023) from the numbers themselves. Files are read line by line, and ids become
numbers at once, so memory grows with the kept reviews (about 20 bytes each) and the distinct ids,
not with the file. The metadata are read twice: first for titles, then, once the filters have run,
for the texts of the items that are left.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from minionerec.catalogue.sources import cells, files, filters, readers, times
from minionerec.catalogue.sources.source import ITEM_COLUMNS, Source
from minionerec.errors import UserError, relative_to
from minionerec.experiment.files import fingerprints
from minionerec.experiment.progress import Progress
from minionerec.experiment.settings import DataSettings

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
BAD_TITLE = -1  # instead of an item's number: its reviews are dropped
MOST_SECONDS = 2**62  # what a column of times can hold


class Layout(NamedTuple):
    """The field names of one release."""

    user: str
    item: str
    time: str
    rating: str
    brand: str


OLD = Layout("reviewerID", "asin", "unixReviewTime", "overall", "brand")  # 2014 and 2018
NEW = Layout("user_id", "parent_asin", "timestamp", "rating", "store")  # 2023


class Reviews(NamedTuple):
    """Reviews of items with a good title, all of shape (n,) in file order."""

    users: np.ndarray  # int32, into user_ids
    items: np.ndarray  # int32, as numbered in the metadata
    timestamps: np.ndarray  # int64 seconds
    ratings: np.ndarray  # float64
    user_ids: list[str]
    unit: str  # of the times in the file


def load(settings: DataSettings) -> Source:
    """Read, filter and convert; see the module's description.

    Raises:
        UserError: a file is missing, damaged or not of a known layout.
    """
    reviews_path, metadata_path = find_files(settings)
    files = fingerprints([reviews_path, metadata_path])
    layout = detect(reviews_path, "user")
    if detect(metadata_path, "item") != layout:
        raise UserError(
            f"{metadata_path} and {reviews_path} are of different releases (2023 and an earlier "
            "one); take both from one"
        )
    numbers, dropped = number_items(metadata_path, layout, settings.max_title_words)
    reviews, unmatched = read_reviews(reviews_path, layout, numbers)
    dropped.update(unmatched)
    kept, filtered = filters.select(
        reviews.users, reviews.items, reviews.timestamps, reviews.ratings, settings
    )
    dropped.update(filtered)
    item_ids = {number: item for item, number in numbers.items() if number != BAD_TITLE}
    surviving = {item_ids[number] for number in np.unique(reviews.items[kept]).tolist()}
    without = len(item_ids) - len(surviving)
    dropped["items with metadata but without interactions after that"] = without
    interactions = pd.DataFrame(
        {
            "user_id": [reviews.user_ids[user] for user in reviews.users[kept].tolist()],
            "item_id": [item_ids[number] for number in reviews.items[kept].tolist()],
            "timestamp": reviews.timestamps[kept],
            "rating": reviews.ratings[kept],
            "split": "",
        }
    )
    items, notes = read_items(metadata_path, layout, surviving)
    notes += note_doubtful_times(reviews_path, reviews)
    return Source(
        items,
        interactions,
        dropped=dropped,
        timestamps=times.source_of(reviews.unit),
        notes=notes,
        filtered=True,
        files=files,
    )


def find_files(settings: DataSettings) -> tuple[Path, Path]:
    """Paths of the reviews and of the metadata.

    They are named in the settings, or the only files of their kind in the folder.

    Raises:
        UserError: a file is not there, or several could be meant.
    """
    folder = Path(settings.path)
    if not os.path.isdir(folder):  # also of a name too long for a folder
        raise UserError(
            f"data.path: no folder '{folder}'{relative_to(folder)}; give the folder with the "
            "review and metadata files"
        )
    present = sorted(
        path.name for path in folder.iterdir() if path.is_file() and path.name.endswith(SUFFIXES)
    )
    paths = []
    for key, word, fits in (
        ("interactions", "review file", lambda name: not name.startswith("meta")),
        ("items", "metadata file (meta*)", lambda name: name.startswith("meta")),
    ):
        name = getattr(settings, key)
        found = [name] if name else [other for other in present if fits(other)]
        if len(found) != 1:
            raise UserError(
                f"data.{key}: is empty and {folder} should then hold exactly one {word} "
                f"({', '.join(SUFFIXES)}), found {', '.join(found) or 'none'}; name it with "
                f"data.{key}"
            )
        if not os.path.isfile(folder / found[0]):
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
    number = 0
    try:
        with files.open_bytes(path) as handle:
            bar = Progress(path.name, None, "lines")
            for number, line in enumerate(handle, 1):
                bar.update()
                if line.strip():
                    yield number, parse(line, f"{path}:{number}")
    except readers.DAMAGED as error:
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
        return readers.parse_record(line.decode("utf-8-sig").strip())
    except TypeError as error:
        raise UserError(f"{where}: got a {error}, expected one object per line") from None
    except ValueError:
        shown = cells.shorten(line.decode("utf-8", "replace").strip())
        raise UserError(
            f"{where}: got {shown}, expected one JSON object (2014 metadata: a Python literal) per "
            "line; the file is damaged or cut off"
        ) from None


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
        f"{path}:{number}: has no field '{getattr(OLD, kind)}' (2014, 2018) or "
        f"'{getattr(NEW, kind)}' (2023); its fields: {', '.join(list(first)[:12])}"
    )


def field(record: dict[str, Any], name: str, where: str) -> Any:
    """A field that every record must have; None if it holds the null or NaN of a missing value.

    Raises:
        UserError: there is no such field, or it is empty.
    """
    if name not in record or record[name] == "":
        raise UserError(f"{where}: has no '{name}'; its fields: {', '.join(list(record)[:12])}")
    value = record[name]
    return None if cells.is_missing(value) else value


def id_of(record: dict[str, Any], name: str, where: str) -> str:
    """An id; "" if the record's is null or NaN.

    Raises:
        UserError: there is none, or it holds half of a character.
    """
    value = field(record, name, where)
    text = cells.read_id(value)
    if cells.has_half_characters(text):
        raise UserError(
            f"{where}: {name}: got {cells.shorten(value)}, expected an id of whole characters; "
            "half of a pair (a lone surrogate) cannot be stored"
        )
    return text


def number_items(
    path: Path, layout: Layout, max_title_words: int
) -> tuple[dict[str, int], dict[str, int]]:
    """First reading of the metadata.

    Returns:
        Item id -> running number, or ``BAD_TITLE``; and counts of what is dropped.
    """
    numbers: dict[str, int] = {}
    nameless = 0
    repeated = 0
    untitled = 0
    long = 0
    for line, record in records(path):
        where = f"{path}:{line}"
        item = id_of(record, layout.item, where)
        if not item:
            nameless += 1
            continue
        if item in numbers:
            repeated += 1
            continue
        title = text_of(record, "title", where)
        kept = filters.title_is_kept(title, max_title_words)
        untitled += not title
        long += bool(title) and not kept
        numbers[item] = len(numbers) if kept else BAD_TITLE
    return numbers, {
        "metadata rows without an item id": nameless,
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

    Raises:
        UserError: a field is missing or cannot be read, or the times are in several units.
    """
    users = array("i")
    items = array("i")
    moments = array("q")
    ratings = array("d")
    user_codes: dict[str, int] = {}
    nameless = 0
    unknown = 0
    untitled = 0
    for line, record in records(path):
        where = f"{path}:{line}"
        item = id_of(record, layout.item, where)
        number = numbers.get(item)
        if number is None or number == BAD_TITLE:
            unknown += number is None
            untitled += number == BAD_TITLE
            continue
        user = id_of(record, layout.user, where)
        if not user:
            nameless += 1
            continue
        users.append(user_codes.setdefault(user, len(user_codes)))
        items.append(number)
        moments.append(whole(field(record, layout.time, where), layout.time, where))
        ratings.append(rating_of(record.get(layout.rating), layout.rating, where))
    seconds, unit = to_seconds(np.array(moments, dtype=np.int64), path, layout.time)
    reviews = Reviews(
        np.array(users), np.array(items), seconds, np.array(ratings), list(user_codes), unit
    )
    return reviews, {
        "reviews of items without metadata": unknown,
        "reviews of items dropped for their title": untitled,
        "reviews without a user id": nameless,
    }


def to_seconds(moments: np.ndarray, path: Path, name: str) -> tuple[np.ndarray, str]:
    """``(n,)`` times in the file's unit as seconds, and that unit.

    Raises:
        UserError: there are several units.
    """
    units = times.units_of(moments)
    if len(units) > 1:
        examples = ", ".join(f"{unit} ({moments[row]})" for unit, row in units.items())
        raise UserError(
            f"{path}: {name}: looks like {examples}, and a file has one unit; write all times in "
            "one"
        )
    unit = next(iter(units), "seconds")
    return moments // times.UNITS[unit][0], unit


def note_doubtful_times(path: Path, reviews: Reviews) -> tuple[str, ...]:
    """A line on times that are probably not what was meant."""
    doubt = times.doubt(reviews.timestamps, reviews.unit)
    if doubt is None:
        return ()
    day = times.day_of(int(reviews.timestamps[doubt.row]))
    return (
        f"{path}: {doubt.rows} of {len(reviews.timestamps)} times, the first of them {day}, are "
        f"unlikely; {doubt.reason}",
    )


def whole(value: Any, name: str, where: str) -> int:
    """A time as a whole number.

    Raises:
        UserError: it is none, or before 1970.
    """
    try:
        number = int(value)
        if isinstance(value, bool) or abs(number) > MOST_SECONDS:
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise UserError(
            f"{where}: {name}: got {cells.shorten(value)}, expected a unix time"
        ) from None
    if number < 0:
        raise UserError(
            f"{where}: {name}: got {cells.shorten(value)}, expected a unix time from 1970 on; "
            "this one is before"
        )
    return number


def rating_of(value: Any, name: str, where: str) -> float:
    """A rating as a number; NaN if there is none.

    Raises:
        UserError: it is no number.
    """
    if value is None:
        return float("nan")
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{where}: {name}: got {cells.shorten(value)}, expected a number") from None


def text_of(record: dict[str, Any], name: str, where: str) -> str:
    """The cleaned text of a field; "" if there is none.

    Raises:
        UserError: it is no text.
    """
    try:
        return cells.read_text(record.get(name))
    except ValueError:
        shown = cells.shorten(record[name])
        raise UserError(f"{where}: {name}: got {shown}, expected text") from None


def categories_of(record: dict[str, Any], where: str) -> list[str]:
    """The category names of an item.

    Raises:
        UserError: they are no list of names.
    """
    value = record.get("category") or record.get("categories")
    try:
        return cells.read_categories(value)
    except ValueError:
        shown = cells.shorten(value)
        raise UserError(f"{where}: categories: got {shown}, expected a list of names") from None


def read_items(
    path: Path, layout: Layout, surviving: set[str]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Second reading of the metadata: texts of the surviving items, in file order; notes."""
    rows: dict[str, tuple[Any, ...]] = {}
    broken: list[str] = []
    for line, record in records(path):
        where = f"{path}:{line}"
        item = id_of(record, layout.item, where)
        if item not in surviving or item in rows:
            continue
        title = text_of(record, "title", where)
        description = text_of(record, "description", where)
        brand = text_of(record, layout.brand, where)
        categories = categories_of(record, where)
        rows[item] = (item, title, description, brand, categories)
        if "\ufffd" in str(rows[item]) and "\ufffd" not in str(record):
            broken.append(where)
    notes: tuple[str, ...] = ()
    if broken:
        notes = (
            f"{broken[0]}: holds half of a character (a lone surrogate), replaced by U+FFFD "
            f"({len(broken)} such items)",
        )
    return pd.DataFrame(list(rows.values()), columns=list(ITEM_COLUMNS)), notes
