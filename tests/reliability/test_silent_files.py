"""What is wrong with a file, and what stage 0 says: a refusal, a note, or the same data as without it; never other data.

bash test.sh tests/reliability/test_silent_files.py
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from data import prepare
from minionerec.errors import UserError
from minionerec.experiment.run import run_stage
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import stage_path

SAME = "the same data"  # as without the change, and no word


def shop(folder: Path) -> Path:
    """Two small tables: eight items, six users with five interactions each."""
    folder.mkdir()
    items = ["item_id,title,brand"]
    for number in range(8):
        items.append(f"{number:02d},thing {number},maker {number % 2}")
    rows = ["user_id,item_id,timestamp"]
    for user in range(6):
        for step in range(5):
            time = 1_600_000_000 + 1000 * user + step
            rows.append(f"u{user},{(user + 3 * step) % 8:02d},{time}")
    (folder / "items.csv").write_text("\n".join(items) + "\n")
    (folder / "interactions.csv").write_text("\n".join(rows) + "\n")
    return folder


def made(folder: Path, **settings) -> tuple[list[list], list[list]]:
    """What stage 0 makes of a folder: items and interactions, sorted, as plain lists."""
    values = {"source": "tables", "path": str(folder), "split": "leave_one_out", "k_core": 0}
    experiment = Experiment(name="x", output_dir=str(folder / "runs"), data={**values, **settings})
    run_stage("data", prepare.prepare, experiment)
    data = stage_path(experiment, "data")
    items = pd.read_parquet(data / "items.parquet")
    rows = pd.read_parquet(data / "interactions.parquet")
    rows = rows[["user_id", "item_id", "timestamp", "split"]].values.tolist()
    return sorted(items[["item_id", "title", "brand"]].values.tolist()), sorted(rows)


def frame(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype=str)


def edit(name: str, change: Callable[[pd.DataFrame], object]) -> Callable[[Path], None]:
    """A change of the cells of one table."""

    def on(folder: Path) -> None:
        table = frame(folder / f"{name}.csv")
        changed = change(table)
        table = changed if isinstance(changed, pd.DataFrame) else table
        table.to_csv(folder / f"{name}.csv", index=False)

    return on


def put(name: str, column: str, row: int, value: str) -> Callable[[Path], None]:
    """One other cell."""

    def change(table: pd.DataFrame) -> None:
        table.loc[row, column] = value

    return edit(name, change)


def recode(name: str, encoding: str) -> Callable[[Path], None]:
    def on(folder: Path) -> None:
        file = folder / f"{name}.csv"
        text = file.read_text().replace("thing 1", "th\u00efng 1")
        file.write_bytes(text.encode(encoding))

    return on


def as_jsonl(name: str, old: str = "", new: str = "") -> Callable[[Path], None]:
    """The table as JSON lines; ``old`` becomes ``new`` in the first."""

    def on(folder: Path) -> None:
        rows = frame(folder / f"{name}.csv").to_dict("records")
        (folder / f"{name}.csv").unlink()
        lines = [json.dumps(row) for row in rows]
        lines[0] = lines[0].replace(old, new)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    return on


def as_parquet(name: str, change: Callable[[pd.DataFrame], None]) -> Callable[[Path], None]:
    def on(folder: Path) -> None:
        table = frame(folder / f"{name}.csv")
        (folder / f"{name}.csv").unlink()
        if "timestamp" in table:
            table["timestamp"] = table["timestamp"].astype("int64")
        change(table)
        table.to_parquet(folder / f"{name}.parquet")

    return on


def replace(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def on(folder: Path) -> None:
        file = folder / f"{name}.csv"
        file.write_bytes(change(file.read_bytes()))

    return on


def packed_and_cut(folder: Path) -> None:
    content = gzip.compress((folder / "items.csv").read_bytes())
    (folder / "items.csv").unlink()
    (folder / "items.csv.gz").write_bytes(content[:-12])


def parquet_cut(folder: Path) -> None:
    as_parquet("items", lambda table: None)(folder)
    file = folder / "items.parquet"
    file.write_bytes(file.read_bytes()[:-100])


def an_older_copy_beside(folder: Path) -> None:
    shutil.copy(folder / "interactions.csv", folder / "interactions_old.csv")


def a_part_twice(folder: Path) -> None:
    content = (folder / "interactions.csv").read_bytes()
    (folder / "interactions.csv").unlink()
    (folder / "interactions.csv").mkdir()
    for name in ("part-0.csv", "part-0 (copy).csv"):
        (folder / "interactions.csv" / name).write_bytes(content)


def large_fractions(table: pd.DataFrame) -> None:
    table["user_id"] = 2**53 + table["user_id"].str[1:].astype(float)


def cut_behind(text: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[: content.rindex(text) + len(text)]


TRIES: list[tuple[str, Callable[[Path], None], str]] = [
    ("cut within the last number", replace("interactions", cut_behind(b",16000050")), r"note: .*:31: the last line has no end \('u5.*, 16000050'\); if the file was cut off"),
    ("no end of line at the end", replace("items", bytes.strip), r"note: .*items.csv:9: the last line has no end"),
    ("packed and cut", packed_and_cut, "is damaged or cut off"),
    ("Parquet, cut", parquet_cut, "cannot be read as Parquet"),
    ("UTF-16", recode("items", "utf-16"), "is not UTF-8 text"),
    ("Windows-1252", recode("items", "cp1252"), "is not UTF-8 text"),
    ("with a byte order mark", replace("items", lambda content: b"\xef\xbb\xbf" + content), SAME),
    ("line ends of an old Mac", replace("items", lambda content: content.replace(b"\n", b"\r")), SAME),
    ("NUL bytes", replace("items", lambda content: content.replace(b"thing 1", b"thing\x001")), "holds a NUL byte"),
    ("a key twice in an item", as_jsonl("items", '"title"', '"title": "other", "title"'), "items.jsonl:1: .*the key 'title' is there twice"),
    ("a key twice in an interaction", as_jsonl("interactions", '"item_id"', '"item_id": "07", "item_id"'), "interactions.jsonl:1: .*the key 'item_id' is there twice"),
    ("JSON lines instead", as_jsonl("items"), SAME),
    ("ids as fractions of 2^53 and more", as_parquet("interactions", large_fractions), r"row 1: user_id: got 9007199254740992.0, expected text or a whole number"),
    ("ids true and false", as_parquet("interactions", lambda t: t.__setitem__("user_id", t["user_id"] == "u0")), "user_id: got (True|False), expected text or a whole number"),
    ("ids shortened by a spreadsheet", edit("interactions", lambda t: t.assign(user_id=t["user_id"].replace({"u0": "1.23E+12", "u1": "1.23E+12"}))), r"note: .*:2: user_id: '1.23E\+12' looks like a number that a spreadsheet shortened.* \(10 such rows\)"),
    ("an id with a character without width", put("interactions", "user_id", 2, "u0\u200b"), r"user_id: got 'u0\\u200b', expected 'u0', from which 'u0\\u200b' differs in nothing that can be seen"),
    ("ids in two Unicode forms", edit("interactions", lambda t: t.assign(user_id=["e\u0301", "\u00e9", *t["user_id"][2:]])), r"expected 'e\\u0301', from which '\\xe9' differs"),
    ("an item id with a character without width", put("interactions", "item_id", 2, "06\u200b"), r"expected '06\\u200b', from which '06' differs"),
    ("blanks around ids", edit("interactions", lambda t: t.assign(item_id=" " + t["item_id"] + " ")), SAME),
    ("rows of items in another order", edit("items", lambda t: t.iloc[::-1]), SAME),
    ("rows of interactions in another order", edit("interactions", lambda t: t.sample(frac=1, random_state=0)), SAME),
    ("every row twice", edit("interactions", lambda t: pd.concat([t, t])), r"note: .*:32: repeats user, item and time of an earlier row \(30 such rows of 60, which count\)"),
    ("a part file twice", a_part_twice, r"repeats user, item and time of an earlier row \(30 such rows of 60"),
    ("the header again in the middle", edit("interactions", lambda t: pd.concat([t[:9], pd.DataFrame([dict(zip(t, t, strict=True))]), t[9:]])), "timestamp: got 'timestamp'"),
    ("an older copy beside it", an_older_copy_beside, "found 2 \\(interactions.csv, interactions_old.csv\\)"),
    ("a time that is infinite", put("interactions", "timestamp", 3, "inf"), "timestamp: got 'inf'"),
    ("a time that is no number", put("interactions", "timestamp", 3, "nan"), "timestamp: got 'nan'"),
    ("a time that is empty", put("interactions", "timestamp", 3, ""), "timestamp: got ''"),
    ("a time before 1970", put("interactions", "timestamp", 3, "-5"), "expected a time from 1970 on"),
    ("times with separators of thousands", edit("interactions", lambda t: t.assign(timestamp=[f"{int(v):,}" for v in t["timestamp"]])), "timestamp: got '1,600,000,000'"),
    ("one time in milliseconds", put("interactions", "timestamp", 3, "1600000003000"), "looks like seconds at .*milliseconds at"),
    ("a rating that is infinite", edit("interactions", lambda t: t.assign(rating=["inf", *["4"] * 29])), "rating: got 'inf'"),
    ("ratings with a decimal comma", edit("interactions", lambda t: t.assign(rating="4,5")), "note: .*:2: rating: '4,5' is read with a decimal comma"),
    ("a cell too many", replace("interactions", lambda content: content.replace(b"u2,", b"u2,x,", 1)), "got 4 cells, expected 3"),
    ("a comment above the header", replace("interactions", lambda content: b"# of 2024\n" + content), "got 3 cells, expected 1"),
    ("tabs under .csv", replace("interactions", lambda content: content.replace(b",", b"\t")), "its cells are separated by a tab"),
    ("whole numbers for 00", as_parquet("interactions", lambda t: t.__setitem__("item_id", t["item_id"].astype("int32"))), "differ in leading zeros"),
    ("times in another zone", as_parquet("interactions", lambda t: t.__setitem__("timestamp", pd.to_datetime(t["timestamp"], unit="s", utc=True).dt.tz_convert("Asia/Tokyo"))), SAME),
    ("unsigned times and categorical ids", as_parquet("interactions", lambda t: (t.__setitem__("timestamp", t["timestamp"].astype("uint32")), t.__setitem__("user_id", t["user_id"].astype("category")))), SAME),
]  # fmt: skip


@pytest.mark.parametrize(
    "change, outcome", [row[1:] for row in TRIES], ids=[row[0] for row in TRIES]
)
def test_a_change_of_a_file_is_refused_said_or_without_effect(tmp_path, capsys, change, outcome):
    whole = made(shop(tmp_path / "whole"))
    folder = shop(tmp_path / "changed")
    change(folder)
    capsys.readouterr()
    try:
        found = made(folder)
    except UserError as error:
        assert outcome != SAME and re.search(outcome, str(error)), error
        return
    said = capsys.readouterr().out
    if outcome == SAME:
        assert found == whole and "note:" not in said
    else:
        assert re.search(outcome, said), said


def test_swapped_files_are_refused(tmp_path):
    folder = shop(tmp_path / "shop")
    with pytest.raises(UserError, match="has no column 'title' for title"):
        made(folder, interactions="items.csv", items="interactions.csv")


def test_one_column_cannot_be_users_and_items(tmp_path):
    folder = shop(tmp_path / "shop")
    with pytest.raises(ValueError, match="column 'item_id' stands for two of user_id, item_id and"):
        made(folder, columns={"user_id": "item_id"})


def test_categories_of_recbole_are_words_with_blanks_between_them(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.item").write_text(
        "item_id:token\ttitle:token_seq\tcategories:token_seq\n1\tred drill\tTools Hand\n"
    )
    rows = "".join(f"u\t1\t{1_600_000_000 + step}\n" for step in range(4))
    (folder / "shop.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows)
    experiment = Experiment(
        name="x",
        output_dir=str(folder / "runs"),
        data={"source": "tables", "path": str(folder), "split": "leave_one_out", "k_core": 0}
        | {"interactions": "shop.inter", "items": "shop.item"},
    )  # fmt: skip
    run_stage("data", prepare.prepare, experiment)
    items = pd.read_parquet(stage_path(experiment, "data") / "items.parquet")
    assert items[["title", "categories"]].iloc[0].map(list).tolist()[1] == ["Tools", "Hand"]
    assert items["title"].tolist() == ["red drill"]
