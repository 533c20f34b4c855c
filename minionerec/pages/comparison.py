"""A comparison of methods as two tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minionerec.evaluation.comparison import LEVEL, TABLE_KEYS
from minionerec.evaluation.strings import SHOWN as TABLE_STRINGS
from minionerec.pages.html import number
from minionerec.pages.text import FOUR_DIGITS, aligned, metrics_table, widths_table


def comparison_text(figures: Mapping[str, Any]) -> str:
    """The figures of ``comparison.compared`` as tables, and what the marks mean."""
    methods = figures["methods"]
    parts = [
        f"{figures['split']} split: {figures['rows']:,} rows of {figures['users']:,} users",
        metrics_table(methods),
    ]
    if any(method["deviations"] for method in methods.values()):
        parts.append(f"standard deviation over seeds\n{deviations_table(methods)}")
    parts.append(differences_table(figures))
    parts.append(
        f"* p < {LEVEL:g} two-sided, after Holm's correction over these "
        f"{len(figures['differences'])} comparisons. Paired randomisation\n"
        f"test and bootstrap over users, {figures['samples']:,} draws each; of several seeds a "
        "row counts by its mean."
    )
    if figures["slices"]:
        parts.append(slices_table(figures))
    if figures["beam_widths"]:
        parts.append(f"one seed, a sample of rows\n{widths_table(figures['beam_widths'])}")
    if figures["footnotes"]:
        parts.append("\n".join(figures["footnotes"]))
    if "strings" in figures:
        parts.append(strings_table(figures["strings"]))
    if figures["notes"]:
        parts.append("\n".join(figures["notes"]))
    return "\n\n".join(parts)


def deviations_table(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """The standard deviation over seeds of every method that has several."""
    lines = [["", "seeds", *TABLE_KEYS]]
    for name, method in methods.items():
        if method["deviations"]:
            cells = [number(method["deviations"].get(key), FOUR_DIGITS) for key in TABLE_KEYS]
            lines.append([name, str(method["seeds"]), *cells])
    return aligned(lines)


def differences_table(figures: Mapping[str, Any]) -> str:
    """Every difference to the reference; one that is more than noise is marked."""
    lines = [[f"against {figures['reference']}", "", "difference", "95 %", "p", "Holm", ""]]
    for row in figures["differences"]:
        low, high = row["interval"]
        lines.append(
            [
                row["method"],
                row["metric"],
                f"{row['difference']:+.4f}",
                f"{low:+.4f} to {high:+.4f}",
                f"{row['p_value']:.4f}",
                f"{row['holm_p_value']:.4f}",
                mark(row),
            ]
        )
    return aligned(lines)


def slices_table(figures: Mapping[str, Any]) -> str:
    """Every method on the rows that can be answered from memory, and on those that cannot."""
    title = "target followed the last item in train"
    lines = [[title, "rows", "", "", f"minus {figures['reference']}", "95 %"]]
    for row in figures["slices"]:
        cells = [f"{row['rows']:,}", row["metric"], f"{row['mean']:.4f}", "", ""]
        if "difference" in row:
            low, high = row["interval"]
            cells[-2:] = [f"{row['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}"]
        lines.append([f"{row['pair_in_train']}: {row['method']}", *cells])
    return aligned(lines)


def strings_table(strings: Mapping[str, Any]) -> str:
    """Item-level numbers, those by SID string, and by how much the strings flatter."""
    lines = [["", "counted by", *TABLE_STRINGS]]
    for name, figures in strings.items():
        for level in ("item", "string", "difference"):
            pattern = "{:+.4f}" if level == "difference" else FOUR_DIGITS
            cells = [number(figures[level].get(key), pattern) for key in TABLE_STRINGS]
            lines.append([name, level, *cells])
    return aligned(lines)


def mark(row: Mapping[str, Any]) -> str:
    """better or worse, with a star, where the corrected p-value says so."""
    if not row["significant"]:
        return ""
    return "better *" if row["difference"] > 0 else "worse *"
