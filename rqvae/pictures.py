"""``report.png``: how evenly codes are used, how the trie branches, and what prefixes mean, for the eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rqvae.assign import Sid, prefix_ids
from rqvae.report import pad


def draw_report(path: Path, report: dict, sids: list[Sid]) -> None:
    """Three panels from ``report.json`` and the SIDs, written as PNG."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    usage, sizes, meaning = figure.subplots(1, 3)
    codes = pad(sids, len(report["codebook_sizes"]))
    draw_usage(usage, codes, report["codebook_sizes"])
    draw_prefix_sizes(sizes, codes)
    draw_meaning(meaning, report["prefixes"])
    after = report["collisions"]["after"]
    figure.suptitle(f"{report['items']} items, {after['distinct_sids']} distinct SIDs by {report['method']}")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_usage(axes: Axes, codes: np.ndarray, sizes: list[int]) -> None:
    """Items per code, most used code first; a flat line is a level that tells items apart as well as it could."""
    for level, size in enumerate(sizes):
        counts = np.bincount(codes[codes[:, level] >= 0, level], minlength=size)
        axes.plot(np.arange(size) / max(size - 1, 1), np.sort(counts)[::-1], label=f"level {level + 1} ({size} codes)")
    axes.set(xlabel="codes, most used first", ylabel="items", yscale="symlog", title="use of codes")
    axes.legend()


def draw_prefix_sizes(axes: Axes, codes: np.ndarray) -> None:
    """How many items share a prefix, from the items' side: share of items whose prefix holds at least so many."""
    for depth, ids in enumerate(prefix_ids(codes).T):
        crowd = np.sort(np.bincount(ids)[ids])[::-1]
        axes.step(crowd, np.arange(1, len(crowd) + 1) / len(crowd), label=f"{depth + 1} codes")
    axes.set(xlabel="items under the same prefix", ylabel="share of items with at least as many", xscale="log", title="prefixes")
    axes.legend()


def draw_meaning(axes: Axes, prefixes: list[dict]) -> None:
    """Category purity and next-item rate per depth, beside the same SIDs dealt at random (dashed)."""
    depths = [row["depth"] for row in prefixes]
    kinds = (("category_purity", "category purity", "C0"), ("neighbour_rate", "next item has the same prefix", "C1"))
    for name, label, colour in kinds:
        if prefixes[0][name] is not None:
            axes.plot(depths, [row[name] for row in prefixes], marker="o", color=colour, label=label)
            axes.plot(depths, [row[f"{name}_control"] for row in prefixes], linestyle="--", color=colour)
    axes.set(xlabel="codes of the prefix", xticks=depths, ylim=(0, None), title="meaning (dashed: dealt at random)")
    if axes.lines:
        axes.legend()
