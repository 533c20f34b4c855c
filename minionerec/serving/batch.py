"""Lists for many users, from a file into a file.

Users are ranked in forwards of the same size as an evaluation's, so that the same histories in the
same order get the same lists to the bit. Several processes take a share each; what is ranked is
kept beside the output, and the same command after a kill ranks the rest.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from accelerate.utils import broadcast_object_list

from minionerec.catalogue.inputs import Catalogue
from minionerec.errors import UserError
from minionerec.evaluation.run import Lines, facts_of, joined, what_is_missing
from minionerec.experiment import parts as kept
from minionerec.experiment.files import sha256_json
from minionerec.experiment.processes import processes
from minionerec.experiment.stages import parts_path
from minionerec.model import ranking
from minionerec.serving.item_filters import ItemFilters, Where, read_table
from minionerec.serving.recommender import Recommender

FORMATS = (".jsonl", ".csv", ".parquet")
USERS_PER_PART = 1024  # of what a kill can lose


class Users(NamedTuple):
    """Who gets a list."""

    ids: list[str]
    histories: list[list[int]]  # item indexes, oldest first


class Request(NamedTuple):
    """What all users of a file are asked with."""

    k: int = 10
    allow: list[str] | None = None
    deny: list[str] | None = None
    where: Where | None = None


def read_request(file: Path | None, k: int) -> Request:
    """Filters from a JSON file with any of ``allow``, ``deny`` and ``where``.

    Raises:
        UserError: it is no such file.
    """
    if file is None:
        return Request(k)
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--filters: {file}: cannot be read as JSON ({error})") from None
    known = set(Request._fields) - {"k"}
    if not isinstance(content, dict) or not set(content) <= known:
        raise UserError(f"--filters: {file}: expected an object with allow, deny or where")
    for name in ("allow", "deny"):
        if not isinstance(content.get(name, []), list):
            raise UserError(f"--filters: {file}: {name}: expected a list of item ids")
    if not isinstance(content.get("where", {}), dict):
        raise UserError(f"--filters: {file}: where: expected column -> values")
    return Request(k, **content)


def history_ids(text: str) -> list[str]:
    """The item ids of ``--history``; one that holds a comma stands in double quotes.

    >>> history_ids('12, "bolts, long" ,7')
    ['12', 'bolts, long', '7']
    """
    words = next(csv.reader([text], skipinitialspace=True), [])
    return [word.strip() for word in words if word.strip()]


def read_users(file: Path, filters: ItemFilters) -> Users:
    """Histories from a table.

    It has ``user_id`` and either ``history``, a list of item ids, oldest first, or a row for each
    interaction with ``item_id`` (and ``timestamp``, by which rows are ordered then).

    Raises:
        UserError: it cannot be read, an id is unknown, or a history is empty.
    """
    table = read_table(file, ("user_id", "item_id"))
    if "user_id" not in table or not {"history", "item_id"} & set(table.columns):
        raise UserError(
            f"{file}: has the columns {', '.join(map(str, table))}; expected user_id and history, "
            "or user_id and item_id"
        )
    if "history" not in table:
        table = _by_user(table)
    histories = []
    for row, (user, history) in enumerate(zip(table["user_id"], table["history"], strict=True), 1):
        where = f"{file}, row {row} (user '{user}'): history"
        if not isinstance(history, list | np.ndarray) or not len(history):
            raise UserError(f"{where}: got {history!r:.60}, expected a list of item ids")
        item_ids = [str(item) for item in history]
        items = filters.positions(where, item_ids)
        histories.append(items.tolist())
    if not histories:
        raise UserError(f"{file}: is empty; expected a user at least")
    return Users(table["user_id"].tolist(), histories)


def all_users(catalogue: Catalogue, filters: ItemFilters) -> Users:
    """Every user of a run, with all that is known of them."""
    columns = ["user_id", "item_id", "timestamp"]
    file = catalogue.data.path / "interactions.parquet"
    table = _by_user(pd.read_parquet(file, columns=columns))
    histories = []
    for item_ids in table["history"]:
        items = filters.positions("history", item_ids)
        histories.append(items.tolist())
    return Users(table["user_id"].tolist(), histories)


def _by_user(table: pd.DataFrame) -> pd.DataFrame:
    """One row per user, in the order of their first rows; equal times keep their order."""
    order = table["user_id"].drop_duplicates()
    if "timestamp" in table:
        table = table.sort_values("timestamp", kind="stable")
    by_user = table.groupby("user_id", sort=False)
    histories = by_user["item_id"].agg(list)
    histories = histories.reindex(order)
    return histories.rename("history").reset_index()


def recommend_to_file(
    recommender: Recommender, users: Users, request: Request, target: Path
) -> None:
    """Rank all users and write their lists; every process of a launch calls this.

    Args:
        recommender: of the run.
        users: who gets a list.
        request: with what.
        target: ``.jsonl`` has a line per user (``user_id, item_ids, scores``); ``.csv`` and
            ``.parquet`` have a row per item (``user_id, rank, item_id, score``).

    Raises:
        UserError: the file is there already, or cannot be written.
    """
    state = processes()
    mask = recommender.mask(request.allow, request.deny, request.where)
    ranker = recommender.ranker(users.histories, request.k, mask=mask)
    step = USERS_PER_PART // ranking.USERS_PER_FORWARD
    numbers = range(0, len(ranker.batches), step)
    parts = [ranker.batches[start : start + step] for start in numbers]
    folder = parts_path(target)
    missing = None
    if state.is_main_process:
        facts = _facts(recommender, users, request)
        missing = what_is_missing(folder, facts, parts)
    todo = broadcast_object_list([missing])[0]

    mine = todo[state.process_index :: state.num_processes]
    batches = [batch for number in mine for batch in parts[number]]
    found = ranker.rank(batches, progress="ranking" if state.is_main_process else "")
    for number in mine:
        lines = []
        for batch in parts[number]:
            leaves, scores = next(found)
            lists = recommender.lists(ranker, batch, leaves, scores, request.k)
            for row, (items, item_scores) in zip(batch, lists, strict=True):
                line = _line(recommender, users.ids[row], items, item_scores)
                lines.append(line)
        kept.write_part(folder, number, lines)
    state.wait_for_everyone()
    if state.is_main_process:
        ranked, _ = joined(folder, parts)
        _write(target, ranked)
        shutil.rmtree(folder, ignore_errors=True)


def check_target(target: Path) -> None:
    """Refuse an output that cannot be, before anything is loaded.

    Raises:
        UserError: it has another format, or is there already.
    """
    if target.suffix not in FORMATS:
        raise UserError(f"--out: got '{target}', expected a name ending in {', '.join(FORMATS)}")
    if target.exists():
        raise UserError(f"--out: {target} is there already; delete it, or name another file")


def _facts(recommender: Recommender, users: Users, request: Request) -> dict[str, Any]:
    """What lists depend on: parts of a run with other facts are never used."""
    return facts_of(recommender.policy) | {
        "fusion": recommender.catalogue.experiment.evaluate.fusion,
        "users": sha256_json([users.ids, users.histories]),
        "request": sha256_json(request._asdict()),
        "attributes": recommender.filters.digest,
        "device": processes().device.type,
    }


def _line(
    recommender: Recommender, user_id: str, items: Sequence[int], scores: Sequence[float]
) -> str:
    """As in ``predictions.jsonl``, without the target that nobody knows yet."""
    digits = 5 if recommender.fuser is None else 6
    record = {
        "user_id": user_id,
        "item_ids": [recommender.catalogue.item_ids[item] for item in items],
        "scores": [round(score, digits) for score in scores],
    }
    return json.dumps(record, ensure_ascii=False)


def _write(target: Path, lines: Lines) -> None:
    """Whole under its name, or not there."""
    temporary = target.with_name(f".{target.name}.new")
    try:
        if target.suffix == ".jsonl":
            lines.write(temporary)
        elif target.suffix == ".csv":
            _table(lines).to_csv(temporary, index=False)
        else:
            _table(lines).to_parquet(temporary, index=False)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{target}: cannot be written: {error.strerror}; what is ranked is kept, make room "
            "and run the same command again"
        ) from error


def _table(lines: Iterable[str]) -> pd.DataFrame:
    """A row per user and item."""
    records = pd.DataFrame([json.loads(line) for line in lines])
    records = records.rename(columns={"item_ids": "item_id", "scores": "score"})
    long = records.explode(["item_id", "score"])
    long = long.dropna(subset=["item_id"])  # of an empty list
    place = long.groupby(level=0).cumcount()
    long["rank"] = place + 1
    long["score"] = long["score"].astype(float)
    columns = ["user_id", "rank", "item_id", "score"]
    return long[columns]
