"""What the semantic IDs of a catalogue are worth, before any language model is trained: ``report.json`` and a table.

``verdict.py`` judges the figures, ``page.py`` shows them.

Levels: codes used, dead codes, perplexity (``exp`` of the entropy: how many codes an equally spread level would need) and
Gini coefficient (0 all codes equally often, towards 1 few codes have everything). Collisions: share of items that share
their SID with another, and the same weighted by train interactions. Meaning: do items with a common prefix of d codes
belong together? Once by category, once by whether people take them one after the other; each beside a control in which
the same SIDs are dealt to the items at random, because small prefixes look pure by chance.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pandas as pd

from minionerec.catalogue.sources.text import clean_text
from minionerec.evaluation.exposure import gini
from rqvae.quantizers.collisions import Sid, colliding, prefix_ids
from rqvae.quantizers.rqkmeans import Quantised

EXAMPLES = 3


def build_report(
    items: pd.DataFrame,
    interactions: pd.DataFrame,
    quantised: Quantised,
    sids: list[Sid],
    sizes: list[int],
    seed: int,
) -> dict:
    """Everything that ``report.json`` holds.

    Args:
        items: ``items.parquet`` in the order of the SIDs.
        interactions: ``interactions.parquet``; only its train rows are looked at.
        quantised: codes before collisions were resolved.
        sids: final SID per item.
        sizes: codebook sizes of the final SIDs.
        seed: of the control.
    """
    final = pad(sids, len(sizes))
    train = interactions[interactions["split"] == "train"]
    row_of = pd.Series(np.arange(len(items)), index=items["item_id"])
    popularity = np.bincount(row_of.loc[train["item_id"]].to_numpy(), minlength=len(items))
    taken = row_of.loc[train["item_id"]].to_numpy()
    pairs = next_item_pairs(train["user_id"].to_numpy(), taken)
    moved = (final[:, : quantised.codes.shape[1]] != quantised.codes).any(axis=1)
    return {
        "items": len(items),
        "codebook_sizes": sizes,
        "levels": [level_usage(final[:, level], size) for level, size in enumerate(sizes)],
        "collisions": {
            "before": collision_rates(quantised.codes, popularity),
            "after": collision_rates(final, popularity),
            "items_with_another_sid_than_quantised": int(moved.sum()),
        },
        "reconstruction_error": [round(error, 6) for error in quantised.errors],
        "prefixes": prefix_meaning(final, items, pairs, seed),
        "fan_out": fan_out(final),
        "largest_prefixes": [
            row
            for depth in range(1, len(sizes))
            for row in largest_prefixes(final, depth, items["title"])
        ],
        "duplicate_listings": duplicate_listings(items, sids),
        "curves": {
            "usage": [usage_curve(final[:, level], size) for level, size in enumerate(sizes)],
            "crowds": crowd_curves(final),
        },
    }


def pad(sids: list[Sid], num_levels: int) -> np.ndarray:
    """``(N, L)`` codes; -1 where a SID is shorter."""
    return np.array([[*sid, *[-1] * (num_levels - len(sid))] for sid in sids], np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# Levels and collisions


def level_usage(codes: np.ndarray, size: int) -> dict:
    """Usage of one level's codes; items whose SID is shorter (-1) are left out.

    >>> level_usage(np.array([0, 0, 1, 1]), 4)
    {'size': 4, 'used': 2, 'dead': 2, 'perplexity': 2.0, 'gini': 0.5, 'largest': 2}
    """
    counts = np.bincount(codes[codes >= 0], minlength=size)
    share = counts[counts > 0] / counts.sum()
    return {
        "size": size,
        "used": int((counts > 0).sum()),
        "dead": int((counts == 0).sum()),
        "perplexity": round(float(np.exp(-(share * np.log(share)).sum())), 3),
        "gini": round(gini(counts), 4),
        "largest": int(counts.max()),
    }


def collision_rates(codes: np.ndarray, popularity: np.ndarray) -> dict:
    """Share of items, and of train interactions, whose item shares its SID; distinct SIDs; largest group."""
    shared = colliding(codes)
    group_sizes = np.bincount(prefix_ids(codes)[:, -1])
    return {
        "collision_rate": round(float(shared.mean()), 6),
        "collision_rate_by_interactions": round(
            float(popularity[shared].sum() / max(popularity.sum(), 1)), 6
        ),
        "distinct_sids": len(group_sizes),
        "largest_group": int(group_sizes.max()),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Meaning of prefixes


def prefix_meaning(
    codes: np.ndarray, items: pd.DataFrame, pairs: np.ndarray, seed: int
) -> list[dict]:
    """Per prefix depth: category purity and next-item neighbour rate, each with its shuffled control."""
    category = np.array(
        [names[-1] if len(names) else "" for names in items["categories"]], dtype=object
    )
    known = category != ""
    labels = pd.factorize(category)[0]
    ids = prefix_ids(codes)
    dealt = ids[np.random.default_rng(seed).permutation(len(codes))]
    rows = []
    for depth in range(codes.shape[1]):
        real, control = ids[:, depth], dealt[:, depth]
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
    """Share of items whose label is the most frequent one of their group; None without labelled items.

    >>> purity(np.array([0, 0, 0, 1]), np.array([7, 7, 8, 9]))
    0.75
    """
    if not len(groups):
        return None
    (groups, _), counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    most = np.zeros(int(groups.max()) + 1, np.int64)
    np.maximum.at(most, groups, counts)
    return round(float(most.sum() / counts.sum()), 6)


def next_item_pairs(users: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``(P, 2)`` different items that a user took one directly after the other, in the users' own order."""
    order = np.argsort(pd.factorize(users)[0], kind="stable")
    first, second = rows[order][:-1], rows[order][1:]
    keep = (users[order][:-1] == users[order][1:]) & (first != second)
    return np.stack([first[keep], second[keep]], axis=1)


def neighbour_rate(groups: np.ndarray, pairs: np.ndarray) -> float | None:
    """Share of pairs whose two items are in the same group; None without pairs."""
    return (
        round(float((groups[pairs[:, 0]] == groups[pairs[:, 1]]).mean()), 6) if len(pairs) else None
    )


def fan_out(codes: np.ndarray) -> list[dict]:
    """Children per node of the trie, at the root and after 1, 2, ... codes."""
    ids = prefix_ids(codes)
    rows = []
    for depth in range(codes.shape[1]):
        parents = ids[:, depth - 1] if depth else np.zeros(len(codes), np.int64)
        inner = codes[:, depth] >= 0
        children = np.bincount(np.unique(np.stack([parents[inner], ids[inner, depth]]), axis=1)[0])
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


# ---------------------------------------------------------------------------------------------------------------------
# Curves, for the pictures


def usage_curve(codes: np.ndarray, size: int) -> list[list[float]]:
    """``[share of codes, items of such a code / even share]``, most used code first, without the dead ones, some 60 points.

    >>> usage_curve(np.array([0, 0, 0, 2]), 3)
    [[0.0, 2.25], [0.5, 0.75]]
    """
    counts = np.sort(np.bincount(codes[codes >= 0], minlength=size))[::-1]
    at = thin(int((counts > 0).sum()))
    return [
        [round(float(i / max(size - 1, 1)), 4), round(float(counts[i] * size / counts.sum()), 4)]
        for i in at
    ]


def crowd_curves(codes: np.ndarray) -> list[list[list[float]]]:
    """Per depth ``[n, share of items whose prefix holds at least n items]``, some 60 points."""
    curves = []
    for ids in prefix_ids(codes).T:
        crowd = np.sort(np.bincount(ids)[ids])  # (N,) ascending
        sizes, first = np.unique(crowd, return_index=True)
        curves.append(
            [[int(sizes[i]), round(1 - float(first[i]) / len(crowd), 4)] for i in thin(len(sizes))]
        )
    return curves


def thin(count: int, points: int = 60) -> list[int]:
    """At most ``points`` of ``count`` positions, evenly spread, with both ends."""
    return sorted(set(np.linspace(0, count - 1, min(count, points)).round().astype(int).tolist()))


# ---------------------------------------------------------------------------------------------------------------------
# Examples


def largest_prefixes(codes: np.ndarray, depth: int, titles: pd.Series, top: int = 10) -> list[dict]:
    """The ``top`` prefixes of ``depth`` codes with the most items, with the titles of their first items."""
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


def duplicate_listings(items: pd.DataFrame, sids: list[Sid], show: int = 50) -> dict:
    """Items with the same text (as it is embedded): no code can tell them apart, so item order decided their SIDs."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, (title, description) in enumerate(
        zip(items["title"], items["description"], strict=True)
    ):
        groups[clean_text(f"{title} {description}")].append(row)
    twins = [rows for rows in groups.values() if len(rows) > 1]
    return {
        "groups": len(twins),
        "items": sum(map(len, twins)),
        "policy": "nearest_free gives the earlier item of the catalogue the nearer code, extra_level the lower further code",
        "first": [
            {
                "title": items["title"].iloc[rows[0]],
                "item_ids": items["item_id"].iloc[rows].tolist(),
                "sids": [list(sids[row]) for row in rows],
            }
            for rows in twins[:show]
        ],
    }


def summary(report: dict) -> str:
    """The report's figures as a table for the terminal."""
    before, after = report["collisions"]["before"], report["collisions"]["after"]
    lines = [
        f"{'level':>5} {'used':>11} {'perplexity':>10} {'Gini':>6} {'error':>7} {'prefixes':>8} "
        f"{'purity (control)':>17} {'neighbours (control)':>21}"
    ]
    for level, (usage, meaning) in enumerate(
        zip(report["levels"], report["prefixes"], strict=True)
    ):
        error = (
            f"{report['reconstruction_error'][level]:.4f}"
            if level < len(report["reconstruction_error"])
            else "-"
        )
        lines.append(
            f"{level + 1:>5} {usage['used']:>5}/{usage['size']:<5} {usage['perplexity']:>10.1f} {usage['gini']:>6.3f} "
            f"{error:>7} {meaning['prefixes']:>8} {_pair(meaning, 'category_purity'):>17} "
            f"{_pair(meaning, 'neighbour_rate'):>21}"
        )
    lines.append(
        f"collision rate {before['collision_rate']:.2%} -> {after['collision_rate']:.2%} of items, "
        f"{before['collision_rate_by_interactions']:.2%} -> {after['collision_rate_by_interactions']:.2%} of train interactions; "
        f"largest group {before['largest_group']} -> {after['largest_group']}; "
        f"{report['collisions']['items_with_another_sid_than_quantised']} items re-assigned; "
        f"{report['duplicate_listings']['items']} items are listed more than once"
    )
    lines.append(report["verdict"]["line"])
    return "\n".join(lines)


def _pair(row: dict, name: str) -> str:
    return "-" if row[name] is None else f"{row[name]:.3f} ({row[name + '_control']:.3f})"
