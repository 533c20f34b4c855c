"""On which terms rankings were made: figures compare only where these are the same.

With the same weights, one data set had NDCG@10 .1520 and .1702, because one of the two rankings
left out what users had already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minionerec.experiment.manifest import MANIFEST, read_manifest

# Setting -> what a footnote calls it
TERMS = {
    "evaluate.exclude_history": "exclude_history",
    "evaluate.num_beams": "beams",
    "model.normalize": "normalize",
    "data.max_history": "max_history",
}
MARK = "†"

Terms = Mapping[str, Any]


def terms_of(path: Path) -> dict[str, Any]:
    """The terms that a ranking's manifest names; {} of a ranking from elsewhere."""
    if not (path / MANIFEST).is_file():
        return {}
    settings = read_manifest(path)["settings"]
    return {label: settings[key] for key, label in TERMS.items() if key in settings}


def footnotes(terms: Mapping[str, Terms]) -> list[str]:
    """A line for every term on which rankings differ; which of them stand apart is marked.

    >>> footnotes({"SFT": {"beams": 50}, "RL": {"beams": 50}, "old": {"beams": 20}})
    ['† beams: 50 for SFT, RL; 20 for old: not measured alike, so their figures do not compare']
    """
    lines = []
    for label in TERMS.values():
        groups = groups_by(terms, label)
        if len(groups) > 1:
            parts = [f"{value} for {', '.join(names)}" for value, names in groups]
            lines.append(
                f"{MARK} {label}: {'; '.join(parts)}: not measured alike, so their figures do not "
                "compare"
            )
    return lines


def marked(terms: Mapping[str, Terms]) -> dict[str, str]:
    """Every name, with a mark behind it where it stands apart from most of the others."""
    apart: set[str] = set()
    for label in TERMS.values():
        groups = groups_by(terms, label)
        largest = max(groups, key=lambda group: len(group[1]), default=("", []))
        for group in groups:
            if group is not largest:
                apart.update(group[1])
    return {name: f"{name} {MARK}" if name in apart else name for name in terms}


def groups_by(terms: Mapping[str, Terms], label: str) -> Sequence[tuple[str, list[str]]]:
    """The names that know a term, by its value, in the order in which the values come."""
    groups: dict[str, list[str]] = {}
    for name, known in terms.items():
        if label in known:
            value = known[label]
            text = str(value).lower() if isinstance(value, bool) else str(value)
            groups.setdefault(text, []).append(name)
    return list(groups.items())
