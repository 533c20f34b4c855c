"""Layouts of well-known files without a header, or with column names of their own.

A layout is used only where the file has none of our columns and ``data.columns`` names none, and
the stage says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import pandas as pd

from minionerec.catalogue.sources import dialect
from minionerec.catalogue.sources.columns import distinct
from minionerec.catalogue.sources.table import Table
from minionerec.errors import UserError

RATING = re.compile(r"[0-5](\.\d+)?")
TIME = re.compile(r"\d{9,}")
# MovieLens 1M and 10M (ratings.dat, movies.dat) separate by "::" and have no header.
MOVIELENS_RATINGS = ("user_id", "item_id", "rating", "timestamp")
MOVIELENS_MOVIES = ("item_id", "title", "categories")
# Amazon's ratings-only files have no header: user first in the release of 2014, item first in that
# of 2018.
AMAZON_ORDERS = (
    ("user_id", "item_id", "rating", "timestamp"),
    ("item_id", "user_id", "rating", "timestamp"),
)
# Files of the Steam review data (McAuley), which hold Python literals.
KNOWN_NAMES = (
    {"user_id": "username", "item_id": "product_id", "timestamp": "date"},
    {"item_id": "id", "title": "title"},
)


def without_header(
    row: Sequence[str], separator: str, wanted: Collection[str]
) -> tuple[tuple[str, ...], ...]:
    """The orders of columns that a first row without header may have; () if it is no known layout.

    Args:
        row: cells of the first line.
        wanted: our names of the columns to be read: those of interactions or those of items.
    """
    of_items = "title" in wanted
    if separator == dialect.DOUBLE_COLON:
        names = MOVIELENS_MOVIES if of_items else MOVIELENS_RATINGS
        return (names,) if len(row) == len(names) and row[0].isdigit() else ()
    if of_items or len(row) != 4:
        return ()
    if RATING.fullmatch(row[2]) and TIME.fullmatch(row[3]):
        return AMAZON_ORDERS
    return ()


def settle_order(table: Table, item_ids: pd.Series) -> Table:
    """The table with users and items told apart, where its layout leaves that open.

    Raises:
        UserError: the items file does not say which column holds the items.
    """
    if len(table.orders) < 2:
        return table
    known = pd.Index(item_ids)
    first, second = (
        pd.Series(list(distinct(table.columns[name]).cells)) for name in ("user_id", "item_id")
    )
    first_share = float(first.isin(known).mean())
    second_share = float(second.isin(known).mean())
    if max(first_share, second_share) == 0 or min(first_share, second_share) > 0:
        raise UserError(
            f"{table.path}: this file seems to have no header: its first line is "
            f"'{table.first_line}'. It looks like Amazon's ratings-only layout, but ids of the "
            f"items file are {first_share:.0%} of the first column and {second_share:.0%} of the "
            "second; write the column names into a line above it"
        )
    order = table.orders[0]
    columns = dict(table.columns)
    if first_share > 0:
        order = table.orders[1]
        columns["user_id"] = table.columns["item_id"]
        columns["item_id"] = table.columns["user_id"]
    note = (
        f"{table.path}: has no header; read as Amazon's ratings-only layout {', '.join(order)}: "
        "the items file knows the ids of that column"
    )
    return table._replace(columns=columns, notes=(*table.notes, note), orders=())


def known_names(header: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """Our name -> the file's, if the header is that of a known data set; else empty."""
    for names in KNOWN_NAMES:
        if "title" in names and "title" not in wanted:
            continue
        if "user_id" in names and "user_id" not in wanted:
            continue
        if set(names.values()) <= set(header) and "item_id" not in header:
            return names
    return {}
