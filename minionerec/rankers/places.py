"""Where a ranked list holds its target, and what that place is worth.

The formulas that rankers choose by and that ``evaluation`` measures by. Items that share one
semantic ID (SID) cannot be told apart by a generative ranker, so they are tied: what a place is
worth is the expectation over a random order inside the tie group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Place(NamedTuple):
    """Where a ranked list holds the target.

    ``first`` counts from 0 and is the position of the best item of the target's tie group: the
    target is equally likely at ``first .. first + size - 1``; both are None where the list does not
    hold the target. ``sid_rank`` counts the distinct SIDs before the target's, None where no item
    of the list has it.
    """

    first: int | None
    size: int | None
    sid_rank: int | None


NOWHERE = Place(None, None, None)


def find_target(
    items: Sequence[Item],
    target: Item,
    sid_of: Mapping[Item, Sequence[int]] | None = None,
) -> Place:
    """Position of the target, size of its tie group, and its rank in distinct SIDs.

    The tie group is the run of adjacent items around the target that share its SID. A list must
    hold such a group whole, as ``evaluate.py`` writes it: where a list was cut inside a group, the
    items that were cut off are misses.

        >>> find_target(["a", "b", "c"], "b")
        Place(first=1, size=1, sid_rank=1)
        >>> sid_of = {"a": (0,), "b": (1,), "c": (1,)}
        >>> find_target(["a", "b", "c"], "c", sid_of)
        Place(first=1, size=2, sid_rank=1)
        >>> find_target(["a", "b"], "c", sid_of)  # only its SID is there
        Place(first=None, size=None, sid_rank=1)

    Args:
        items: ranked, best first. One that is repeated counts where it stands first.
        target: the relevant item.
        sid_of: item -> SID; an item without one, or None, is a group of its own.
    """
    ranked = list(dict.fromkeys(items))
    groups = [group_of(item, sid_of) for item in ranked]
    wanted = group_of(target, sid_of)
    if wanted not in groups:
        return NOWHERE
    sid_rank = len(set(groups[: groups.index(wanted)]))
    if target not in ranked:
        return Place(None, None, sid_rank)
    first = last = ranked.index(target)
    while first > 0 and groups[first - 1] == wanted:
        first -= 1
    while last + 1 < len(groups) and groups[last + 1] == wanted:
        last += 1
    return Place(first, last - first + 1, sid_rank)


def group_of(item: Item, sid_of: Mapping[Item, Sequence[int]] | None) -> Hashable:
    """What an item is tied by: its SID, or itself where it has none."""
    if sid_of is None or item not in sid_of:
        return item
    return tuple(sid_of[item])


def hr_at_k(place: Place, k: int) -> float:
    """Probability that the target is among the first k.

    >>> hr_at_k(Place(first=0, size=3, sid_rank=0), 1), hr_at_k(NOWHERE, 10)
    (0.3333333333333333, 0.0)
    """
    if place.first is None or place.size is None:
        return 0.0
    inside = min(place.size, k - place.first)  # of the tie group
    return max(0, inside) / place.size


def ndcg_at_k(place: Place, k: int) -> float:
    """Expected NDCG@k of one row.

    With one relevant item the ideal DCG is 1, so it is the discount at the target's rank,
    ``1 / log2(rank + 2)`` with ranks from 0, averaged over the tie group.

        >>> ndcg_at_k(Place(0, 1, 0), 10), round(ndcg_at_k(Place(1, 1, 1), 10), 4)
        (1.0, 0.6309)
        >>> ndcg_at_k(Place(10, 1, 10), 10)
        0.0
    """
    return expectation(place, k, lambda rank: 1.0 / math.log2(rank + 2))


def mrr_at_k(place: Place, k: int | None) -> float:
    """Expected ``1 / rank``, ranks from 1; 0 where the first k (None: the list) lack the target.

    >>> mrr_at_k(Place(first=1, size=2, sid_rank=1), None) == (1 / 2 + 1 / 3) / 2
    True
    >>> mrr_at_k(Place(1, 2, 1), 2)
    0.25
    """
    return expectation(place, k, lambda rank: 1.0 / (rank + 1))


def expectation(place: Place, k: int | None, gain: Callable[[int], float]) -> float:
    """Mean gain over the ranks that the target is equally likely at; ranks from k on gain 0."""
    if place.first is None or place.size is None:
        return 0.0
    end = place.first + place.size
    if k is not None:
        end = min(end, k)
    # An exact sum: the result does not depend on the order of additions.
    return math.fsum(gain(rank) for rank in range(place.first, end)) / place.size
