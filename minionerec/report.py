"""What a person sees of the numbers: an aligned table in the terminal, and curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minionerec.config import UserError


def metrics_table(
    rows: Mapping[str, Mapping[str, Any]], ks: Sequence[int] = (1, 5, 10, 50), ndcg_ks: Sequence[int] = (5, 10)
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
    intervals = {name: metrics.get("intervals", {}).get("NDCG@10") for name, metrics in rows.items()}
    header = ["", *keys] + (["NDCG@10 95 %"] if any(intervals.values()) else [])
    lines = [header]
    for name, metrics in rows.items():
        cells = [name, *(_number(metrics.get(key)) for key in keys)]
        if len(header) > len(cells):
            cells.append("-" if not intervals[name] else f"{intervals[name][0]:.4f}-{intervals[name][1]:.4f}")
        lines.append(cells)
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of equally many cells as a table: the first column to the left, the others to the right.

        >>> print(aligned([["", "HR@1"], ["markov", "-"]]))
                HR@1
        markov     -
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines)


def curves(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss (left) and HR / NDCG on validation rows (right) over optimiser steps, as a PNG with reproducible bytes.

    Args:
        log: rows of ``log.jsonl``; a row without ``step`` belongs to no point in time and is not drawn.
        path: file to write.

    Raises:
        UserError: the log holds no number to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    series = log_series(log)
    if not series:
        raise UserError(f"{path}: cannot be drawn, the log has no row with 'step' and a loss or metric")
    panels = [[key for key in series if "loss" in key], [key for key in series if "loss" not in key]]
    panels = [keys for keys in panels if keys]
    figure = Figure(figsize=(6 * len(panels), 4), layout="constrained")
    for axes, keys in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for key in keys:
            axes.plot(*zip(*series[key], strict=True), label=key, marker="." if len(series[key]) < 50 else "")
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def log_series(log: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The losses, HR and NDCG of a log as key -> [(step, value), ...].

        >>> log_series([{"step": 1, "loss": 2.5, "lr": 0.1}, {"step": 2, "eval_NDCG@10": 0.1}, {"done": True}])
        {'loss': [(1, 2.5)], 'eval_NDCG@10': [(2, 0.1)]}
    """
    drawn = dict.fromkeys(key for row in log for key in row if "loss" in key or "HR@" in key or "NDCG@" in key)
    return {key: points for key in drawn if (points := key_series(log, key))}


def key_series(log: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """One number of a log as [(step, value), ...]; empty where it is never logged."""
    return [(row["step"], row[key]) for row in log if "step" in row and isinstance(row.get(key), (int, float))]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
