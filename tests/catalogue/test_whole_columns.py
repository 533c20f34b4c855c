"""Columns that Arrow keeps are what reading them cell by cell would make of them.

python -m pytest tests/catalogue/test_whole_columns.py
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minionerec.catalogue.sources.columns import Cells
from minionerec.catalogue.sources.items import convert_items
from minionerec.catalogue.sources.table import Table, note_missing_ids, note_shortened_ids, read_ids

PIECES = [
    "drill",
    "5 mm",
    " ",
    "  ",
    "\t",
    "\x1f",
    "\u00a0",
    "\u2028",
    "&amp;",
    "& ",
    "<b>",
    "<",
    "['a', 'b']",
    '["',
    "[]",
    "é",
    "e\u0301",
    "\ufffd",
    "\u200b",
    "{'a': 1}",
    "[[1]]",
    "",
    "nan",
    "1.2E+11",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=3).map("".join)
NAMES = st.one_of(st.none(), st.lists(st.one_of(st.none(), TEXTS), max_size=3))


def table_of(columns: dict[str, list], kept_by_arrow: bool) -> Table:
    """The same cells as Arrow holds them, or as Python objects."""
    held = dict(columns)
    if kept_by_arrow:
        for name, cells in columns.items():
            kind = pa.list_(pa.string()) if name == "categories" else pa.string()
            held[name] = Cells(pa.chunked_array([cells[:2], cells[2:]], kind))
    places = range(1, len(columns["item_id"]) + 1)
    return Table(Path("items.parquet"), held, list(columns), places, ": row ")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(TEXTS, st.one_of(st.none(), TEXTS), st.one_of(st.none(), TEXTS), NAMES),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["error", "id", "drop"]),
)
def test_items_kept_by_arrow_are_those_read_cell_by_cell(rows, missing_title):
    names = ("item_id", "title", "description", "categories")
    columns = {
        name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)
    }
    found = []
    for kept_by_arrow in (True, False):
        problems: list[str] = []
        table = table_of(columns, kept_by_arrow)
        items, notes = convert_items(table, problems, missing_title)
        content = {name: items[name].tolist() for name in items} if not problems else {}
        found.append((content, notes, problems))
    assert found[0] == found[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), TEXTS), min_size=1, max_size=6))
def test_ids_kept_by_arrow_are_those_read_cell_by_cell(cells):
    found = []
    for kept_by_arrow in (True, False):
        table = table_of({"item_id": cells}, kept_by_arrow)
        problems: list[str] = []
        ids = read_ids(table, "item_id", problems)
        notes = note_missing_ids(table, "item_id", ids) + note_shortened_ids(table, "item_id", ids)
        found.append((list(ids), ids.texts.to_pylist(), notes, problems))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "cells, found",
    [
        (["NaN", "a"], ["'NaN' is taken as an id"]),
        (["x", "1.23E+12"], ["'1.23E+12' looks like a number"]),
        (["\u0661.\u0662E+\u0663"], ["'\u0661.\u0662E+\u0663' looks like a number"]),
        (["nano", "1.2E12"], []),
    ],
)
def test_ids_that_other_programs_have_spoilt_are_noted(cells, found):
    table = table_of({"item_id": cells}, kept_by_arrow=True)
    ids = read_ids(table, "item_id", [])
    notes = note_missing_ids(table, "item_id", ids) + note_shortened_ids(table, "item_id", ids)
    assert len(notes) == len(found)
    for note, words in zip(notes, found, strict=True):
        assert words in note
