"""Synthetic tables of any size, as a shop would export them, and what stage 0 costs on them.

    python benchmarks/tables.py --out big --interactions 10000000
    python benchmarks/tables.py --out big --interactions 1000000 --kind csv      # or jsonl, parts
    python benchmarks/tables.py --out big --interactions 10000000 --vectors 384

Popularity falls as rank^-0.9, a user has 5 to 50 interactions (20 on average), and there is an item
for every ten interactions. Items have a title of three to eight words, a brand and a category.
Afterwards, with ``data.source: tables`` and ``data.path`` the folder, any stage runs on them; with
``sids.embeddings`` the folder's ``vectors.npy`` stage 1 needs no encoder.
"""

from __future__ import annotations

import json
from pathlib import Path

import fire
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from minionerec.errors import one_line_errors

WORDS = (
    "steel blue large compact garden cordless water resistant filter drill handle light wall "
    "outdoor cable double storage box replacement adjustable wooden frame silent heavy duty"
).split()
SPREAD = 6_180_339  # no factor of 10: a number of up to ten million items comes once
START = 1_400_000_000  # seconds: 2014
SECONDS = 150_000_000  # nearly five years
PART = 1_000_000  # rows that are drawn and written at a time
LEAST, MEAN, MOST = 5, 20, 50  # interactions of a user
COARSE, FINE = 1_000, 50_000  # clusters of vectors, and clusters within them
VECTORS_AT_ONCE = 50_000


def main(
    out: str,
    interactions: int = 1_000_000,
    kind: str = "parquet",
    seed: int = 0,
    vectors: int = 0,
) -> None:
    """Write ``items.parquet`` and the interactions.

    Args:
        out: folder to make.
        interactions: how many, about; users are a twentieth and items a tenth of them.
        kind: of the interactions' file: parquet, csv, jsonl, or parts (a folder of Parquet files).
        seed: of everything that is drawn.
        vectors: numbers of each item's vector in ``vectors.npy``, beside ``vectors.json``; 0: none.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    num_items = interactions // 10
    pq.write_table(items(num_items, rng), folder / "items.parquet")
    if vectors:
        write_vectors(folder, num_items, vectors, np.random.default_rng(seed))

    sizes = LEAST + rng.binomial(
        MOST - LEAST, (MEAN - LEAST) / (MOST - LEAST), interactions // MEAN
    )
    numbers = np.arange(len(sizes), dtype=np.int32)
    users = rng.permutation(np.repeat(numbers, sizes))
    cumulative = np.cumsum(np.arange(1, num_items + 1) ** -0.9)
    names = rng.permutation(num_items).astype(np.int32)  # so that an id says nothing of popularity
    writer = Writer(folder, kind)
    for start in range(0, len(users), PART):
        some = users[start : start + PART]
        shares = rng.random(len(some))
        ranks = np.searchsorted(cumulative, shares * cumulative[-1])
        drawn = names[np.minimum(ranks, num_items - 1)]
        times = START + rng.integers(0, SECONDS, len(some))
        writer.write(
            pa.table(
                {
                    "user_id": numbered("A", some),
                    "item_id": numbered("B", drawn),
                    "timestamp": times,
                    "rating": rng.integers(1, 6, len(some)).astype(float),
                }
            )
        )
    writer.close()
    print(f"{folder}: {len(users):,} interactions of {len(sizes):,} users, {num_items:,} items")


def numbered(letter: str, numbers: np.ndarray) -> pa.Array:
    """``(n,)`` ids such as A00000007."""
    distinct, codes = np.unique(numbers, return_inverse=True)
    ids = pa.array([f"{letter}{number:08d}" for number in distinct.tolist()])
    return ids.take(pa.array(codes))


def items(count: int, rng: np.random.Generator) -> pa.Table:
    """``count`` items with titles that differ."""
    drawn = rng.integers(0, len(WORDS), (count, 8))
    lengths = rng.integers(2, 8, count)
    titles = []
    for number in range(count):
        words = [WORDS[word] for word in drawn[number, : lengths[number]]]
        # Seven digits of all kinds, so that titles of any number of items are equally long
        titles.append(f"{' '.join(words)} {number * SPREAD % 10**7:07d}")
    brands = [WORDS[word].title() for word in drawn[:, 0]]
    categories = [[WORDS[first], WORDS[second]] for first, second in drawn[:, :2]]
    ids = numbered("B", np.arange(count))
    return pa.table({"item_id": ids, "title": titles, "brand": brands, "categories": categories})


def write_vectors(
    folder: Path,
    count: int,
    width: int,
    rng: np.random.Generator,
) -> None:
    """Clusters within clusters: a coarse centre, a finer one around it, something of the item."""
    coarse = rng.standard_normal((COARSE, width), dtype=np.float32)
    fine = rng.standard_normal((FINE, width), dtype=np.float32)
    fine += coarse[rng.integers(0, COARSE, FINE)]
    shape = (count, width)
    file = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, shape)
    for start in range(0, count, VECTORS_AT_ONCE):
        block = file[start : start + VECTORS_AT_ONCE]
        block[:] = rng.standard_normal(block.shape, dtype=np.float32)
        block += fine[rng.integers(0, FINE, len(block))]
    file.flush()
    ids = numbered("B", np.arange(count)).to_pylist()
    (folder / "vectors.json").write_text(json.dumps(ids))


class Writer:
    """Writes tables below each other in one of the kinds of file."""

    def __init__(self, folder: Path, kind: str):
        self.folder = folder
        self.kind = kind
        self.parts = 0
        self.file: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append the rows of a table."""
        first = self.parts == 0
        if self.kind == "parquet":
            if self.file is None:
                self.file = pq.ParquetWriter(self.folder / "interactions.parquet", table.schema)
            self.file.write_table(table)
        elif self.kind == "parts":
            (self.folder / "interactions").mkdir(exist_ok=True)
            pq.write_table(table, self.folder / "interactions" / f"part-{self.parts:05d}.parquet")
        elif self.kind == "csv":
            options = pyarrow.csv.WriteOptions(include_header=first, quoting_style="none")
            with open(self.folder / "interactions.csv", "wb" if first else "ab") as handle:
                pyarrow.csv.write_csv(table, handle, options)
        else:
            frame: pd.DataFrame = table.to_pandas()
            path = self.folder / "interactions.jsonl"
            frame.to_json(path, orient="records", lines=True, mode="w" if first else "a")
        self.parts += 1

    def close(self) -> None:
        """Finish the file."""
        if self.file is not None:
            self.file.close()


if __name__ == "__main__":
    with one_line_errors():
        fire.Fire(main)
