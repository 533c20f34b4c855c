"""The tree of semantic IDs to open: first codes, what follows them, and the items at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

MOST_CODES = 64  # first codes that are shown, largest first
MOST_BRANCHES = 16  # second codes under one of them
MOST_ITEMS = 8  # items under one of these

Sid = Sequence[int]


class Branch(NamedTuple):
    """A prefix and what is under it, as the template reads it."""

    codes: str
    number: str
    about: str
    branches: list[Branch]
    items: list[tuple[str, str]]  # SID, title
    more: str  # what is not shown, "" where all is


def tree(
    sids: Sequence[Sid], titles: Sequence[str], categories: Sequence[Sequence[str]]
) -> list[Branch]:
    """A branch per first code, the largest first.

    Args:
        sids: codes per item.
        titles: per item.
        categories: path per item, empty where there is none; the narrowest names a branch.
    """
    whole = node("", list(range(len(sids))), 0, sids, titles, categories)
    hidden = [] if not whole.more else [Branch("", "", whole.more, [], [], "")]
    return whole.branches + hidden


def node(
    codes: str,
    items: list[int],
    depth: int,
    sids: Sequence[Sid],
    titles: Sequence[str],
    categories: Sequence[Sequence[str]],
) -> Branch:
    """One prefix of ``depth`` codes; below two codes all items stand in one list."""
    groups: dict[int, list[int]] = {}
    leaves = []
    for item in items:
        if depth == 0 or (depth == 1 and len(sids[item]) > 2):
            groups.setdefault(sids[item][depth], []).append(item)
        else:
            leaves.append(item)
    largest = sorted(groups, key=lambda code: (-len(groups[code]), code))
    branches = []
    most = MOST_CODES if depth == 0 else MOST_BRANCHES
    for code in largest[:most]:
        inside = groups[code]
        if depth and len(inside) == 1:  # nothing to open
            leaves += inside
        else:
            name = f"{codes}·{code}" if codes else str(code)
            branches.append(node(name, inside, depth + 1, sids, titles, categories))
    leaves.sort(key=lambda item: list(sids[item]))
    shown = leaves[: MOST_ITEMS * (1 if branches else 2)]
    return Branch(
        codes=codes,
        number=f"{len(items):,} {'item' if len(items) == 1 else 'items'}",
        about=about(items, titles, categories),
        branches=branches,
        items=[(joined(sids[item]), titles[item]) for item in shown],
        more=left_out(len(largest) - most, len(leaves) - len(shown)),
    )


def about(items: Sequence[int], titles: Sequence[str], categories: Sequence[Sequence[str]]) -> str:
    """What a branch holds, in a few words: its most frequent category, or its first titles."""
    narrowest = [categories[item][-1] for item in items if len(categories[item])]
    if not narrowest:
        return " / ".join(titles[item] for item in items[:2])
    name, count = Counter(narrowest).most_common(1)[0]
    return f"{name} ({count / len(items):.0%})"


def left_out(codes: int, items: int) -> str:
    """What is not shown, in words.

    >>> left_out(2, 0), left_out(-5, 1), left_out(-3, 0)
    ('and 2 further codes', 'and 1 further item', '')
    """
    parts = []
    for number, word in ((codes, "code"), (items, "item")):
        if number > 0:
            parts.append(f"{number:,} further {word}{'' if number == 1 else 's'}")
    return f"and {' and '.join(parts)}" if parts else ""


def joined(sid: Sid) -> str:
    """A SID as the pages write it.

    >>> joined([3, 0, 12])
    '‹3·0·12›'
    """
    return f"‹{'·'.join(map(str, sid))}›"
