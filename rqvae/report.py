"""What the semantic IDs of a catalogue are worth, before any language model is trained.

``report.json`` and a table; ``verdict.py`` judges the figures, ``page.py`` shows them.

* Levels: codes used, dead codes, perplexity (``exp`` of the entropy: how many codes an equally
  spread level would need) and Gini coefficient (0 all codes equally often, towards 1 few codes have
  everything).
* Collisions: share of items that share their SID with another, and the same weighted by train
  interactions.
* Meaning: do items with a common prefix of d codes belong together? Once by category, once by
  whether people take them one after the other; and what does a first code say about the next
  item's (``next_code.py``)? Each beside a control in which the same SIDs are dealt to the items at
  random, because small prefixes look pure by chance.

Shapes: N items, L levels, P pairs of items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from minionerec.catalogue.compact import IntLists
from minionerec.catalogue.item_text import item_texts
from minionerec.catalogue.samples import train_counts
from minionerec.evaluation.exposure import gini
from rqvae.next_code import next_code
from rqvae.quantizers.collisions import Sid, colliding, prefix_ids
from rqvae.quantizers.rqkmeans import Quantised

EXAMPLES = 3  # titles that stand for a prefix
LARGEST = 10  # prefixes of a depth that are shown
LISTINGS = 50  # groups of identical listings that are shown
CURVE_POINTS = 60

Figures = dict[str, Any]
Curve = list[list[float]]  # [[x, y], ...]


def build_report(
    items: pd.DataFrame,
    sequences: Sequence[Sequence[int]],
    quantised: Quantised,
    sids: Sequence[Sid],
    sizes: list[int],
    text: Sequence[str],
    seed: int,
) -> Figures:
    """Everything that ``report.json`` holds.

    Args:
        items: ``items.parquet`` in the order of the SIDs.
        sequences: each user's train items in order, as item indexes.
        quantised: codes before collisions were resolved.
        sids: final SID per item.
        sizes: codebook sizes of the final SIDs.
        text: ``sids.text``, the columns that are embedded.
        seed: of the control.
    """
    final = pad(sids, len(sizes))  # (N, L)
    popularity = train_counts(sequences, len(items))  # (N,)
    pairs = next_item_pairs(sequences)
    moved = (final[:, : quantised.codes.shape[1]] != quantised.codes).any(axis=1)
    levels = []
    usage_curves = []
    for level, size in enumerate(sizes):
        levels.append(level_usage(final[:, level], size))
        usage_curves.append(usage_curve(final[:, level], size))
    prefixes = []
    for depth in range(1, len(sizes)):
        prefixes += largest_prefixes(final, depth, items["title"])
    return {
        "items": len(items),
        "codebook_sizes": sizes,
        "levels": levels,
        "collisions": {
            "before": collision_rates(quantised.codes, popularity),
            "after": collision_rates(final, popularity),
            "items_with_another_sid_than_quantised": int(moved.sum()),
        },
        "reconstruction_error": [round(error, 6) for error in quantised.errors],
        "prefixes": prefix_meaning(final, items, pairs, seed),
        "next_code": next_code(final[:, 0], pairs, seed),
        "fan_out": fan_out(final),
        "largest_prefixes": prefixes,
        "duplicate_listings": duplicate_listings(items, item_texts(items, text), sids),
        "curves": {"usage": usage_curves, "crowds": crowd_curves(final)},
    }


def pad(sids: Sequence[Sid], num_levels: int) -> np.ndarray:
    """``(N, L)`` codes; -1 where a SID is shorter."""
    codes = np.full((len(sids), num_levels), -1, np.int64)
    for row, sid in enumerate(sids):
        codes[row, : len(sid)] = sid
    return codes


# -------------------------------------------------------------------------------------------------
# Levels and collisions


def level_usage(codes: np.ndarray, size: int) -> Figures:
    """Usage of one level's codes; items whose SID is shorter (-1) are left out.

    >>> level_usage(np.array([0, 0, 1, 1]), 4)
    {'size': 4, 'used': 2, 'dead': 2, 'perplexity': 2.0, 'gini': 0.5, 'largest': 2}
    """
    counts = np.bincount(codes[codes >= 0], minlength=size)
    share = counts[counts > 0] / counts.sum()
    entropy = -(share * np.log(share)).sum()
    return {
        "size": size,
        "used": int((counts > 0).sum()),
        "dead": int((counts == 0).sum()),
        "perplexity": round(float(np.exp(entropy)), 3),
        "gini": round(gini(counts), 4),
        "largest": int(counts.max()),
    }


def collision_rates(codes: np.ndarray, popularity: np.ndarray) -> Figures:
    """Share of items, and of train interactions, whose item shares its SID; sizes of the groups."""
    shared = colliding(codes)  # (N,)
    by_interactions = popularity[shared].sum() / max(popularity.sum(), 1)
    group_sizes = np.bincount(prefix_ids(codes)[:, -1])
    return {
        "collision_rate": round(float(shared.mean()), 6),
        "collision_rate_by_interactions": round(float(by_interactions), 6),
        "distinct_sids": len(group_sizes),
        "largest_group": int(group_sizes.max()),
    }


# -------------------------------------------------------------------------------------------------
# Meaning of prefixes


def prefix_meaning(
    codes: np.ndarray,
    items: pd.DataFrame,
    pairs: np.ndarray,
    seed: int,
) -> list[Figures]:
    """Per prefix depth: category purity and next-item neighbour rate, each with its control."""
    names = [path[-1] if len(path) else "" for path in items["categories"]]  # the narrowest
    category = np.array(names, dtype=object)
    known = category != ""
    labels = pd.factorize(category)[0]
    ids = prefix_ids(codes)  # (N, L)
    dealt = ids[np.random.default_rng(seed).permutation(len(codes))]
    rows = []
    for depth in range(codes.shape[1]):
        real = ids[:, depth]
        control = dealt[:, depth]
        rows.append(
            {
                "depth": depth + 1,
                "prefixes": int(real.max()) + 1,
                "items_with_category": int(known.sum()),
                "category_purity": purity(real[known], labels[known]),
                "category_purity_control": purity(control[known], labels[known]),
                "next_item_pairs": len(pairs),
                "neighbour_rate": neighbour_rate(real, pairs),
                "neighbour_rate_control": neighbour_rate(control, pairs),
            }
        )
    return rows


def purity(groups: np.ndarray, labels: np.ndarray) -> float | None:
    """Share of items whose label is their group's most frequent one; None without labelled items.

    >>> purity(np.array([0, 0, 0, 1]), np.array([7, 7, 8, 9]))
    0.75
    """
    if not len(groups):
        return None
    pairs, counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    most = np.zeros(int(groups.max()) + 1, np.int64)  # per group
    np.maximum.at(most, pairs[0], counts)
    return round(float(most.sum() / counts.sum()), 6)


def next_item_pairs(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """``(P, 2)`` different items that a user took one directly after the other.

    >>> next_item_pairs([[1, 1, 2], [5, 6], [9]]).tolist()
    [[1, 2], [5, 6]]
    """
    lists = IntLists.of(sequences)
    users = lists.owners()
    first = lists.flat[:-1]
    second = lists.flat[1:]
    keep = (users[:-1] == users[1:]) & (first != second)
    return np.stack([first[keep], second[keep]], axis=1)


def neighbour_rate(groups: np.ndarray, pairs: np.ndarray) -> float | None:
    """Share of pairs whose two items are in the same group; None without pairs."""
    if not len(pairs):
        return None
    together = groups[pairs[:, 0]] == groups[pairs[:, 1]]
    return round(float(together.mean()), 6)


def fan_out(codes: np.ndarray) -> list[Figures]:
    """Children per node of the trie, at the root and after 1, 2, ... codes."""
    ids = prefix_ids(codes)
    rows = []
    for depth in range(codes.shape[1]):
        parents = ids[:, depth - 1] if depth else np.zeros(len(codes), np.int64)
        inner = codes[:, depth] >= 0  # of items whose SID goes on
        edges = np.unique(np.stack([parents[inner], ids[inner, depth]]), axis=1)
        children = np.bincount(edges[0])
        children = children[children > 0]
        rows.append(
            {
                "depth": depth,
                "nodes": len(children),
                "mean": round(float(children.mean()), 3),
                "median": float(np.median(children)),
                "max": int(children.max()),
            }
        )
    return rows


# -------------------------------------------------------------------------------------------------
# Curves, for the pictures


def usage_curve(codes: np.ndarray, size: int) -> Curve:
    """``[share of codes, items of such a code / even share]``, most used first, no dead ones.

    >>> usage_curve(np.array([0, 0, 0, 2]), 3)
    [[0.0, 2.25], [0.5, 0.75]]
    """
    counts = np.sort(np.bincount(codes[codes >= 0], minlength=size))[::-1]
    curve = []
    for place in thin(int((counts > 0).sum())):
        x = place / max(size - 1, 1)
        y = counts[place] * size / counts.sum()
        curve.append([round(float(x), 4), round(float(y), 4)])
    return curve


def crowd_curves(codes: np.ndarray) -> list[Curve]:
    """Per depth ``[n, share of items whose prefix holds at least n items]``."""
    curves = []
    for ids in prefix_ids(codes).T:
        crowd = np.sort(np.bincount(ids)[ids])  # (N,) ascending
        sizes, first = np.unique(crowd, return_index=True)
        curve: Curve = []
        for place in thin(len(sizes)):
            share = 1 - float(first[place]) / len(crowd)
            curve.append([int(sizes[place]), round(share, 4)])
        curves.append(curve)
    return curves


def thin(count: int, points: int = CURVE_POINTS) -> list[int]:
    """At most ``points`` of ``count`` positions, evenly spread, with both ends."""
    places = np.linspace(0, count - 1, min(count, points)).round().astype(int)
    return sorted(set(places.tolist()))


# -------------------------------------------------------------------------------------------------
# Examples


def largest_prefixes(
    codes: np.ndarray,
    depth: int,
    titles: pd.Series,
    top: int = LARGEST,
) -> list[Figures]:
    """The ``top`` prefixes of ``depth`` codes with the most items, with their first titles."""
    ids = prefix_ids(codes)[:, depth - 1]
    sizes = np.bincount(ids)
    rows = []
    for prefix in np.argsort(-sizes, kind="stable")[:top]:
        members = np.flatnonzero(ids == prefix)
        rows.append(
            {
                "depth": depth,
                "prefix": codes[members[0], :depth].tolist(),
                "items": len(members),
                "titles": titles.iloc[members[:EXAMPLES]].tolist(),
            }
        )
    return rows


def duplicate_listings(
    items: pd.DataFrame,
    texts: Sequence[str],
    sids: Sequence[Sid],
    show: int = LISTINGS,
) -> Figures:
    """Items with the same text, as it is embedded.

    No code can tell them apart, so item order decided their SIDs.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        groups[text].append(row)
    twins = [rows for rows in groups.values() if len(rows) > 1]
    first = []
    for rows in twins[:show]:
        first.append(
            {
                "title": items["title"].iloc[rows[0]],
                "item_ids": items["item_id"].iloc[rows].tolist(),
                "sids": [list(sids[row]) for row in rows],
            }
        )
    return {
        "groups": len(twins),
        "items": sum(map(len, twins)),
        "policy": (
            "nearest_free gives the earlier item of the catalogue the nearer code, "
            "extra_level the lower further code"
        ),
        "first": first,
    }


# -------------------------------------------------------------------------------------------------
# For the terminal


def summary(report: Figures) -> str:
    """The report's figures as a table for the terminal."""
    lines = [
        f"{'level':>5} {'used':>11} {'perplexity':>10} {'Gini':>6} {'error':>7} {'prefixes':>8} "
        f"{'purity (control)':>17} {'neighbours (control)':>21}"
    ]
    for level in range(len(report["levels"])):
        lines.append(level_line(report, level))
    collisions = report["collisions"]
    before = collisions["before"]
    after = collisions["after"]
    lines.append(
        f"collision rate {before['collision_rate']:.2%} -> {after['collision_rate']:.2%} of items, "
        f"{before['collision_rate_by_interactions']:.2%} -> "
        f"{after['collision_rate_by_interactions']:.2%} of train interactions; "
        f"largest group {before['largest_group']} -> {after['largest_group']}; "
        f"{collisions['items_with_another_sid_than_quantised']} items re-assigned; "
        f"{report['duplicate_listings']['items']} items are listed more than once"
    )
    lines.append(next_code_line(report["next_code"]))
    lines.append(report["verdict"]["line"])
    for check in report["verdict"]["checks"]:
        if check["advice"]:
            lines.append(f"  {check['name']}: {check['found']}; {check['advice']}")
    return "\n".join(lines)


def level_line(report: Figures, level: int) -> str:
    """One level as a line of the table."""
    usage = report["levels"][level]
    meaning = report["prefixes"][level]
    errors = report["reconstruction_error"]
    error = f"{errors[level]:.4f}" if level < len(errors) else "-"  # a further level has none
    return (
        f"{level + 1:>5} {usage['used']:>5}/{usage['size']:<5} {usage['perplexity']:>10.1f} "
        f"{usage['gini']:>6.3f} {error:>7} {meaning['prefixes']:>8} "
        f"{with_control(meaning, 'category_purity'):>17} "
        f"{with_control(meaning, 'neighbour_rate'):>21}"
    )


def next_code_line(told: Figures | None) -> str:
    """What first codes say of the next ones, as a line of the table."""
    if told is None:
        return "Nobody has two items in train: what a first code says of the next is not known"
    return (
        f"A first code tells {told['bits']:.3f} bits of the next item's, "
        f"SIDs dealt at random {told['control']:.3f}"
    )


def with_control(row: Figures, name: str) -> str:
    """A figure with that of the control in brackets; a dash where it cannot be measured."""
    if row[name] is None:
        return "-"
    return f"{row[name]:.3f} ({row[f'{name}_control']:.3f})"
