"""Source ``minionerec``.

The data folder of AkaliKong/MiniOneRec, taken over with its split and its SIDs.

The folder holds ``*item.json``, ``*index.json`` and one CSV file each for train, valid and test,
beside each other or in the subfolders train/, valid/, test/, index/ of that repository. Every CSV
row is one sample:

    user_id, history_item_title, item_title, history_item_id, item_id, history_item_sid, item_sid

Samples overlap, so each user's sequence is rebuilt by chaining: the first row's history, then every
row's target. A row whose history is not the end of what the chain holds so far is an error, never a
guess. Times are not in these files; the timestamp is a running number in the order of the files
(what is only ever history counts as train).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from minionerec.catalogue.sources import cells, readers, tables
from minionerec.catalogue.sources.items import convert_items
from minionerec.catalogue.sources.source import ITEM_COLUMNS, SPLITS, Source
from minionerec.catalogue.sources.table import Table
from minionerec.errors import UserError, relative_to
from minionerec.experiment.files import fingerprints, read_json
from minionerec.experiment.settings import DataSettings

TOKEN = re.compile(r"<([a-z]+)_(\d+)>")


class Row(NamedTuple):
    """One sample of a CSV file."""

    where: str  # file:line, for messages
    split: str
    user: str
    history: list[str]  # item ids, oldest first
    target: str


def load(settings: DataSettings) -> Source:
    """Items, rebuilt sequences and SIDs of a MiniOneRec folder.

    Raises:
        UserError: a file is missing or ambiguous, a cell cannot be read, or the rows contradict
            each other.
    """
    folder = Path(settings.path)
    if not os.path.isdir(folder):  # also of a name too long for a folder
        raise UserError(
            f"data.path: no folder '{folder}'{relative_to(folder)}; give the folder with "
            "*item.json, *index.json and the CSV files"
        )
    items_path = _find_json(folder, settings.items, "item")
    index_path = _find_json(folder, "", "index")
    samples_paths = {split: _find_csv(folder, split) for split in SPLITS}
    files = fingerprints([items_path, index_path, *samples_paths.values()])
    items, notes = read_items(items_path)
    sids = read_index(index_path)
    missing = [item for item in items["item_id"] if item not in sids]
    if missing:
        raise UserError(
            f"{index_path}: has no SID for {len(missing)} items of the catalogue, e.g. "
            f"'{missing[0]}'; use the index file that belongs to these items"
        )
    known = set(items["item_id"])
    rows: list[Row] = []
    for split in SPLITS:
        rows += read_samples(samples_paths[split], split, known, sids)
    given_sids = {item: codes_of(sids[item]) for item in items["item_id"]}
    return Source(items, chain(rows), given_sids, timestamps="order only", notes=notes, files=files)


def _find_json(folder: Path, name: str, word: str) -> Path:
    if name:
        return tables.find_file(folder, name, "items")
    return _only(
        sorted({*folder.glob(f"*{word}.json"), *folder.glob(f"index/*{word}.json")}),
        folder,
        f"*{word}.json",
    )


def _find_csv(folder: Path, split: str) -> Path:
    found = sorted(folder.glob(f"*{split}*.csv")) or sorted(folder.glob(f"{split}/*.csv"))
    sequences = sorted(folder.glob("*.inter.json"))
    if not found and sequences:
        raise UserError(
            f"data.path: {folder} holds the layout of LC-Rec (a {sequences[0].name} with each "
            "user's items), not of MiniOneRec (a CSV file each for train, valid and test); write "
            "it as two tables with the columns user_id, item_id, timestamp (the place in the "
            "sequence) and item_id, title, and read them with data.source: tables and "
            "data.split: leave_one_out"
        )
    return _only(found, folder, f"*{split}*.csv or {split}/*.csv")


def _only(found: list[Path], folder: Path, pattern: str) -> Path:
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        raise UserError(
            f"data.path: {folder} should hold exactly one {pattern}, found {names}; "
            "put each data set into a folder of its own"
        )
    return found[0]


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 text ({error.reason}); convert it to UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); it is damaged or cut off") from None
    if not isinstance(value, dict) or not value:
        raise UserError(
            f"{path}: got {cells.shorten(value)}, expected an object with one entry per item id"
        )
    return value


def read_items(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """``{"0": {"title", "description", "brand", "categories"}, ...}`` as items; notes."""
    entries = _read_json_object(path)
    for item, entry in entries.items():
        if isinstance(entry, dict):
            continue
        raise UserError(
            f"{path}: item '{item}': got {cells.shorten(entry)}, expected an object with a title"
        )
    columns: dict[str, list[Any]] = {"item_id": list(entries)}
    for name in ITEM_COLUMNS[1:]:
        columns[name] = [entry.get(name) for entry in entries.values()]
    problems: list[str] = []
    table = Table(path, columns, list(columns), list(entries), ": item ")
    frame, notes = convert_items(table, problems)
    if problems:
        raise UserError("\n".join(problems))
    return frame, notes


def read_index(path: Path) -> dict[str, str]:
    """``{item_id: "<a_1><b_2><c_3>"}`` from ``{"0": ["<a_1>", "<b_2>", "<c_3>"], ...}``."""
    sids = {}
    for item, tokens in _read_json_object(path).items():
        if not _are_tokens(tokens):
            raise UserError(
                f"{path}: item '{item}': got {cells.shorten(tokens)}, expected tokens such as "
                "['<a_1>', '<b_2>', '<c_3>']"
            )
        sids[item] = "".join(tokens)
    return sids


def _are_tokens(value: Any) -> bool:
    """Whether this is a list of SID tokens, one of every level from a."""
    if not isinstance(value, list) or not value:
        return False
    for level, token in enumerate(value):
        found = TOKEN.fullmatch(token) if isinstance(token, str) else None
        if found is None or found[1] != chr(ord("a") + level):
            return False
    return True


def codes_of(sid: str) -> list[int]:
    """``"<a_236><b_231>"`` as ``[236, 231]``."""
    return [int(code) for _, code in TOKEN.findall(sid)]


def read_samples(path: Path, split: str, known: set[str], sids: dict[str, str]) -> list[Row]:
    """The rows of one CSV file, every id and SID checked against the catalogue.

    Raises:
        UserError: at the first cell that is wrong.
    """
    wanted = {name: name for name in ("user_id", "history_item_id", "item_id", "item_sid")}
    table = readers.read_table(path, wanted)
    lacking = [name for name in wanted if name not in table.columns and name != "item_sid"]
    if lacking:
        raise UserError(
            f"{path}: has no column '{lacking[0]}' (its columns: {', '.join(table.header)}); "
            "expected MiniOneRec's CSV"
        )
    users = table.columns["user_id"]
    targets = table.columns["item_id"]
    rows = []
    for at, (user, target) in enumerate(zip(users, targets, strict=True)):
        history = _history(table, at)
        if not user:
            raise UserError(f"{table.at(at)}: user_id: is empty, expected a user")
        for item in (*history, target):
            if item not in known:
                raise UserError(
                    f"{table.at(at)}: got item '{item}', expected an item of *item.json; "
                    "the files do not belong together"
                )
        if "item_sid" in table.columns and table.columns["item_sid"][at] != sids[target]:
            found = cells.shorten(table.columns["item_sid"][at])
            raise UserError(
                f"{table.at(at)}: item_sid: got {found} for item '{target}', expected "
                f"'{sids[target]}' as in *index.json; the files do not belong together"
            )
        rows.append(Row(table.at(at), split, user, history, target))
    return rows


def _history(table: Table, at: int) -> list[str]:
    """The item ids of a row's history.

    Raises:
        UserError: the cell is no list, or an empty one.
    """
    cell = table.columns["history_item_id"][at]
    try:
        history = [str(item) for item in cells.read_list(cell)]
    except ValueError:
        raise UserError(
            f"{table.at(at)}: history_item_id: got {cells.shorten(cell)}, "
            "expected a list such as [12, 7]"
        ) from None
    if not history:
        raise UserError(f"{table.at(at)}: history_item_id: is empty, expected at least one item")
    return history


def chain(rows: list[Row]) -> pd.DataFrame:
    """Rebuild every user's sequence from overlapping samples.

    Histories are cut at some length by whoever wrote the files (10 in the original); the longest
    one found is taken as that length.

    Args:
        rows: train, then valid, then test, each in file order.

    Returns:
        Interactions; train before valid before test, otherwise in the order of the rows.

    Raises:
        UserError: a row's history is not the end of its user's sequence so far.
    """
    limit = max(len(row.history) for row in rows)
    sequences: dict[str, list[str]] = {}
    events: list[tuple[str, str, str]] = []
    for row in rows:
        sequence = sequences.get(row.user)
        if sequence is None:
            sequence = sequences[row.user] = list(row.history)
            events += [(row.user, item, "train") for item in row.history]
        elif row.history != sequence[-limit:]:
            raise UserError(
                f"{row.where}: history_item_id: got {cells.shorten(row.history)}, expected "
                f"{cells.shorten(sequence[-limit:])}, the items that earlier rows of user "
                f"'{row.user}' (train, valid, test) add up to{_order_hint(row, rows, limit)}"
            )
        sequence.append(row.target)
        events.append((row.user, row.target, row.split))
    events.sort(key=lambda event: SPLITS.index(event[2]))
    frame = pd.DataFrame(events, columns=["user_id", "item_id", "split"])
    return frame.assign(timestamp=range(1, len(frame) + 1), rating=float("nan"))


def _order_hint(row: Row, rows: list[Row], limit: int) -> str:
    """Which row this one should follow or precede, if the files are not in time order."""
    after = [*row.history, row.target][-limit:]
    passed = False
    for other in rows:
        if other is row:
            passed = True
        elif other.user != row.user:
            continue
        elif passed and [*other.history, other.target][-limit:] == row.history:
            return _shuffled(row, other)
        elif not passed and other.history == after:
            return _shuffled(other, row)
    return ""


def _shuffled(row: Row, other: Row) -> str:
    return (
        f"; rows must be in time order, but {row.where} comes after {other.where} by its history: "
        "the file was shuffled; take the one from before shuffling, or sort each user's rows by "
        "time"
    )
