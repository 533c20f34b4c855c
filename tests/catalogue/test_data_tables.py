"""Reading tables: formats, column names, cell kinds, and one line for every kind of mistake.

python -m pytest tests/catalogue/test_data_tables.py
"""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minionerec.catalogue.sources import cells, readers, tables
from minionerec.errors import UserError
from minionerec.experiment.settings import DataSettings

INTERACTIONS = "user_id,item_id,timestamp\nu1,001,1538352000\nu1,1,1538352100\n"
ITEMS = 'item_id,title,categories\n001,Bolt,Tools > Bolts\n1,"Nut, large",\n'


def shop(
    folder: Path, interactions: str | bytes = INTERACTIONS, items: str | bytes = ITEMS, **settings
) -> DataSettings:
    """Settings of a folder with the two files as CSV."""
    for name, content in (("interactions.csv", interactions), ("items.csv", items)):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataSettings(source="tables", path=str(folder), **settings)


def test_ids_stay_text_and_cells_are_cleaned(tmp_path):
    source = tables.load(shop(tmp_path))
    assert source.interactions["item_id"].tolist() == ["001", "1"]
    assert source.interactions["timestamp"].tolist() == [1538352000, 1538352100]
    assert source.interactions["rating"].isna().all()
    assert source.items["title"].tolist() == ["Bolt", "Nut, large"]
    assert source.items["categories"].tolist() == [["Tools", "Bolts"], []]
    assert source.items["brand"].tolist() == source.items["description"].tolist() == ["", ""]
    assert source.notes == ()


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "windows").mkdir()
    plain = tables.load(shop(tmp_path / "plain"))
    windows = tables.load(
        shop(
            tmp_path / "windows",
            b"\xef\xbb\xbf" + INTERACTIONS.replace("\n", "\r\n").encode(),
            b"\xef\xbb\xbf" + ITEMS.replace("\n", "\r\n").encode(),
        )
    )
    assert plain.items.equals(windows.items) and plain.interactions.equals(windows.interactions)


LISTED = (
    ".csv, .tsv, .inter, .item, .dat, .jsonl, .json, .csv.gz, .tsv.gz, .inter.gz, .item.gz, "
    ".dat.gz, .jsonl.gz, .json.gz, .parquet"
)
ROWS = [
    {"customer": "a", "sku": 7, "when": 5, "stars": 4.5},
    {"customer": "b", "sku": 8, "when": 6, "stars": None},
]
GOODS = [
    {"sku": 7, "name": "Saw", "path": ["Tools", "Saws"]},
    {"sku": 8, "name": "Oil", "path": None},
]
COLUMNS = {
    "user_id": "customer",
    "item_id": "sku",
    "timestamp": "when",
    "rating": "stars",
    "title": "name",
    "categories": "path",
}


def cell_text(value: object, separator: str) -> str:
    """A cell as a person would write it; tab-separated text has no quotes."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return str(value)
    names = " > ".join(value)
    return f'"{names}"' if separator == "," else names


def write_rows(path: Path, rows: list[dict]) -> None:
    """A table in the format that the name's suffix says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    if suffix in ("json", "jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        separator = {"csv": ",", "dat": "::"}.get(suffix, "\t")
        lines = [separator.join(rows[0])]
        for row in rows:
            lines.append(separator.join(cell_text(value, separator) for value in row.values()))
        text = "\n".join(lines)
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("suffix", readers.SUFFIXES)
def test_every_format_gives_the_same_tables_under_mapped_names(tmp_path, suffix):
    write_rows(tmp_path / f"my_interactions{suffix}", ROWS)
    write_rows(tmp_path / f"my_items{suffix}", GOODS)
    source = tables.load(DataSettings(source="tables", path=str(tmp_path), columns=COLUMNS))
    assert source.interactions[["user_id", "item_id", "timestamp"]].values.tolist() == [
        ["a", "7", 5],
        ["b", "8", 6],
    ]
    assert source.interactions["rating"].tolist()[0] == 4.5 and math.isnan(
        source.interactions["rating"].tolist()[1]
    )
    assert source.items["item_id"].tolist() == ["7", "8"]
    assert source.items["categories"].tolist() == [["Tools", "Saws"], []]


def test_the_items_file_may_call_the_id_something_else(tmp_path):
    settings = shop(
        tmp_path, items="sku,title\n001,Bolt\n1,Nut\n", columns={"items_item_id": "sku"}
    )
    assert tables.load(settings).items["item_id"].tolist() == ["001", "1"]


def test_the_own_split_is_read_only_when_asked_for(tmp_path):
    text = "user_id,item_id,timestamp,split\nu,001,1,train\nu,1,2,test\n"
    assert tables.load(shop(tmp_path, text, split="own")).interactions["split"].tolist() == [
        "train",
        "test",
    ]
    assert tables.load(shop(tmp_path, text)).interactions["split"].tolist() == ["", ""]


@pytest.mark.parametrize(
    "cell, names",
    [
        ("Tools > Saws > Hand Saws", ["Tools", "Saws", "Hand Saws"]),
        ("Tools|Saws", ["Tools", "Saws"]),
        ("Tools;Saws", ["Tools", "Saws"]),
        ("Animation, Children's", ["Animation", "Children's"]),
        ("Tools, Home > Saws", ["Tools, Home", "Saws"]),
        ("Tools", ["Tools"]),
        ("", []),
        ('["Tools", "Saws"]', ["Tools", "Saws"]),
        ("['Tools', \"Children's\"]", ["Tools", "Children's"]),
        ("[]", []),
        (None, []),
        (["Tools", None, " "], ["Tools"]),
        ([["Tools", "Saws"], ["Garden"]], ["Tools", "Saws"]),
        ("Home &amp; Garden | Hoses", ["Home & Garden", "Hoses"]),
    ],
)
def test_categories_from_lists_literals_and_separated_text(cell, names):
    assert cells.read_categories(cell) == names


@pytest.mark.parametrize(
    "cell, text",
    [
        ("plain", "plain"),
        (None, ""),
        (float("nan"), ""),
        ("  two\n\tlines ", "two lines"),
        ("a<br/>b<p class='x'>c</p>", "a b c"),
        ("5 < 6 and 7 > 6", "5 < 6 and 7 > 6"),
        ("&lt;b&gt;bold&lt;/b&gt; &amp; more", "bold & more"),
        ("x<script>alert(1)</script>y", "x y"),
        ("['one', 'two']", "one two"),
        ('["one"]', "one"),
        (["one", "two"], "one two"),
        ("[]", ""),
        ("[new] saw", "[new] saw"),
        (12, "12"),
        ("['one', 'cut of", "one cut of"),
        ("x<!-- no -->y", "x y"),
    ],
)
def test_texts_lose_markup_and_list_literals_are_joined(cell, text):
    assert cells.read_text(cell) == text


def test_descriptions_that_are_cut_off_lists_are_kept_and_pointed_out(tmp_path):
    source = tables.load(
        shop(
            tmp_path,
            items="item_id,title,description\n001,Bolt,\"['strong', 'shi\"\n1,Nut,\"['whole']\"\n",
        )
    )
    assert source.items["description"].tolist() == ["strong shi", "whole"]
    assert source.notes == (
        f"{tmp_path}/items.csv:2: description: begins like a list but is cut off or damaged; its text was kept as far "
        "as it goes (1 such rows)",
    )


def test_a_cell_never_runs_code(tmp_path):
    canary = tmp_path / "canary"
    for cell in (
        f"[__import__('pathlib').Path({str(canary)!r}).touch()]",
        f"['a', open({str(canary)!r}, 'w')]",
    ):
        with pytest.raises(ValueError):
            cells.read_list(cell)
        with pytest.raises(ValueError):
            cells.read_categories(cell)
        cells.read_text(cell)
    assert not canary.exists()


HEAD = "user_id,item_id,timestamp\n"
BAD = {
    "no such time": (
        HEAD + "u,001,1\nu,1,soon\n",
        ITEMS,
        {},
        "interactions.csv:3: timestamp: got 'soon', expected unix seconds, unix milliseconds or an ISO date such as "
        "2024-05-31T12:00:00Z",
    ),
    "many bad times": (
        HEAD + "".join(f"u,1,t{i}\n" for i in range(9)),
        ITEMS,
        {},
        "interactions.csv:2: timestamp: got 't0', expected unix seconds, unix milliseconds or an ISO date such as "
        "2024-05-31T12:00:00Z (9 rows in all, next: 3, 4, 5, 6, ...)",
    ),
    "empty user": (
        HEAD + "u,001,1\n ,1,2\n",
        ITEMS,
        {},
        "interactions.csv:3: user_id: got ' ', expected an id",
    ),
    "unknown item": (
        HEAD + "u,001,1\nu,01,2\n",
        ITEMS,
        {},
        "interactions.csv:3: item_id: got '01', expected an item_id of {0}/items.csv; the ids of the two files differ in leading "
        "zeros: a program took them for numbers. Write both as text (pandas: read_csv(..., dtype=str))",
    ),
    "bad rating": (
        "user_id,item_id,timestamp,rating\nu,001,1,\nu,1,2,good\n",
        ITEMS,
        {},
        "interactions.csv:3: rating: got 'good', expected a number, or nothing",
    ),
    "bad split": (
        "user_id,item_id,timestamp,split\nu,001,1,train\nu,1,2,dev\n",
        ITEMS,
        {"split": "own"},
        "interactions.csv:3: split: got 'dev', expected train, valid or test",
    ),
    "missing column": (
        "user_id,item_id,time\nu,1,2\n",
        ITEMS,
        {},
        "interactions.csv: has no column 'timestamp' for timestamp; did you mean 'time'? (its columns: user_id, item_id, time); "
        "set data.columns.timestamp",
    ),
    "misspelt mapping": (
        INTERACTIONS,
        ITEMS,
        {"columns": {"title": "tittle"}},
        "items.csv: has no column 'tittle' for title; did you mean 'title'? (its columns: item_id, title, categories); "
        "set data.columns.title",
    ),
    "mapped optional column is missing": (
        INTERACTIONS,
        ITEMS,
        {"columns": {"brand": "maker"}},
        "items.csv: has no column 'maker' for brand (its columns: item_id, title, categories); set data.columns.brand",
    ),
    "no split column": (
        INTERACTIONS,
        ITEMS,
        {"split": "own"},
        "interactions.csv: has no column 'split' for split (its columns: user_id, item_id, timestamp); set data.columns.split",
    ),
    "same id twice": (
        INTERACTIONS,
        "item_id,title\n001,Bolt\n1,Nut\n001,Bolt\n",
        {},
        "items.csv:4: item_id: got '001', expected every id once, but it is already at {0}/items.csv:2; keep one",
    ),
    "empty title": (
        INTERACTIONS,
        "item_id,title\n001,Bolt\n1,<br>\n",
        {"missing_title": "error"},
        "items.csv:3: title: got '<br>', expected a title; fill it in, or remove the item",
    ),
    "bad category list": (
        INTERACTIONS,
        "item_id,title,categories\n001,Bolt,\"['Tools', \"\n1,Nut,\n",
        {},
        "items.csv:2: categories: got \"['Tools', \", expected a list, or names between ' > ', '|', ';' or ','",
    ),
    "empty file": ("", ITEMS, {}, "interactions.csv: is empty; expected a header line and rows"),
    "header only": (HEAD, ITEMS, {}, "interactions.csv: has no rows; expected at least one"),
    "short row": (
        HEAD + "u,001,1\nu,1\n",
        ITEMS,
        {},
        "interactions.csv:3: got 2 cells, expected 3 as in the header; quote cells that hold the separator, and check that the "
        "file "
        "is not cut off",
    ),
    "long row": (
        HEAD + "u,001,1,9\n",
        ITEMS,
        {},
        "interactions.csv:2: got 4 cells, expected 3 as in the header; quote cells that hold the separator, and check that the "
        "file "
        "is not cut off",
    ),
    "open quote": (
        INTERACTIONS,
        'item_id,title\n001,Bolt\n1,"Nut\n',
        {},
        "items.csv:3: not valid CSV (unexpected end of data); a quote is not closed or not doubled, or the file is cut off",
    ),
    "quote inside": (
        INTERACTIONS,
        'item_id,title\n001,"5" Bolt"\n',
        {},
        "items.csv:2: not valid CSV (',' expected after '\"'); a quote is not closed or not doubled, or the file is cut off",
    ),
    "column twice": (
        "user_id,item_id,user_id,timestamp\nu,1,u,1\n",
        ITEMS,
        {},
        "interactions.csv:1: column 'user_id' appears twice in the header; rename one",
    ),
    "nul byte": (
        HEAD + "u,001,1\nu\0,1,2\n",
        ITEMS,
        {},
        "interactions.csv:3: holds a NUL byte, so it is damaged or not UTF-8 text; export it again",
    ),
    "latin 1": (
        INTERACTIONS,
        b"item_id,title\n001,caf\xe9 cup\n",
        {},
        "items.csv: is not UTF-8 text (invalid continuation byte); convert it to UTF-8 "
        "(in Excel: Save as, 'CSV UTF-8')",
    ),
    "rows over several lines keep their line": (
        HEAD + 'u,"0\n01",1\nu,1,soon\n',
        ITEMS,
        {},
        "interactions.csv:4: timestamp: got 'soon', expected unix seconds, unix milliseconds or an ISO date "
        "such as 2024-05-31T12:00:00Z",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_line_with_file_row_and_value(tmp_path, case):
    interactions, items, settings, message = BAD[case]
    with pytest.raises(
        UserError, match="^" + re.escape(f"{tmp_path}/" + message.format(tmp_path)) + "$"
    ):
        tables.load(shop(tmp_path, interactions, items, **settings))


def test_all_kinds_of_mistakes_are_reported_together(tmp_path):
    items = "item_id,title\n1,\n1,Nut\n"
    settings = shop(tmp_path, HEAD + "u,1,soon\n,1,2\n", items, missing_title="error")
    with pytest.raises(UserError) as caught:
        tables.load(settings)
    assert [re.search(r"(\w+): got", line)[1] for line in str(caught.value).splitlines()] == [
        "item_id",
        "title",
        "user_id",
        "timestamp",
    ]


JSONL = {
    "not json": (
        b'{"item_id": 1, "title": "a"}\n{"item_id": 2,',
        ":2: not valid JSON (Expecting property name enclosed in double quotes: "
        "line 1 column 15 (char 14)); expected one object per line",
    ),
    "not an object": (b"[1]\n", ":1: got a list, expected one JSON object per line"),
    "empty": (b"\n", ": has no rows; expected at least one"),
    "id missing in one row": (
        b'{"item_id": 1, "title": "a"}\n{"title": "b"}\n',
        ":2: item_id: got None, expected an id",
    ),
    "title is an object": (
        b'{"item_id": 1, "title": {"en": "a"}}\n',
        ":1: title: got {'en': 'a'}, expected text",
    ),
}


@pytest.mark.parametrize("case", JSONL)
def test_a_bad_jsonl_file_is_one_line_with_its_line(tmp_path, case):
    content, message = JSONL[case]
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    (tmp_path / "interactions.csv").write_text(INTERACTIONS)
    with pytest.raises(UserError, match="^" + re.escape(str(path) + message)):
        tables.load(DataSettings(source="tables", path=str(tmp_path)))


@pytest.mark.parametrize("suffix", [".csv.gz", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_off_binary_file_is_refused_by_name(tmp_path, suffix, share):
    path = tmp_path / f"items{suffix}"
    write_rows(path, [{"item_id": str(i), "title": f"thing {i * i}"} for i in range(500)])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    (tmp_path / "interactions.csv").write_text(INTERACTIONS)
    with pytest.raises(
        UserError, match="^" + re.escape(str(path)) + r".*(cut off|is empty|has no rows)"
    ):
        tables.load(DataSettings(source="tables", path=str(tmp_path)))


def test_parquet_rows_are_numbered_from_one(tmp_path):
    write_rows(
        tmp_path / "items.parquet",
        [{"item_id": "a", "title": "x"}, {"item_id": None, "title": "y"}],
    )
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1\n")
    with pytest.raises(
        UserError,
        match="^"
        + re.escape(f"{tmp_path}/items.parquet: row 2: item_id: got None, expected an id")
        + "$",
    ):
        tables.load(DataSettings(source="tables", path=str(tmp_path)))


def test_whole_floats_of_a_nullable_parquet_column_are_ids_without_a_point(tmp_path):
    pq.write_table(
        pa.table({"item_id": [1.0, 22.0], "title": ["x", "y"]}), tmp_path / "items.parquet"
    )
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,1,1\nu,22,2\n")
    assert tables.load(DataSettings(source="tables", path=str(tmp_path))).items[
        "item_id"
    ].tolist() == ["1", "22"]


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"path": "/no/such"},
            "data.path: no folder '/no/such'; give the folder that holds the interactions file",
        ),
        (
            {"interactions": "interaction.csv"},
            "data.interactions: {0}/interaction.csv: no such file; did you mean 'interactions.csv'?",
        ),
        (
            {"items": "zzz"},
            "data.items: {0}/zzz: no such file; the folder holds interactions.csv, items.csv, notes.txt, old_items.csv",
        ),
        (
            {"items": "notes.txt"},
            f"{{0}}/notes.txt: unknown kind of table, expected one of {LISTED}",
        ),
        (
            {},
            f"data.items: is empty and {{0}} should then hold exactly one table named *items* ({LISTED}), "
            "found 2 (items.csv, old_items.csv); name the file with data.items",
        ),
    ],
)
def test_missing_and_ambiguous_files_are_named(tmp_path, settings, message):
    shop(tmp_path)
    (tmp_path / "old_items.csv").write_text(ITEMS)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="^" + re.escape(message.format(tmp_path)) + "$"):
        tables.load(DataSettings(**{"source": "tables", "path": str(tmp_path), **settings}))
