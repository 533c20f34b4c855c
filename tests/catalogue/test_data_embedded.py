"""The embedded catalogue: whole and plausible items and buyers, the same every time, learnable but not by counting.

python -m pytest tests/catalogue/test_data_embedded.py
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from minionerec.catalogue import split
from minionerec.catalogue.sources import embedded
from minionerec.catalogue.sources.embedded_words import DEPARTMENTS, LINES, SCALES


@pytest.fixture(scope="module")
def catalogue() -> embedded.Catalogue:
    return embedded.make_catalogue(np.random.default_rng(42))


@pytest.fixture(scope="module")
def purchases() -> pd.DataFrame:
    return embedded.load(42).interactions.sort_values("timestamp", kind="stable", ignore_index=True)


def buyers_who_bought(catalogue: embedded.Catalogue, *items: int) -> embedded.Buyers:
    """One buyer with line 2 and size 1, fond of the first two departments."""
    size = (1, len(catalogue.items))
    likes = np.arange(len(DEPARTMENTS))[None, :] < 2
    buyers = embedded.Buyers(
        np.array([2]),
        np.array([1]),
        likes,
        np.zeros(size),
        np.zeros(size),
        np.zeros(size, dtype=bool),
    )
    for item in items:
        embedded.record(catalogue, buyers, np.array([0]), np.array([item]))
    return buyers


def chances_after(catalogue: embedded.Catalogue, *items: int) -> np.ndarray:
    now = np.array([embedded.FIRST_DAY + embedded.PERIOD], dtype=float)
    return embedded.next_item_chances(catalogue, buyers_who_bought(catalogue, *items), now)[0]


def test_the_catalogue_has_600_items_with_distinct_short_titles(catalogue):
    items = catalogue.items
    assert len(items) == 600 and items["item_id"].is_unique and items["title"].is_unique
    assert items["title"].str.split().str.len().max() <= 20
    assert {len(path) for path in items["categories"]} == {3} and len(
        {path[2] for path in items["categories"]}
    ) == 30


def test_every_text_says_what_decides_who_buys_the_item(catalogue):
    for row, item in enumerate(catalogue.items.to_dict("records")):
        department = DEPARTMENTS[catalogue.department[row]]
        fits = department.fits.format(department.systems[catalogue.kind[row] % 4])
        variant = (SCALES if catalogue.sized[row] else LINES)[catalogue.variant[row]].name
        assert item["title"].startswith(f"{item['brand']} {variant} ") and item["title"].endswith(
            fits
        )
        leaf = department.leaves[catalogue.leaf[row]]
        assert item["categories"] == [department.name, leaf.group, leaf.name]
        assert fits in item["description"] and leaf.name in item["description"]


def test_buyers_have_5_to_20_purchases_in_two_years_of_items_on_sale(catalogue, purchases):
    counts = purchases["user_id"].value_counts()
    assert 1950 <= len(counts) <= 2050 and counts.min() == 5 and counts.max() == 20
    assert 17_000 <= len(purchases) <= 19_000
    assert (
        purchases["timestamp"]
        .between(embedded.FIRST_DAY, embedded.FIRST_DAY + embedded.PERIOD - 1)
        .all()
    )
    assert (purchases.groupby("user_id")["timestamp"].diff().dropna() >= 3600).all()
    launch = dict(zip(catalogue.items["item_id"], catalogue.launch, strict=True))
    assert (purchases["timestamp"] >= purchases["item_id"].map(launch).astype(int)).all()
    assert purchases["item_id"].nunique() == 600


def digest(hash_seed: str, seed: int, root: str) -> str:
    code = (
        f"import sys, hashlib; sys.path.insert(0, {root!r}); from minionerec.catalogue.sources import embedded; source = embedded.load({seed}); "
        "print(hashlib.sha256((source.items.to_csv() + source.interactions.to_csv()).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_same_seed_gives_the_same_data_in_every_process_and_another_seed_other_data(root):
    source = embedded.load(7)
    here = hashlib.sha256(
        (source.items.to_csv() + source.interactions.to_csv()).encode()
    ).hexdigest()
    assert digest("1", 7, str(root)) == here
    assert digest("1", 8, str(root)) != here


def test_chances_add_up_to_one_and_every_item_on_sale_has_one(catalogue):
    for history in ([], [0], [0, 13, 13, 250]):
        chances = chances_after(catalogue, *history)
        assert chances.sum() == pytest.approx(1, abs=1e-12) and (chances > 0).all()


def test_an_item_is_not_bought_before_its_launch(catalogue):
    late = int(np.argmax(catalogue.launch))
    now = np.array([catalogue.launch[late] - 1])
    assert embedded.next_item_chances(catalogue, buyers_who_bought(catalogue), now)[0, late] == 0


def test_the_first_purchase_is_a_main_product_of_a_liked_department_or_noise(catalogue):
    """Without history, 'wanted' and 'again' are impossible: start and noise share the whole, 11 to
    16.
    """
    chances = chances_after(catalogue)
    main = (catalogue.leaf == 0) & (catalogue.department < 2)
    noise = catalogue.popularity / catalogue.popularity.sum()
    assert chances[main].sum() == pytest.approx((0.11 + 0.16 * noise[main].sum()) / 0.27)
    assert chances[~main] == pytest.approx(0.16 / 0.27 * noise[~main])


def test_a_kit_is_continued_in_its_system_and_in_the_buyers_size(catalogue):
    """After a camera of system 0 (item 0): 'wanted' is spread over the accessories of that system
    alone.
    """
    fits = (catalogue.department == 0) & (catalogue.kind % 4 == 0) & (catalogue.leaf > 0)
    chances = chances_after(catalogue, 0)
    start = (catalogue.leaf == 0) & (catalogue.department < 2)
    noise = catalogue.popularity / catalogue.popularity.sum()
    assert chances[fits].sum() == pytest.approx(
        (0.68 + 0.16 * noise[fits].sum()) / 0.95
    )  # nothing to buy again: 1 - 0.05
    assert chances[~fits & ~start] == pytest.approx(0.16 / 0.95 * noise[~fits & ~start])
    batteries = np.flatnonzero(fits & (catalogue.leaf == 1))
    weights = catalogue.popularity[batteries] * np.where(
        catalogue.variant[batteries] == 1, 8.0, 1.0
    )
    weights *= np.where(
        catalogue.items["brand"][batteries] == catalogue.items["brand"][0], 1.5, 1.0
    )
    wanted = chances[batteries] - 0.16 / 0.95 * noise[batteries]
    assert wanted / wanted.sum() == pytest.approx(weights / weights.sum())


def test_what_is_owned_is_not_wanted_again_but_consumables_are(catalogue):
    battery = int(
        np.flatnonzero(
            (catalogue.department == 0) & (catalogue.kind % 4 == 0) & (catalogue.leaf == 1)
        )[0]
    )
    card = int(
        np.flatnonzero(
            (catalogue.department == 0) & (catalogue.kind % 4 == 0) & (catalogue.leaf == 3)
        )[0]
    )
    assert not catalogue.consumable[battery] and catalogue.consumable[card]
    noise = 0.16 * catalogue.popularity / catalogue.popularity.sum()
    after_battery, after_card = (
        chances_after(catalogue, 0, battery),
        chances_after(catalogue, 0, card),
    )
    alike = catalogue.kind == catalogue.kind[battery]
    assert after_battery[alike] == pytest.approx(noise[alike] / 0.95)
    assert after_card[card] > 0.05


def ndcg(ranks: list[int]) -> float:
    return float(np.mean([1 / np.log2(rank + 2) if rank < 10 else 0.0 for rank in ranks]))


def test_knowing_the_structure_is_worth_twice_the_best_count(catalogue, purchases):
    """Global-time test targets: popularity and item-to-item counts against the generator's own
    chances.
    """
    users = pd.factorize(purchases["user_id"])[0]
    items = (
        purchases["item_id"]
        .map({item: row for row, item in enumerate(catalogue.items["item_id"])})
        .to_numpy()
    )
    splits = split.global_time(
        purchases["timestamp"].to_numpy(), split.positions(users) > 0, [0.8, 0.1, 0.1]
    )
    rng = np.random.default_rng(42)
    embedded.make_catalogue(rng)
    tastes = embedded.make_buyers(600, rng)
    numbers = [int(user[1:]) for user in pd.unique(purchases["user_id"])]
    popularity = np.bincount(items[splits == "train"], minlength=600) * 1.0
    counts = np.zeros((3, 600, 600))
    ranks = {"popularity": [], "markov": [], "generator": []}
    histories: dict[int, list[int]] = {}
    for user, item, when, now in zip(users, items, splits, purchases["timestamp"], strict=True):
        history = histories.setdefault(user, [])
        recent = history[::-1][:3]
        if when == "train":
            for lag, before in enumerate(recent):
                counts[lag, before, item] += 1
        elif when == "test" and history:
            follow = sum(
                weight * (counts[0, before] + counts[1, before] / 2 + counts[2, before] / 4)
                for weight, before in zip((1, 0.6, 0.4), recent, strict=False)
            )
            chances = embedded.next_item_chances(
                catalogue, tastes.of(np.array([numbers[user]])), np.array([float(now)])
            )[0]
            for name, score in (
                ("popularity", popularity),
                ("markov", follow + 1e-6 * popularity),
                ("generator", chances),
            ):
                ranks[name].append(int((score > score[item]).sum()))
        embedded.record(catalogue, tastes, np.array([numbers[user]]), np.array([item]))
        history.append(item)
    scores = {name: ndcg(found) for name, found in ranks.items()}
    assert scores["popularity"] < 0.05 < scores["markov"]
    assert scores["generator"] > 2 * scores["markov"], scores
