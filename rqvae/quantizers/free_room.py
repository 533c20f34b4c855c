"""Free room: where an item goes that its prefix of L-1 codes has no room for (``collisions.py``).

The cheapest pair of last two codes that nobody has is a minimum over ``K_{L-1} * K_L`` pairs for
every item, and may be somebody's by the time the item is served. So the pairs are looked at once,
and each item keeps the cheapest last code for every second-last one. Room only shrinks: what was
found then is at most what it costs now, and only a minimum whose pair has gone is sought again.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from rqvae.quantizers.rqkmeans import Quantised, residual_before, squared_distances

Sid = tuple[int, ...]


def as_tuples(codes: np.ndarray) -> list[Sid]:
    """``(N, L)`` codes as one tuple of Python ints per item."""
    return list(map(tuple, codes.tolist()))


@dataclass(frozen=True)
class View:
    """What one item saw under a prefix of L-2 codes.

    ``||r - a - b||^2 = ||r - a||^2 + (||b||^2 + 2 a.b - 2 r.b)``, r what the prefix leaves of the
    item, a and b the last two codes.

    Attributes:
        prefix: L-2 codes.
        first: ``(K_{L-1},)`` ``||r - a||^2``.
        second: ``(K_L,)`` ``2 r.b``.
        last: ``(K_{L-1},)`` the cheapest last code after each second-last one.
        error: ``(K_{L-1},)`` squared error of these pairs, inf where all are taken.
    """

    prefix: Sid
    first: np.ndarray
    second: np.ndarray
    last: np.ndarray
    error: np.ndarray


class FreeRoom:
    """Which SIDs nobody has.

    Only built when a prefix overflows.

    Args:
        quantised: codes and codebooks that say what an item's codes cost.
        codes: ``(N, L)``, L at least 2.
        taken: ``(M, L)`` distinct SIDs of items that are not among these.
        overfull: the members of each overfull prefix; all its SIDs count as taken, theirs to share
            out.
        sizes: K of every level.
    """

    def __init__(
        self,
        quantised: Quantised,
        codes: np.ndarray,
        taken: np.ndarray,
        overfull: list[np.ndarray],
        sizes: list[int],
    ) -> None:
        self.quantised = quantised
        self.sizes = sizes
        self.first = quantised.codebooks[-2].astype(np.float64)  # (K_{L-1}, D)
        self.second = quantised.codebooks[-1].astype(np.float64)  # (K_L, D)
        self.used: Counter[Sid] = Counter()  # prefix of 0..L-2 codes -> SIDs taken below it
        # prefix of L-2 codes -> pairs taken, k * K_L + k'
        self.taken: defaultdict[Sid, list[int]] = defaultdict(list)
        self.views: dict[int, View] = {}
        between = 2 * self.first @ self.second.T
        self._all_pairs = np.square(self.second).sum(axis=1) + between  # (K_{L-1}, K_L)
        self._table = self._all_pairs
        self._table_of: Sid | None = None
        settled = np.ones(len(codes), bool)
        settled[np.concatenate(overfull)] = False
        full = {tuple(codes[members[0], :-1].tolist()) for members in overfull}
        for sid in as_tuples(np.concatenate([codes[settled], taken])):
            if sid[:-1] not in full:
                self.take(sid)
        for prefix in sorted(full):
            for last in range(sizes[-1]):
                self.take((*prefix, last))

    def take(self, sid: Sid) -> None:
        """Mark a free SID as taken."""
        for depth in range(len(sid) - 1):
            self.used[sid[:depth]] += 1
        pair = sid[-2] * self.sizes[-1] + sid[-1]
        self.taken[sid[:-2]].append(pair)
        if sid[:-2] == self._table_of:
            self._table[sid[-2:]] = np.inf

    def has_room(self, prefix: Sid) -> bool:
        """Whether a prefix of at most L-2 codes has a free SID below it."""
        below = math.prod(self.sizes[len(prefix) :])
        return self.used[prefix] < below

    def look(self, items: np.ndarray) -> None:
        """See what is free for some items, in place of all that were seen before."""
        self.views.clear()
        residuals: defaultdict[Sid, dict[int, np.ndarray]] = defaultdict(dict)
        for item in items.tolist():
            prefix, residual = self._descend(item)
            residuals[prefix][item] = residual
        for prefix, of_items in residuals.items():
            self._view(prefix, of_items)

    def cheapest(self, item: int) -> tuple[float, Sid]:
        """``(squared error, SID)`` of the best free last codes for an item that has looked.

        The last two codes are chosen jointly, under the nearest prefix that has room.
        """
        view = self.views[item]
        while not self.has_room(view.prefix):
            prefix, residual = self._descend(item)
            self._view(prefix, {item: residual})
            view = self.views[item]
        table = self._open_pairs(view.prefix)
        while True:
            code = int(view.error.argmin())
            last = int(view.last[code])
            if np.isfinite(table[code, last]):
                return float(view.error[code]), (*view.prefix, code, last)
            with_last = table[code] - view.second  # (K_L,)
            last = int(with_last.argmin())
            view.last[code] = last
            view.error[code] = view.first[code] + with_last[last]

    def _descend(self, item: int) -> tuple[Sid, np.ndarray]:
        """The nearest prefix of L-2 codes that has room, and what it leaves of the item, float64.

        Only if everything under the item's first L-2 codes is taken do codes change, as few as
        possible, each to the nearest code that has room below it.
        """
        prefix = tuple(self.quantised.codes[item, :-2].tolist())
        while not self.has_room(prefix):
            prefix = prefix[:-1]
        before = residual_before(self.quantised, len(prefix), np.array([item]))
        residual = before[0].astype(np.float64)
        while len(prefix) < len(self.sizes) - 2:
            codebook = self.quantised.codebooks[len(prefix)]
            distance = np.square(residual - codebook).sum(axis=1)
            near = distance.argsort(kind="stable").tolist()
            code = next(code for code in near if self.has_room((*prefix, code)))
            prefix = (*prefix, code)
            residual = residual - codebook[code]
        return prefix, residual

    def _view(self, prefix: Sid, residuals: dict[int, np.ndarray]) -> None:
        """Let items look at the pairs under a prefix; by item, what the prefix leaves of it."""
        table = self._open_pairs(prefix)
        left = np.stack(list(residuals.values()))  # (n, D)
        with_first = squared_distances(left, self.first)  # (n, K_{L-1})
        with_second = 2 * left @ self.second.T  # (n, K_L)
        codes = np.arange(len(table))
        rest = np.empty_like(table)
        for row, item in enumerate(residuals):
            np.subtract(table, with_second[row], out=rest)
            last = rest.argmin(axis=1)  # (K_{L-1},)
            error = with_first[row] + rest[codes, last]
            self.views[item] = View(prefix, with_first[row], with_second[row], last, error)

    def _open_pairs(self, prefix: Sid) -> np.ndarray:
        """``(K_{L-1}, K_L)`` ``||b||^2 + 2 a.b`` of the last two codes, inf where they are taken.

        The table of one prefix is kept: overfull prefixes come in lexicographic order.
        """
        if prefix != self._table_of:
            self._table_of = prefix
            self._table = self._all_pairs.copy()
            self._table.ravel()[self.taken[prefix]] = np.inf
        return self._table
