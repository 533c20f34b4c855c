"""Three data sets as people bring them: a German and Chinese shop out of Excel, ratings shaped like MovieLens, Parquet with whole numbers for ids.

Each function writes the files into a folder and returns the overrides of ``configs/own_dataset.yaml`` that a user would write.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd

GERMAN = ("Akku-Bohrschrauber", "Stichsäge", "Wasserhahn", "Gartenschlauch", "Fußmatte")
CHINESE = ("智能手机保护壳", "无线蓝牙耳机", "儿童益智玩具", "不锈钢保温杯", "厨房收纳架")
FEATURES = ("grün", "groß", "leise", "robust", "günstig", "klein")
GENRES = ("Comedy", "Drama", "Thriller", "Animation", "Western")
SMALL = {
    "data.k_core": "2",
    "sids.codebook_sizes": "8,8,8",
    "evaluate.bootstrap_samples": "20",
}


def walks(num_users: int, num_items: int, seed: int) -> list[list[int]]:
    """What each user took, in order: mostly the next item of a circle, so that there is something
    to learn.
    """
    rng = random.Random(seed)
    found = []
    for _ in range(num_users):
        item = rng.randrange(num_items)
        taken = []
        for _ in range(rng.randint(8, 12)):
            taken.append(item)
            item = (item + 1) % num_items if rng.random() < 0.8 else rng.randrange(num_items)
        found.append(taken)
    return found


def excel_shop(folder: Path) -> dict[str, str]:
    """Excel's ``sep=`` line, semicolons, decimal commas, dd.mm.yyyy, two articles without a name, a
    byte order mark.
    """
    articles = ["sep=;", "Artikelnr;Bezeichnung;Marke;Kategorie"]
    for number in range(60):
        name = (GERMAN if number % 2 else CHINESE)[number // 2 % 5]
        title = f"{name} {FEATURES[number % 6]}, {number}" if number < 58 else ""
        articles.append(f"00{number};{title};Müller;Haus > {name}")
    orders = ["sep=;", "Kunde;Artikelnr;Datum;Bewertung"]
    day = datetime(2023, 1, 31, 18, 5, tzinfo=UTC)
    for user, taken in enumerate(walks(50, 60, seed=1)):
        for step, item in enumerate(taken):
            when = day + timedelta(days=3 * step + user % 7, minutes=user)
            stars = "4,5" if step % 2 else "4"
            orders.append(f"K{user};00{item};{when:%d.%m.%Y %H:%M};{stars}")
    for name, lines in (("Artikel.csv", articles), ("Bestellungen.csv", orders)):
        (folder / name).write_bytes(("\r\n".join(lines) + "\r\n").encode("utf-8-sig"))
    columns = "user_id: Kunde, item_id: Artikelnr, timestamp: Datum, rating: Bewertung"
    return {
        **SMALL,
        "data.path": str(folder),
        "data.interactions": "Bestellungen.csv",
        "data.items": "Artikel.csv",
        "data.columns": f"{{{columns}, title: Bezeichnung, brand: Marke, categories: Kategorie}}",
        "data.time_format": "%d.%m.%Y %H:%M",
        "data.split": "leave_one_out",
    }


def ratings(folder: Path) -> dict[str, str]:
    """Everybody rates on one day and nothing twice; titles say nothing of the genres."""
    movies = ["movieId,title,genres"]
    for number in range(60):
        movies.append(f'{number + 1},"Film No. {number}, The (1999)",Romance|{GENRES[number % 5]}')
    rows = ["userId,movieId,rating,timestamp"]
    for user, taken in enumerate(walks(50, 60, seed=2)):
        for step, item in enumerate(dict.fromkeys(taken)):
            rows.append(f"{user + 1},{item + 1},4.0,{1_000_000_000 + user * 86_400 + step}")
    (folder / "movies.csv").write_text("\n".join(movies) + "\n", encoding="utf-8")
    (folder / "ratings.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    columns = "user_id: userId, item_id: movieId, title: title, timestamp: timestamp"
    return {
        **SMALL,
        "data.path": str(folder),
        "data.interactions": "ratings.csv",
        "data.items": "movies.csv",
        "data.columns": f"{{{columns}, categories: genres}}",
    }


def parquet_shop(folder: Path) -> dict[str, str]:
    """Ids are 64-bit integers, times datetimes, brands mostly absent; there is no description."""
    products = pd.DataFrame(
        {
            "product": range(10**12, 10**12 + 60),
            "name": [f"thing {number} of kind {number % 5}" for number in range(60)],
            "brand": [None if number % 3 else f"maker {number % 4}" for number in range(60)],
        }
    )
    events = []
    for user, taken in enumerate(walks(50, 60, seed=3)):
        for step, item in enumerate(taken):
            when = pd.Timestamp("2024-02-01") + pd.Timedelta(hours=5 * step + user)
            events.append((user, 10**12 + item, when))
    products.to_parquet(folder / "products.parquet")
    table = pd.DataFrame(events, columns=["customer", "product", "at"])
    table.to_parquet(folder / "events.parquet")
    columns = "user_id: customer, item_id: product, timestamp: at, title: name"
    return {
        **SMALL,
        "data.path": str(folder),
        "data.interactions": "events.parquet",
        "data.items": "products.parquet",
        "data.columns": f"{{{columns}}}",
        "data.split": "leave_one_out",
    }


SHOPS = {"excel": excel_shop, "ratings": ratings, "parquet": parquet_shop}
