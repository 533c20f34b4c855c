"""Free room: the cheapest pair of last codes that nobody has, while others take pairs.

python -m pytest tests/rqvae/test_free_room.py
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqvae.quantizers.free_room import FreeRoom
from rqvae.quantizers.rqkmeans import Quantised

Sid = tuple[int, ...]


def world(sizes: list[int], num_items: int, seed: int) -> Quantised:
    """Random points, codebooks and codes; all items share the first prefix of L-1 codes."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(num_items, 3)).astype(np.float32)
    codebooks = [rng.normal(size=(size, 3)).astype(np.float32) for size in sizes]
    codes = np.zeros((num_items, len(sizes)), np.int64)
    codes[:, -1] = rng.integers(0, sizes[-1], num_items)
    return Quantised(codes, codebooks, points, [0.0] * len(sizes), {})


def errors_of(fitted: Quantised, item: int, sids: list[Sid]) -> dict[Sid, float]:
    """Squared distance of an item to each SID's sum of codes."""
    errors = {}
    for sid in sids:
        levels = zip(fitted.codebooks, sid, strict=True)
        total = sum(book[code].astype(np.float64) for book, code in levels)
        errors[sid] = float(np.square(fitted.points[item] - total).sum())
    return errors


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
)
def test_an_item_finds_the_cheapest_free_pair_however_many_went_since_it_looked(
    sizes, num_items, seed
):
    """Until nothing is left: by looking at every free SID below the nearest prefix with room."""
    fitted = world(sizes, num_items, seed)
    items = np.arange(num_items)
    room = FreeRoom(fitted, fitted.codes, fitted.codes[:0], [items], sizes)
    every = itertools.product(*map(range, sizes))
    free = {sid for sid in every if any(sid[:-1])}  # the shared prefix counts as taken
    rng = np.random.default_rng(seed)
    if free:
        room.look(items)
    while free:
        item = int(rng.integers(num_items))
        error, sid = room.cheapest(item)
        below = sorted(other for other in free if other[:-2] == sid[:-2])
        errors = errors_of(fitted, item, below)
        assert sid in free
        least = min(errors.values())
        assert error == pytest.approx(least, abs=1e-5)
        assert errors[sid] == pytest.approx(least, abs=1e-5)
        own = [other for other in free if not any(other[:-2])]
        assert not own or not any(sid[:-2])
        room.take(sid)
        free.remove(sid)
