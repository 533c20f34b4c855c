"""Which rankings are seeds of one method: from the words of a command line to named methods."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minionerec.errors import UserError
from minionerec.evaluation.metrics import KEYS, Values
from minionerec.evaluation.rankings import Ranking, is_ranking, read_ranking
from minionerec.experiment.manifest import MANIFEST, read_manifest
from minionerec.experiment.stages import COMMANDS, settings_difference

MOST_CHANGES = 4  # settings that a note names


@dataclass(frozen=True)
class Method:
    """A name and its rankings, one per seed."""

    name: str
    rankings: list[Ranking]

    @cached_property
    def values(self) -> Values:
        """Key -> ``(rows,)`` mean over the seeds."""
        means = {}
        for key in KEYS:
            if all(key in ranking.item_level for ranking in self.rankings):
                of_seeds = [ranking.item_level[key] for ranking in self.rankings]
                means[key] = np.mean(of_seeds, axis=0)
        return means

    def deviation(self, key: str) -> float | None:
        """Standard deviation over the seeds; None of one seed."""
        means = [ranking.item_level[key].mean() for ranking in self.rankings]
        return float(np.std(means, ddof=1)) if len(means) > 1 else None


def read_methods(words: Sequence[str]) -> list[Method]:
    """The methods that the command line names, in its order.

    Raises:
        UserError: something is not there, damaged, or not what it should be; there is nothing to
            compare.
    """
    groups = grouped(words)
    named: Counter[Path] = Counter()
    for group in groups:
        named.update(group)
    for path, times in named.items():
        if times > 1:
            raise UserError(
                f"{path}: is named twice, by itself or with its experiment; name it once"
            )
    if len(groups) < 2:
        raise UserError(f"{words[0]}: is one method only; name at least two to compare")
    methods = []
    for name, paths in zip(names_of(groups), groups, strict=True):
        methods.append(Method(name, [read_ranking(path) for path in paths]))
    return methods


def grouped(words: Sequence[str]) -> list[list[Path]]:
    """The directories of every method, one per seed.

    Raises:
        UserError: something is not there, or is no seed of what it is named with.
    """
    groups: list[list[Path]] = []
    open_groups: list[list[Path]] = []  # those that further experiments may have seeds for
    for word in words:
        paths = expand(word)
        if len(paths) > 1 or is_ranking(paths[0]):
            check_seeds(paths)
            groups.append(paths)
            continue
        for path in rankings_of(paths[0]):
            group = group_of_seeds(open_groups, path)
            if group is None:
                group = []
                open_groups.append(group)
                groups.append(group)
            group.append(path)
    return groups


def group_of_seeds(groups: Sequence[list[Path]], path: Path) -> list[Path] | None:
    """The group of which a ranking is another seed, if there is one."""
    for group in groups:
        if group[0].name == path.name and are_seeds(group, path):
            return group
    return None


def expand(word: str) -> list[Path]:
    """The directories that one argument stands for: a path, several with commas, or a pattern.

    Raises:
        UserError: one of them is not there, or of several one is no ranking.
    """
    paths = []
    for part in word.split(","):
        for found in sorted(glob.glob(part)) or [part]:
            paths.append(Path(os.path.normpath(found)))
    for path in paths:
        if not os.path.isdir(path):  # unlike Path.is_dir, no error for a name that is too long
            raise UserError(
                f"{path}: no such directory; expected an evaluation, a baseline, or an "
                "experiment's folder"
            )
        if len(paths) > 1 and not is_ranking(path):
            raise UserError(
                f"{path}: is no evaluation and no baseline; of several seeds, each must be one"
            )
    return paths


def rankings_of(experiment: Path) -> list[Path]:
    """An experiment's rankings of its test split.

    Raises:
        UserError: it has none.
    """
    found = []
    for pattern in ("baselines/[!.]*", "evaluate/[!.]*-test"):
        for path in sorted(experiment.glob(pattern)):
            if is_ranking(path):
                found.append(path)
    if not found:
        raise UserError(
            f"{experiment}: is neither a ranking (predictions.jsonl, metrics.json) nor an "
            f"experiment with baselines/* or evaluate/*-test; run "
            f"`{COMMANDS['evaluate']}` or `{COMMANDS['baselines']}` first"
        )
    return found


def names_of(groups: Sequence[Sequence[Path]]) -> list[str]:
    """A short name for every method.

    The directory's, with its experiment's before it where that is not enough.

    >>> names_of([[Path("runs/a/evaluate/sft-test")], [Path("runs/a/baselines/markov")]])
    ['sft', 'markov']
    >>> names_of([[Path("runs/a/evaluate/sft-test")], [Path("runs/b/evaluate/sft-test")]])
    ['a/sft', 'b/sft']
    """
    firsts = [group[0] for group in groups]
    short = [path.name.removesuffix("-test") for path in firsts]
    longer = []
    for path, name in zip(firsts, short, strict=True):
        if short.count(name) > 1:
            name = "/".join([*path.parts[-3:-2], name])
        longer.append(name)
    names = []
    for path, name in zip(firsts, longer, strict=True):
        names.append(str(path) if longer.count(name) > 1 else name)
    return names


# -------------------------------------------------------------------------------------------------
# Lineage


def lineage(path: Path) -> dict[str, Any]:
    """Every setting that led to a directory, its parents' included.

    ``{"sft: sft.epochs": 10, "sft: seed": 42, ...}``; empty where the pipeline did not write it.
    """
    if not (path / MANIFEST).is_file():
        return {}
    manifest = read_manifest(path)
    settings = {}
    for key, value in manifest["settings"].items():
        if key != "evaluate.checkpoint":  # a path may lie elsewhere in another experiment
            settings[f"{manifest['stage']}: {key}"] = value
    for relative in manifest["parents"]:
        settings |= lineage(Path(os.path.normpath(path / relative)))
    return settings


def without_seeds(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A lineage but for its seeds."""
    return {key: value for key, value in settings.items() if not key.endswith(": seed")}


def are_seeds(group: Sequence[Path], path: Path) -> bool:
    """Whether a ranking differs from those of a group in its seed, and in nothing else."""
    settings = lineage(path)
    for member in group:
        other = lineage(member)
        if other == settings or without_seeds(other) != without_seeds(settings):
            return False
    return True


def changed_settings(old: Path, new: Path) -> list[str]:
    """In which settings two lineages differ, seeds left out."""
    return settings_difference(without_seeds(lineage(old)), without_seeds(lineage(new)))


def check_seeds(paths: Sequence[Path]) -> None:
    """Refuse rankings that are said to be seeds of one method and are not.

    What the pipeline did not write is believed.

    Raises:
        UserError: naming what differs, or that nothing does.
    """
    known = [path for path in paths if lineage(path)]
    for path in known[1:]:
        changed = changed_settings(known[0], path)
        if changed:
            raise UserError(
                f"{path}: is not another seed of {known[0]}, it differs in {'; '.join(changed)}; "
                "name it by itself"
            )
    for number, path in enumerate(known):
        for other in known[:number]:
            if lineage(other) == lineage(path):
                raise UserError(f"{path}: has the same seed as {other}; expected every seed once")


def notes_on(methods: Sequence[Method]) -> list[str]:
    """In what methods of the same directory name differ: why they are not seeds of one."""
    notes = []
    first_of: dict[str, Method] = {}
    for method in methods:
        path = method.rankings[0].path
        first = first_of.setdefault(path.name, method)
        if first is method:
            continue
        changed = changed_settings(first.rankings[0].path, path)
        words = "; ".join(changed[:MOST_CHANGES]) or "no setting but, at most, the seed differs"
        if len(changed) > MOST_CHANGES:
            words += f" and {len(changed) - MOST_CHANGES} more settings"
        notes.append(f"{first.name} -> {method.name}: {words}")
    return notes
