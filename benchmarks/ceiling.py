"""How good a ranking of the embedded catalogue's test rows can be at all.

    bash quickstart.sh; python benchmarks/ceiling.py

The generator knows the probability of every next purchase. Ranked by it, the test rows of
``runs/quickstart`` give the best figures that any method can have on average: with the buyers'
tastes known, and with tastes inferred from what each has bought before (Bayes' rule over every
combination of line, size and departments), which is all that a recommender can know.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import fire
import numpy as np
import pandas as pd

from minionerec.catalogue.sources import embedded
from minionerec.catalogue.sources.embedded import Buyers, Catalogue
from minionerec.catalogue.sources.embedded_words import DEPARTMENTS, LINES, SCALES
from minionerec.errors import UserError, one_line_errors
from minionerec.rankers.mixing import measured


def main(run: str = "runs/quickstart", seed: int = 42) -> None:
    """Replay all purchases, rank those of the test split, print.

    Args:
        run: folder of the finished run.
        seed: of the run.
    """
    data = Path(run) / "data" / "interactions.parquet"
    if not data.is_file():
        raise UserError(f"{data} not found; run `bash quickstart.sh` first")
    rng = np.random.default_rng(seed)
    catalogue = embedded.make_catalogue(rng)
    buyers = embedded.make_buyers(len(catalogue.items), rng)
    kept = pd.read_parquet(data)
    test = kept[kept["split"] == "test"]
    wanted = set(zip(test["user_id"], test["timestamp"], strict=True))

    known, inferred = [], []
    beliefs = np.zeros((embedded.NUM_USERS, len(tastes())))  # log posterior up to a constant
    purchases = rounds(embedded.load(seed).interactions, catalogue)
    for place, (users, chosen, now) in enumerate(purchases):
        of_users = buyers.of(users)
        each = chances_by_taste(catalogue, of_users, now)  # (T, U, N)
        posterior = np.exp(beliefs[users] - beliefs[users].max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)  # (U, T)
        mean = np.einsum("ut,tun->un", posterior, each)
        truth = embedded.next_item_chances(catalogue, of_users, now)
        named = [(f"U{user:04d}", time) for user, time in zip(users, now, strict=True)]
        # Methods rank no row without a history
        asked = np.array([place > 0 and name in wanted for name in named])
        known.append(places(truth, chosen)[asked])
        inferred.append(places(mean, chosen)[asked])
        taken = each[:, np.arange(len(users)), chosen]  # (T, U)
        beliefs[users] += np.log(taken.T)
        embedded.record(catalogue, buyers, users, chosen)

    print(f"{sum(map(len, known)):,} test rows; no ranking can do better than the second\n")
    print(f"{'':18}  HR@1   HR@10  HR@50  NDCG@10")
    for name, ranks in (("tastes known", known), ("tastes inferred", inferred)):
        print(f"{name:18}", *(f"{x:.4f}" for x in measured(np.concatenate(ranks)).values()))


def tastes() -> list[tuple[int, int, tuple[bool, ...]]]:
    """T combinations of favourite line, favourite size and departments liked, all as likely."""
    liked = [
        likes
        for likes in product((True, False), repeat=len(DEPARTMENTS))
        if sum(likes) == embedded.LIKED
    ]
    return list(product(range(len(LINES)), range(len(SCALES)), liked))


def rounds(
    interactions: pd.DataFrame, catalogue: Catalogue
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every buyer's first purchases, then every buyer's second, ...: buyers, items, times."""
    index = pd.Index(catalogue.items["item_id"])
    ordered = interactions.sort_values("timestamp", kind="stable")
    place = ordered.groupby("user_id").cumcount()
    for _, purchases in ordered.groupby(place):
        users = purchases["user_id"].str[1:].astype(int).to_numpy()
        items = index.get_indexer(purchases["item_id"])
        yield users, items, purchases["timestamp"].to_numpy()


def chances_by_taste(
    catalogue: Catalogue,
    buyers: Buyers,
    now: np.ndarray,
) -> np.ndarray:
    """``(T, U, N)``: the next purchase if the buyers had each of the T tastes."""
    count = len(now)
    found = []
    for line, scale, likes in tastes():
        supposed = buyers._replace(
            line=np.full(count, line),
            scale=np.full(count, scale),
            likes=np.tile(likes, (count, 1)),
        )
        found.append(embedded.next_item_chances(catalogue, supposed, now))
    return np.stack(found)


def places(chances: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """How many items are likelier than the chosen one, ``(U,)``."""
    own = chances[np.arange(len(chosen)), chosen]
    return (chances > own[:, None]).sum(axis=1)


if __name__ == "__main__":
    with one_line_errors():
        fire.Fire(main)
