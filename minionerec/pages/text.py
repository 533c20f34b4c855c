"""What a person sees of the numbers: an aligned table in the terminal, and curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


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
    intervals = {
        name: metrics.get("intervals", {}).get("NDCG@10") for name, metrics in rows.items()
    }
    header = ["", *keys] + (["NDCG@10 95 %"] if any(intervals.values()) else [])
    lines = [header]
    for name, metrics in rows.items():
        cells = [name, *(_number(metrics.get(key)) for key in keys)]
        if len(header) > len(cells):
            cells.append(
                "-" if not intervals[name] else f"{intervals[name][0]:.4f}-{intervals[name][1]:.4f}"
            )
        lines.append(cells)
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of equally many cells as a table: the first column to the left, the others to the right.

    >>> print(aligned([["", "HR@1"], ["markov", "-"]]))
            HR@1
    markov     -
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
