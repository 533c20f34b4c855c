"""Files as people have them: separators, quotes, part files, layouts without header, other programs' habits.

python -m pytest tests/catalogue/test_data_shapes.py
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minionerec.catalogue.sources import amazon, files, minionerec_csv, tables
from minionerec.catalogue.sources.source import Source
from minionerec.errors import UserError
from minionerec.experiment.settings import DataSettings

OCTOBER = 1538352000
INTERACTIONS = f"user_id,item_id,timestamp\nu1,001,{OCTOBER}\nu1,002,{OCTOBER + 100}\n"
ITEMS = "item_id,title\n001,Bolt\n002,Nut\n"
CASES = Path(os.environ.get("MINIONEREC_REAL_DATA", "/no/such")).parent / "cases"


def shop(folder: Path, contents: dict[str, str | bytes], **settings) -> DataSettings:
    """Settings of a folder with these files; CSV files of two items and two purchases unless given."""
    given = {"interactions.csv": INTERACTIONS, "items.csv": ITEMS, **contents}
    for word in ("interactions", "items"):
        if word in settings:  # another file takes its place
            del given[f"{word}.csv"]
    for name, content in given.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataSettings(source="tables", path=str(folder), **settings)


def titles(source: Source) -> list[str]:
    return source.items["title"].tolist()


def refused(settings: DataSettings, load=tables.load) -> str:
    """The line that refuses these settings."""
    with pytest.raises(UserError) as caught:
        load(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------- quotes and separators


def test_in_tab_separated_text_a_quote_is_a_character(tmp_path):
    """Read as CSV, the first cell would swallow the lines up to the next quote, without a word."""
    rows = ['1\t"O ring kit', "2\tnut", '3\tscrewdriver 5"', '4\t"Cats" (1998)', "5\toil"]
    text = "item_id\ttitle\n" + "\n".join(rows) + "\n"
    interactions = f"user_id,item_id,timestamp\nu,1,{OCTOBER}\nu,5,{OCTOBER}\n"
    contents = {"interactions.csv": interactions, "items.tsv": text}
    source = tables.load(shop(tmp_path, contents, items="items.tsv"))
    assert source.items["item_id"].tolist() == list("12345")
    assert titles(source)[0] == '"O ring kit' and titles(source)[3] == '"Cats" (1998)'
    assert source.notes == ()


def test_quotes_around_most_cells_of_tab_separated_text_are_pointed_out(tmp_path):
    text = 'item_id\ttitle\n001\t"Bolt"\n002\t"Nut"\n'
    source = tables.load(shop(tmp_path, {"items.tsv": text}, items="items.tsv"))
    assert titles(source) == ['"Bolt"', '"Nut"']
    assert source.notes == (
        f"{tmp_path}/items.tsv:2: title: stands in quotes, which are kept: text separated by a tab "
        "has no quoting (2 such rows)",
    )


def test_a_cell_over_several_lines_of_a_csv_is_counted_and_said(tmp_path):
    text = 'item_id,title\n001,"Bolt\nof steel"\n002,Nut\n003,"a\nb\nc"\n'
    source = tables.load(shop(tmp_path, {"items.csv": text}))
    assert titles(source) == ["Bolt of steel", "Nut", "a b c"]
    assert source.notes == (
        f"{tmp_path}/items.csv:2: a cell in quotes spans several lines (2 such rows)",
    )


@pytest.mark.parametrize(
    "text, name",
    [
        ("item_id;title\n001;Bolt, long\n002;Nut\n", "';'"),
        ('"item_id";"title"\n"001";"Bolt, long"\n"002";"Nut"\n', "';'"),
        ("item_id\ttitle\n001\tBolt, long\n002\tNut\n", "a tab"),
        ("item_id|title\n001|Bolt, long\n002|Nut\n", "'|'"),
        ("item_id::title\n001::Bolt, long\n002::Nut\n", "'::'"),
    ],
)
def test_another_separator_is_detected_and_said(tmp_path, text, name):
    source = tables.load(shop(tmp_path, {"items.csv": text}))
    assert titles(source) == ["Bolt, long", "Nut"]
    assert source.notes == (f"{tmp_path}/items.csv: its cells are separated by {name}",)


def test_a_comma_stays_the_separator_where_titles_hold_others(tmp_path):
    text = "item_id,title;subtitle|x,title\n001,a;b|c,Bolt; long\n002,a;b|c,Nut\n"
    source = tables.load(shop(tmp_path, {"items.csv": text}))
    assert titles(source) == ["Bolt; long", "Nut"] and source.notes == ()


def test_a_wrong_column_name_in_a_file_of_another_separator_is_named_as_such(tmp_path):
    said = refused(shop(tmp_path, {"items.csv": "item_id;name\n001;Bolt\n"}))
    assert said == (
        f"{tmp_path}/items.csv: has no column 'title' for title; did you mean 'item_id'? (its columns: "
        "item_id, name); set "
        "data.columns.title"
    )


def test_excels_separator_line_is_understood_and_lines_keep_their_numbers(tmp_path):
    source = tables.load(shop(tmp_path, {"items.csv": "sep=;\n" + ITEMS.replace(",", ";")}))
    assert titles(source) == ["Bolt", "Nut"]
    untitled = {"items.csv": "sep=,\nitem_id,title\n001,\n002,Nut\n"}
    said = refused(shop(tmp_path, untitled, missing_title="error"))
    assert said.startswith(f"{tmp_path}/items.csv:3: title: got ''")


def test_quotes_with_a_backslash_in_front_are_read_and_said(tmp_path):
    text = 'item_id,title\n001,"Bolt"\n002,"Nut 5\\" wide, long"\n'
    source = tables.load(shop(tmp_path, {"items.csv": text}))
    assert titles(source) == ["Bolt", 'Nut 5" wide, long']
    assert source.notes == (
        f"{tmp_path}/items.csv: quotes inside quotes have a backslash in front of them, from line 3 on",
    )


# --------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    "text",
    [
        "item_id,title,,\n001,Bolt,,\n002,Nut,,\n",
        "item_id,title,note,note\n001,Bolt,a,b\n002,Nut,a,b\n",
    ],
)
def test_columns_that_nobody_reads_may_be_nameless_or_repeated(tmp_path, text):
    assert titles(tables.load(shop(tmp_path, {"items.csv": text}))) == ["Bolt", "Nut"]


def test_a_parquet_column_that_is_there_twice_is_refused_if_it_is_read(tmp_path):
    table = pa.table([["001"], ["Bolt"], ["Nut"]], names=["item_id", "title", "title"])
    pq.write_table(table, tmp_path / "items.parquet")
    said = refused(shop(tmp_path, {}, items="items.parquet"))
    assert said == f"{tmp_path}/items.parquet: column 'title' is there twice; rename one"


def test_a_column_name_in_another_unicode_form_is_explained(tmp_path):
    text = "item_id,tit\u0065\u0301\n001,Bolt\n"
    said = refused(shop(tmp_path, {"items.csv": text}, columns={"title": "tit\u00e9"}))
    assert "another Unicode form (NFC against NFD)" in said


def test_recbole_files_are_read_with_and_without_the_types_in_their_names(tmp_path):
    inter = (
        f"user_id:token\titem_id:token\ttimestamp:float\nu\t001\t{OCTOBER}.0\nu\t002\t{OCTOBER}\n"
    )
    item = "item_id:token\ttitle:token_seq\n001\tBolt\n002\tNut\n"
    contents = {"shop.inter": inter, "shop.item": item}
    names = {"interactions": "shop.inter", "items": "shop.item"}
    typed = {"user_id": "user_id:token", "item_id": "item_id:token", "title": "title:token_seq"}
    for columns in ({}, typed):
        source = tables.load(shop(tmp_path, contents, columns=columns, **names))
        assert titles(source) == ["Bolt", "Nut"]
        assert source.interactions["timestamp"].tolist() == [OCTOBER, OCTOBER]


# ------------------------------------------------------------------------------- without a header


def test_movielens_files_are_read_by_their_layout_and_encoding(tmp_path):
    ratings = "\n".join(f"1::{item}::4::{OCTOBER}" for item in (7, 8)) + "\n"
    movies = "7::Am\u00e9lie (2001)::Comedy|Romance\n8::Heat (1995)::Action\n".encode("latin-1")
    contents = {"ratings.dat": ratings, "movies.dat": movies}
    source = tables.load(shop(tmp_path, contents, interactions="ratings.dat", items="movies.dat"))
    assert titles(source) == ["Am\u00e9lie (2001)", "Heat (1995)"]
    assert source.items["categories"].tolist() == [["Comedy", "Romance"], ["Action"]]
    assert source.interactions["rating"].tolist() == [4, 4]
    assert [note.partition(": ")[2] for note in source.notes] == [
        "is not UTF-8; read as Latin-1, as MovieLens' files are",
        "has no header; read as item_id, title, categories, MovieLens' layout",
        "has no header; read as user_id, item_id, rating, timestamp, MovieLens' layout",
    ]


@pytest.mark.parametrize("order", ["user, item", "item, user"])
def test_amazons_ratings_only_files_are_read_in_the_order_that_the_items_tell(tmp_path, order):
    """The release of 2014 has the user first, that of 2018 the item."""
    pairs = [("u1", "001"), ("u2", "002"), ("u1", "002")]
    rows = [pair if order == "user, item" else pair[::-1] for pair in pairs]
    text = "".join(f"{a},{b},4.0,{OCTOBER}\n" for a, b in rows)
    source = tables.load(shop(tmp_path, {"Tools.csv": text}, interactions="Tools.csv"))
    assert source.interactions[["user_id", "item_id"]].values.tolist() == [list(p) for p in pairs]
    assert source.interactions["rating"].tolist() == [4, 4, 4]
    assert "ratings-only layout" in source.notes[0]


def test_a_ratings_only_file_of_other_items_is_refused(tmp_path):
    text = f"u1,901,4.0,{OCTOBER}\n"
    said = refused(shop(tmp_path, {"Tools.csv": text}, interactions="Tools.csv"))
    assert "ids of the items file are 0% of the first column and 0% of the second" in said


def test_a_file_without_header_is_called_so(tmp_path):
    text = f"u1,001,{OCTOBER}\nu1,002,{OCTOBER}\n"
    assert refused(shop(tmp_path, {"interactions.csv": text})) == (
        f"{tmp_path}/interactions.csv: this file seems to have no header: its first line is "
        f"'u1,001,{OCTOBER}'; write the column names into a line above it, such as "
        "user_id,item_id,timestamp"
    )


# ------------------------------------------------------------------------- JSON, Parquet, folders


LINES = '{"item_id": "001", "title": "Bolt"}\n{"item_id": "002", "title": "Nut"}\n'
ARRAY = '[{"item_id": "001", "title": "Bolt"},\n {"item_id": "002", "title": "Nut"}]'
LITERALS = "{u'item_id': u'001', u'title': u'Bolt'}\n{u'item_id': u'002', u'title': u'Nut'}\n"


@pytest.mark.parametrize(
    "name, text",
    [
        ("items.json", LINES),
        ("items.json.gz", LINES),
        ("items.json", ARRAY),
        ("items.jsonl", LITERALS),
        ("items.json.gz", LITERALS),
    ],
)
def test_json_lines_arrays_and_python_literals_are_read_under_any_json_name(tmp_path, name, text):
    content = gzip.compress(text.encode()) if name.endswith(".gz") else text
    assert titles(tables.load(shop(tmp_path, {name: content}, items=name))) == ["Bolt", "Nut"]


def test_the_names_of_the_steam_files_are_known(tmp_path):
    reviews = "".join(
        repr({"username": "u", "product_id": item, "date": "2018-01-05"}) + "\n"
        for item in ("1", "2")
    )
    games = "{u'id': u'1', u'title': u'Chess'}\n{u'id': u'2', u'title': u'Go'}\n"
    contents = {"reviews.jsonl": reviews, "games.jsonl": games}
    names = {"interactions": "reviews.jsonl", "items": "games.jsonl"}
    source = tables.load(shop(tmp_path, contents, **names))
    assert titles(source) == ["Chess", "Go"]
    assert source.interactions["user_id"].tolist() == ["u", "u"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(3)])
def test_bytes_in_parquet_are_decoded(tmp_path, kind):
    columns = {
        "item_id": pa.array([b"001", b"002"], kind),
        "title": pa.array([b"Saw", b"Nut"], kind).dictionary_encode(),
        "categories": pa.array([[b"a", b"b"], None], pa.list_(pa.binary())),
    }
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    source = tables.load(shop(tmp_path, {}, items="items.parquet"))
    assert source.items["item_id"].tolist() == ["001", "002"]
    assert titles(source) == ["Saw", "Nut"]
    assert source.items["categories"].tolist() == [["a", "b"], []]


def test_bytes_that_are_no_text_are_refused_with_their_column(tmp_path):
    columns = {"item_id": ["001"], "title": pa.array([b"\xff\xfe"], pa.binary())}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    assert refused(shop(tmp_path, {}, items="items.parquet")) == (
        f"{tmp_path}/items.parquet: column 'title' holds bytes that are not UTF-8 text; "
        "write it as text"
    )


def test_a_folder_of_part_files_is_one_table(tmp_path):
    folder = tmp_path / "items.parquet"
    folder.mkdir()
    for number, (item, title) in enumerate([("001", "Bolt"), ("002", "Nut")]):
        table = pa.table({"item_id": [item], "title": [title]})
        pq.write_table(table, folder / f"part-0000{number}.snappy.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000.snappy.parquet.crc").touch()
    settings = shop(tmp_path, {}, items="items.parquet", missing_title="error")
    assert titles(tables.load(settings)) == ["Bolt", "Nut"]
    found = DataSettings(source="tables", path=str(tmp_path))  # found by its name, too
    assert titles(tables.load(found)) == ["Bolt", "Nut"]
    pq.write_table(pa.table({"item_id": ["3"], "title": [""]}), folder / "part-00002.parquet")
    assert refused(settings).startswith(f"{folder}/part-00002.parquet: row 1: title: got ''")


def test_parts_with_other_columns_are_refused(tmp_path):
    folder = tmp_path / "items"
    folder.mkdir()
    (folder / "a.csv").write_text(ITEMS)
    (folder / "b.csv").write_text("item_id,name\n003,Oil\n")
    said = refused(shop(tmp_path, {}, items="items"))
    assert said.startswith(f"{folder}/b.csv: its columns are item_id, name, expected those of")


# ----------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize(
    "cell, names",
    [
        ("Home &amp;amp; Garden", ["Home & Garden"]),
        ("Sports &amp; Outdoors", ["Sports & Outdoors"]),
        ("Men&#39;s > Shoes", ["Men's", "Shoes"]),
        ("Tools &gt; Saws", ["Tools", "Saws"]),
    ],
)
def test_entities_are_resolved_before_categories_are_split(tmp_path, cell, names):
    text = f"item_id,title,categories\n001,Bolt,{cell}\n002,Nut,\n"
    source = tables.load(shop(tmp_path, {"items.csv": text}))
    assert source.items["categories"].tolist() == [names, []]


@pytest.mark.parametrize(
    "interactions, items, what",
    [
        ("1.0", "1", "a '.0' at the end"),
        ("0001", "1", "leading zeros"),
        ("1", "0001", "leading zeros"),
        ("caf\u00e9", "cafe\u0301", "their Unicode form (NFC against NFD)"),
        ("AB", "ab", "upper and lower case"),
        ("A 1", "A1", "blanks"),
    ],
)
def test_ids_that_differ_by_a_habit_of_programs_are_refused_with_a_hint(
    tmp_path, interactions, items, what
):
    contents = {
        "interactions.csv": f"user_id,item_id,timestamp\nu,{interactions},{OCTOBER}\n",
        "items.csv": f"item_id,title\n{items},Bolt\n",
    }
    assert f"the ids of the two files differ in {what}" in refused(shop(tmp_path, contents))


def test_ids_that_say_missing_are_pointed_out(tmp_path):
    text = f"user_id,item_id,timestamp\nnan,001,{OCTOBER}\nnan,002,{OCTOBER}\n"
    source = tables.load(shop(tmp_path, {"interactions.csv": text}))
    assert source.notes == (
        f"{tmp_path}/interactions.csv:2: user_id: 'nan' is taken as an id like any other; other "
        "programs write it where there is none (2 such rows)",
    )


def test_half_characters_are_replaced_in_texts_and_refused_in_ids(tmp_path):
    lines = [{"item_id": "001", "title": "Bolt \ud83d"}, {"item_id": "002", "title": "Nut"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    source = tables.load(shop(tmp_path, {"items.jsonl": text}, items="items.jsonl"))
    assert titles(source) == ["Bolt \ufffd", "Nut"]
    assert source.notes == (
        f"{tmp_path}/items.jsonl:1: title: holds half of a character (a lone surrogate), replaced "
        "by U+FFFD (1 such rows)",
    )
    lines[1]["item_id"] = "00\udc00"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    said = refused(shop(tmp_path, {"items.jsonl": text}, items="items.jsonl"))
    assert said.startswith(f"{tmp_path}/items.jsonl:2: item_id: got '00\\udc00', expected an id of")


@pytest.mark.parametrize(
    "column, value",
    [
        ("categories", 7),
        ("categories", {"a": 1}),
        ("categories", [{"a": 1}]),
        ("categories", "[" * 50_000),
        ("title", {"en": "a"}),
        ("description", [["a"]]),
    ],
)
def test_a_cell_of_another_shape_is_one_line(tmp_path, column, value):
    text = json.dumps({"item_id": "001", "title": "Bolt", column: value}) + "\n"
    said = refused(shop(tmp_path, {"items.jsonl": text}, items="items.jsonl"))
    assert said.startswith(f"{tmp_path}/items.jsonl:1: {column}: got ")
    assert len(said) < 300


@pytest.mark.parametrize("text", ['{"a": ' + "[" * 50_000, "[" * 50_000, "1" * 5000])
def test_a_line_nested_too_deeply_or_a_number_too_long_is_one_line(tmp_path, text):
    said = refused(shop(tmp_path, {"items.jsonl": text + "\n"}, items="items.jsonl"))
    assert said.startswith(f"{tmp_path}/items.jsonl:1: ") and len(said) < 300


@pytest.mark.parametrize("value", [10**400, float(10**300), "1e999"])
def test_a_rating_beyond_all_numbers_is_one_line(tmp_path, value):
    rows = [
        {"user_id": "u", "item_id": "001", "timestamp": OCTOBER, "rating": 3},
        {"user_id": "u", "item_id": "002", "timestamp": OCTOBER, "rating": value},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    settings = shop(tmp_path, {"interactions.jsonl": text}, interactions="interactions.jsonl")
    if value == float(10**300):
        assert tables.load(settings).interactions["rating"].tolist() == [3, 1e300]
    else:
        assert f"{tmp_path}/interactions.jsonl:2: rating: got" in refused(settings)


# ------------------------------------------------------------------------------------------ times


def test_the_unit_of_the_times_is_said(tmp_path):
    for factor, unit in ((1, ""), (1000, ", read from milliseconds")):
        text = f"user_id,item_id,timestamp\nu,001,{OCTOBER * factor}\nu,002,{OCTOBER * factor}\n"
        source = tables.load(shop(tmp_path, {"interactions.csv": text}))
        assert source.timestamps == f"unix seconds UTC{unit}"
        assert source.interactions["timestamp"].tolist() == [OCTOBER, OCTOBER]


def test_times_in_two_units_are_refused_with_a_row_of_each(tmp_path):
    text = f"user_id,item_id,timestamp\nu,001,{OCTOBER}\nu,002,{OCTOBER}000\n"
    assert refused(shop(tmp_path, {"interactions.csv": text})) == (
        f"{tmp_path}/interactions.csv: timestamp: looks like seconds at "
        f"{tmp_path}/interactions.csv:2 ('{OCTOBER}'), milliseconds at "
        f"{tmp_path}/interactions.csv:3 ('{OCTOBER}000'), and a column has one unit; write all "
        "times in one"
    )


def test_dates_written_as_numbers_are_pointed_out(tmp_path):
    text = "user_id,item_id,timestamp\nu,001,20240530\nu,002,20240531\n"
    assert tables.load(shop(tmp_path, {"interactions.csv": text})).notes == (
        f"{tmp_path}/interactions.csv:2: timestamp: '20240530' is read as 1970-08-23 06:22:10 (2 "
        "such rows of 2); if these are dates, write them as 2024-05-31",
    )


def test_a_time_before_1970_is_called_so(tmp_path):
    text = f"user_id,item_id,timestamp\nu,001,{OCTOBER}\nu,002,1969-12-31T23:00:00Z\n"
    said = refused(shop(tmp_path, {"interactions.csv": text.replace(str(OCTOBER), "2018-10-01")}))
    assert said == (
        f"{tmp_path}/interactions.csv:3: timestamp: got '1969-12-31T23:00:00Z', expected a time "
        "from 1970 on; this one is before"
    )


def test_the_settings_may_say_how_times_are_written(tmp_path):
    text = "user_id,item_id,timestamp\nu,001,01/02/2018\nu,002,02/02/2018\n"
    ambiguous = refused(shop(tmp_path, {"interactions.csv": text}))
    assert "set data.time_format to one" in ambiguous
    source = tables.load(shop(tmp_path, {"interactions.csv": text}, time_format="%d/%m/%Y"))
    days = pd.to_datetime(source.interactions["timestamp"], unit="s")
    assert [str(day.date()) for day in days] == ["2018-02-01", "2018-02-02"]


# -------------------------------------------------------------------------------- damaged archives


def test_an_archive_that_expands_a_thousandfold_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ALWAYS_ALLOWED", 2**20)
    content = gzip.compress(b"item_id,title\n" + b"1" * 2**23)
    said = refused(shop(tmp_path, {"items.csv.gz": content}, items="items.csv.gz"))
    assert said.startswith(f"{tmp_path}/items.csv.gz: its ") and "this is no table" in said


def test_an_archive_of_repeated_rows_is_read(tmp_path):
    rows = "".join(f"{n},Bolt\n" for n in range(20_000))
    content = gzip.compress((ITEMS + rows).encode())
    source = tables.load(shop(tmp_path, {"items.csv.gz": content}, items="items.csv.gz"))
    assert len(source.items) == 20_002


def test_a_corrupt_byte_inside_an_archive_is_one_line(tmp_path):
    content = bytearray(gzip.compress(os.urandom(5000).hex().encode()))
    content[len(content) // 2] ^= 0xFF
    said = refused(shop(tmp_path, {"items.csv.gz": bytes(content)}, items="items.csv.gz"))
    assert said.startswith(f"{tmp_path}/items.csv.gz: ")


# --------------------------------------------------------------------------------- other sources


def review(user: object, item: object, time: object) -> str:
    return json.dumps({"reviewerID": user, "asin": item, "overall": 5, "unixReviewTime": time})


def meta(item: object, title: str) -> str:
    return json.dumps({"asin": item, "title": title, "description": ["x"]})


def amazon_shop(folder: Path, reviews: list[str], metadata: list[str], **settings) -> DataSettings:
    (folder / "Tools.json").write_text("".join(line + "\n" for line in reviews))
    (folder / "meta_Tools.json").write_text("".join(line + "\n" for line in metadata))
    return DataSettings(source="amazon", path=str(folder), k_core=0, **settings)


METADATA = [meta("A", "Saw"), meta("B", "Oil")]


@pytest.mark.parametrize("factor", [1, 1000, 1_000_000])
def test_the_unit_of_amazons_times_is_recognised_whatever_the_release(tmp_path, factor):
    reviews = [review("u", item, OCTOBER * factor) for item in "AB"]
    source = amazon.load(amazon_shop(tmp_path, reviews, METADATA))
    assert source.interactions["timestamp"].tolist() == [OCTOBER, OCTOBER]
    assert source.notes == ()


def test_amazons_times_in_two_units_are_refused(tmp_path):
    reviews = [review("u", "A", OCTOBER), review("u", "B", OCTOBER * 1000)]
    said = refused(amazon_shop(tmp_path, reviews, METADATA), amazon.load)
    assert f"looks like seconds ({OCTOBER}), milliseconds ({OCTOBER}000)" in said


@pytest.mark.parametrize("time", [10**400, -1, float("nan")])
def test_an_impossible_time_of_amazon_is_one_line(tmp_path, time):
    said = refused(amazon_shop(tmp_path, [review("u", "A", time)], METADATA), amazon.load)
    assert said.startswith(f"{tmp_path}/Tools.json:1: unixReviewTime: got ")


def test_reviews_without_a_user_are_dropped_and_counted_not_made_one_user(tmp_path):
    reviews = [review("u", item, OCTOBER) for item in "AB"]
    reviews += [review(nobody, "A", OCTOBER) for nobody in (float("nan"), None)]
    metadata = [*METADATA, meta(float("nan"), "Lost")]
    source = amazon.load(amazon_shop(tmp_path, reviews, metadata))
    assert source.interactions["user_id"].tolist() == ["u", "u"]
    assert source.dropped["reviews without a user id"] == 2
    assert source.dropped["metadata rows without an item id"] == 1


def test_half_characters_in_amazons_files_are_replaced_or_refused(tmp_path):
    reviews = [review("u", item, OCTOBER) for item in "AB"]
    metadata = [meta("A", "Saw \ud83d"), meta("B", "Oil")]
    source = amazon.load(amazon_shop(tmp_path, reviews, metadata))
    assert titles(source) == ["Saw \ufffd", "Oil"]
    assert source.notes == (
        f"{tmp_path}/meta_Tools.json:1: holds half of a character (a lone surrogate), replaced by "
        "U+FFFD (1 such items)",
    )
    reviews.append(review("v\ud83d", "A", OCTOBER))
    said = refused(amazon_shop(tmp_path, reviews, METADATA), amazon.load)
    assert said.startswith(f"{tmp_path}/Tools.json:3: reviewerID: got 'v\\ud83d', expected")


def minionerec_folder(folder: Path, rows: list[tuple[str, str, str]]) -> DataSettings:
    """A MiniOneRec folder whose train file has these (user, history, target) rows."""
    items = {str(number): {"title": f"Thing {number}"} for number in range(6)}
    sids = {number: [f"<a_{number}>"] for number in items}
    (folder / "T.item.json").write_text(json.dumps(items))
    (folder / "T.index.json").write_text(json.dumps(sids))
    head = "user_id,history_item_id,item_id\n"
    lines = "".join(f'{user},"{history}",{target}\n' for user, history, target in rows)
    (folder / "T_train.csv").write_text(head + lines)
    (folder / "T_valid.csv").write_text(head + 'v,"[0]",1\n')
    (folder / "T_test.csv").write_text(head + 'w,"[0]",1\n')
    return DataSettings(source="minionerec", path=str(folder))


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_shuffled_rows_of_a_minionerec_folder_are_called_so(tmp_path, order):
    rows = [("u", "[0]", "1"), ("u", "[0, 1]", "2"), ("u", "[0, 1, 2]", "3")]
    minionerec_csv.load(minionerec_folder(tmp_path, rows))
    shuffled = minionerec_folder(tmp_path, [rows[place] for place in order])
    assert "rows must be in time order, but" in refused(shuffled, minionerec_csv.load)


def test_a_folder_of_lc_rec_is_called_so(tmp_path):
    settings = minionerec_folder(tmp_path, [("u", "[0]", "1")])
    for split in ("train", "valid", "test"):
        (tmp_path / f"T_{split}.csv").unlink()
    (tmp_path / "T.inter.json").write_text('{"0": [1, 2, 3]}')
    said = refused(settings, minionerec_csv.load)
    assert said.startswith(f"data.path: {tmp_path} holds the layout of LC-Rec (a T.inter.json")


# ------------------------------------------------------------------------------ cases of the field

REFUSED = {
    "ids_float_in_one_csv": "'.0' at the end",
    "ids_zero_stripped_in_one": "leading zeros",
    "lcrec_layout": "the layout of LC-Rec",
    "lone_surrogate_user": "Tools.json:13: reviewerID",
    "minionerec_shuffled_train": "rows must be in time order",
    "no_header_csv": "seems to have no header",
    "ts_before_1970": "this one is before",
}


@pytest.mark.slow
@pytest.mark.skipif(not CASES.is_dir(), reason="no folder of cases beside the real data")
def test_every_case_is_read_or_refused_in_one_line(tmp_path):
    command = Path("data/prepare.py").resolve()
    for folder in sorted(path for path in CASES.iterdir() if path.is_dir()):
        done = subprocess.run(
            [sys.executable, command, "--config", "config.yaml", "--output_dir", tmp_path],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if folder.name in REFUSED:
            assert done.returncode == 2 and REFUSED[folder.name] in done.stderr, folder.name
            assert len(done.stderr.splitlines()) == 1, folder.name
        else:
            assert done.returncode == 0, (folder.name, done.stderr)
            assert re.search(r"^times are unix seconds UTC.* \d{4}-", done.stdout, re.M), (
                folder.name
            )
