"""What a person sees of the numbers in the terminal: aligned tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minionerec.pages.html import number

FOUR_DIGITS = "{:.4f}"


def metrics_table(
    rows: Mapping[str, Mapping[str, Any]],
    ks: Sequence[int] = (1, 5, 10, 50),
    ndcg_ks: Sequence[int] = (5, 10),
) -> str:
    """One line per method: HR@K, NDCG@K and the 95 % interval of NDCG@10.

        >>> print(metrics_table({"markov": {"HR@1": 0.05, "NDCG@5": 0.081}}, ks=(1,), ndcg_ks=(5,)))
                  HR@1  NDCG@5
        markov  0.0500  0.0810

    Args:
        rows: name -> content of a ``metrics.json``; a number that is not there is shown as ``-``.
        ks: cut-offs of HR.
        ndcg_ks: cut-offs of NDCG.
    """
    keys = [f"HR@{k}" for k in ks] + [f"NDCG@{k}" for k in ndcg_ks]
    lines = [["", *keys]]
    intervals = []
    for name, metrics in rows.items():
        lines.append([name, *(number(metrics.get(key), FOUR_DIGITS) for key in keys)])
        intervals.append(metrics.get("intervals", {}).get("NDCG@10"))
    if any(intervals):
        lines[0].append("NDCG@10 95 %")
        for line, interval in zip(lines[1:], intervals, strict=True):
            line.append("{:.4f}-{:.4f}".format(*interval) if interval else "-")
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of equally many cells as a table: the first column to the left, others to the right.

    >>> print(aligned([["", "HR@1"], ["markov", "-"]]))
            HR@1
    markov     -
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        for cell, width in zip(line[1:], widths[1:], strict=True):
            cells.append(cell.rjust(width))
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)


def evaluation_report(name: str, metrics: dict[str, Any]) -> str:
    """What an evaluation has measured, for the screen."""
    spent = metrics["cost"]
    lines = [metrics_table({name: metrics}), ""]
    if metrics["empty"]:
        lines.insert(
            0,
            f"{metrics['empty']:,} users got an empty list: their histories exclude the whole "
            "catalogue (evaluate.exclude_history)",
        )
    coverage = f"; top-10 coverage {metrics['coverage@10']:.1%}" if "coverage@10" in metrics else ""
    lines.append(
        f"{spent['users']:,} rows ranked in {spent['seconds']:.1f} s "
        f"({spent['users_per_second']:.1f} users/s, {spent['peak_memory_mb']:,.0f} MiB); "
        f"invalid 0, duplicates 0{coverage}"
    )
    if "beam_widths" in metrics:
        lines += ["", widths_table({name: metrics})]
    return "\n" + "\n".join(lines)


def widths_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What each method finds at each number of beams, on a sample of the rows.

    Args:
        rows: name -> content of a ``metrics.json`` with ``beam_widths``.
    """
    keys = ("HR@1", "HR@10", "HR@50", "NDCG@10", "same_first_10")
    lines = [["beams", "rows", *keys, "NDCG@10 95 %"]]
    for name, metrics in rows.items():
        for width, figures in metrics["beam_widths"]["widths"].items():
            cells = [number(figures.get(key), FOUR_DIGITS) for key in keys]
            ends = figures["intervals"].get("NDCG@10")
            around = "{:.4f}-{:.4f}".format(*ends) if ends else "-"
            count = f"{metrics['beam_widths']['rows']:,}"
            lines.append([f"{name}, {width}", count, *cells, around])
    return aligned(lines)
