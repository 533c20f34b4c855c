"""Collisions: items with the same SID get SIDs of their own, or a further code, or stay.

``nearest_free`` (default). Under each prefix of L-1 codes, all items that collide share out the
codes of the last level that are theirs or nobody's, at the least total squared distance between
their residual and the codebook, subject to every group keeping its code for one of its members: one
minimum-cost assignment per prefix (scipy's ``linear_sum_assignment``). Items that do not collide
keep their SID. Where a prefix holds more items than codes, those for which it costs least move
under a neighbouring prefix, each to the free pair of last two codes that quantises it best.
(Reference implementations hand out codes by Sinkhorn within the group alone, which never looks at
what is free.)

Items with equal vectors (the same text listed twice) cannot be told apart by any code: the earlier
item keeps the code, the others are spread over the nearest free ones in the order of the items.

``extra_level``: every item of a colliding group gets a further code 0, 1, ... by distance, then
item order; the others keep L codes, so no SID is a prefix of another. ``keep``: nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment

from minionerec.errors import UserError
from rqvae.quantizers.free_room import FreeRoom, Sid, as_tuples
from rqvae.quantizers.rqkmeans import Quantised, residual_before, squared_distances


def resolve_collisions(
    quantised: Quantised, sizes: list[int], policy: str
) -> tuple[list[Sid], list[int]]:
    """Final SID of every item, and the codebook sizes.

    There is one more of them for ``extra_level``, if anything collides.
    """
    if policy == "nearest_free":
        return as_tuples(nearest_free(quantised, sizes)), sizes
    sids = as_tuples(quantised.codes)
    if policy == "keep":
        return sids, sizes
    extra = extra_level(quantised)
    if extra.max() < 0:
        return sids, sizes
    for item in np.flatnonzero(extra >= 0).tolist():
        sids[item] = (*sids[item], int(extra[item]))
    return sids, [*sizes, int(extra.max()) + 1]


def prefix_ids(codes: np.ndarray) -> np.ndarray:
    """``(N, L)``: column d numbers the distinct prefixes of d+1 codes 0, 1, ...

    In lexicographic order; -1 pads shorter SIDs.

    >>> prefix_ids(np.array([[3, 1], [0, 5], [3, 1], [3, 0]])).tolist()
    [[1, 2], [0, 0], [1, 2], [1, 1]]
    """
    ids = np.empty(codes.shape, np.int64)
    above = np.zeros(len(codes), np.int64)
    for depth, column in enumerate(codes.T):
        column = column + 1  # 0 where a SID has ended (-1)
        joined = above * (int(column.max()) + 1) + column  # above < N: no overflow
        _, above = np.unique(joined, return_inverse=True)
        ids[:, depth] = above
    return ids


def colliding(codes: np.ndarray) -> np.ndarray:
    """``(N,)`` bool: the item shares its SID with another."""
    sid = prefix_ids(codes)[:, -1]
    return np.bincount(sid)[sid] > 1


def extra_level(quantised: Quantised) -> np.ndarray:
    """``(N,)`` place of each colliding item in its group, by quantisation error, then item order.

    -1 for the others.
    """
    items = np.flatnonzero(colliding(quantised.codes))
    extra = np.full(len(quantised.codes), -1, np.int64)
    if len(items):
        levels = quantised.codes.shape[1]
        residual = residual_before(quantised, levels, items)
        error = np.square(residual).sum(axis=1)
        group = prefix_ids(quantised.codes[items])[:, -1]
        order = np.lexsort((items, error, group))
        ordered = group[order]
        extra[items[order]] = np.arange(len(items)) - np.searchsorted(ordered, ordered)
    return extra


# ------------------------------------------------------------------------------------------------
# nearest_free


def nearest_free(
    quantised: Quantised, sizes: list[int], taken: np.ndarray | None = None
) -> np.ndarray:
    """``(N, L)`` codes without collisions.

    Args:
        quantised: the items to place.
        sizes: K per level.
        taken: ``(M, L)`` SIDs that other items have and keep; none by default.

    Raises:
        UserError: there are more items than SIDs.
    """
    codes = quantised.codes.copy()
    taken = codes[:0] if taken is None else np.unique(taken, axis=0)
    space = math.prod(sizes)
    if len(codes) + len(taken) > space:
        raise UserError(
            f"sids.codebook_sizes: {list(sizes)} makes {space} SIDs for {len(codes) + len(taken)} "
            "items; add a level or codes"
        )
    overfull = []
    for members, held in prefixes_with_collisions(codes, taken):
        if len(members) + len(held) <= sizes[-1]:
            share_out_last_codes(quantised, codes, members, held, sizes[-1])
        else:
            overfull.append((members, held))
    if overfull:
        room = FreeRoom(quantised, codes, taken, [members for members, _ in overfull], sizes)
        for members, held in overfull:
            spill_surplus(quantised, codes, members, held, sizes[-1], room)
    return codes


def prefixes_with_collisions(
    codes: np.ndarray, taken: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Item numbers and last codes taken under each prefix of L-1 codes with a collision.

    Prefixes are in lexicographic order.
    """
    num_items = len(codes)
    ids = prefix_ids(np.concatenate([codes, taken]))
    prefix = np.zeros(len(ids), np.int64)
    if codes.shape[1] > 1:
        prefix = ids[:, -2]
    order = np.argsort(prefix, kind="stable")
    times_used = np.bincount(ids[:, -1])
    shared = times_used[ids[:num_items, -1]] > 1
    crowded = np.unique(prefix[:num_items][shared])
    starts = np.searchsorted(prefix[order], crowded, side="left")
    ends = np.searchsorted(prefix[order], crowded, side="right")
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        rows = order[start:end]
        yield rows[rows < num_items], taken[rows[rows >= num_items] - num_items, -1]


def share_out_last_codes(
    quantised: Quantised,
    codes: np.ndarray,
    members: np.ndarray,
    held: np.ndarray,
    size: int,
) -> None:
    """Give the colliding items among ``members`` last codes of their own.

    Args:
        members: all items of one prefix.
        held: last codes under it that are not to be had; with the members at most ``size``.
    """
    movers, open_codes, cost, own, twin = _movers(quantised, codes, members, held, size)
    rows, columns = _cheapest_assignment(cost, own)
    rows, columns = _earlier_twin_first(rows, columns, cost, own, twin)
    codes[movers[rows], -1] = open_codes[columns]


def spill_surplus(
    quantised: Quantised,
    codes: np.ndarray,
    members: np.ndarray,
    held: np.ndarray,
    size: int,
    room: FreeRoom,
) -> None:
    """As ``share_out_last_codes`` for a prefix with more than ``size`` items.

    Fill it, place the rest elsewhere.

    Who stays minimises the cost of those that stay plus the cheapest place elsewhere of those that
    leave, which is an assignment on the difference of the two because every open code is taken.
    """
    movers, open_codes, cost, own, twin = _movers(quantised, codes, members, held, size)
    _, first = np.unique(twin, return_index=True)
    seekers = movers[first]  # equal items find the same places
    room.look(seekers)
    elsewhere = np.array([room.cheapest(item)[0] for item in seekers.tolist()])[twin]  # (m,)
    rows, columns = _cheapest_assignment(cost - elsewhere[:, None], own)
    rows, columns = _earlier_twin_first(rows, columns, cost, own, twin)
    codes[movers[rows], -1] = open_codes[columns]
    leavers = np.setdiff1d(np.arange(len(movers)), rows)
    for row in leavers[np.lexsort((movers[leavers], elsewhere[leavers]))].tolist():
        _, sid = room.cheapest(int(seekers[twin[row]]))
        room.take(sid)
        codes[movers[row]] = sid


def _movers(
    quantised: Quantised,
    codes: np.ndarray,
    members: np.ndarray,
    held: np.ndarray,
    size: int,
) -> tuple[np.ndarray, ...]:
    """What one prefix has to share out.

    Returns:
        movers: ``(m,)`` the items among ``members`` that collide with each other or with ``held``.
        open_codes: ``(A,)`` last codes that nobody has or that a colliding group has.
        cost: ``(m, A)`` squared distances, float64; bit-equal rows for items with equal vectors.
        own: ``(m, A)`` bool, the code is the one that the item has.
        twin: ``(m,)`` equal for items with equal vectors and codes.
    """
    last = codes.shape[1] - 1
    uses = np.bincount(codes[members, last], minlength=size)
    uses[held] += np.where(uses[held] > 0, size, 1)  # an item on a held code shares it
    movers = members[uses[codes[members, last]] > 1]
    open_codes = np.setdiff1d(np.flatnonzero(uses != 1), held)
    residual = residual_before(quantised, last, movers)
    vectors, kind = distinct_rows(residual)
    centres = quantised.codebooks[last][open_codes]
    distances = squared_distances(vectors.astype(np.float64), centres.astype(np.float64))
    cost = distances[kind]
    own = codes[movers, last][:, None] == open_codes
    _, twin = np.unique(kind * size + codes[movers, last], return_inverse=True)
    return movers, open_codes, cost, own, twin


def distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As ``np.unique(rows, axis=0, return_inverse=True)``, which makes a field for every column.

    >>> vectors, kind = distinct_rows(np.array([[2, 0], [1, 5], [2, 0]]))
    >>> vectors.tolist(), kind.tolist()
    ([[1, 5], [2, 0]], [1, 0, 1])
    """
    lists = rows.tolist()
    order = sorted(range(len(lists)), key=lists.__getitem__)
    kind = np.zeros(len(lists), dtype=np.int64)
    first: list[int] = []
    for row in order:
        if not first or lists[row] != lists[first[-1]]:
            first.append(row)
        kind[row] = len(first) - 1
    return rows[first], kind


def _cheapest_assignment(cost: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the assignments in which most items (one per group) keep their own code, the cheapest.

    Rows and their columns.
    """
    bonus = 2 * len(cost) * np.abs(cost).max(initial=0) + 1  # outweighs all costs together
    return linear_sum_assignment(cost - own * bonus)


def _earlier_twin_first(
    rows: np.ndarray,
    columns: np.ndarray,
    cost: np.ndarray,
    own: np.ndarray,
    twin: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The same assignment at the same cost, with equal items served in item order.

    First their own code, then by cost.
    """
    paid = cost[rows, columns]
    moved = ~own[rows, columns]
    order = np.lexsort((columns, paid, moved, twin[rows]))
    # how many of each kind have a column
    served = np.bincount(twin[rows], minlength=twin.max() + 1)
    by_twin = np.lexsort((np.arange(len(twin)), twin))
    ordered = twin[by_twin]
    place = np.arange(len(twin)) - np.searchsorted(ordered, ordered)
    return by_twin[place < served[ordered]], columns[order]
