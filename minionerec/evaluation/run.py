"""An evaluation's ranking, part by part so that a killed run continues, and its measures."""

from __future__ import annotations

import base64
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.samples import train_counts
from minionerec.errors import UserError
from minionerec.evaluation import prediction_files
from minionerec.evaluation.cost import cost, peak_memory_mb
from minionerec.evaluation.metrics import SidOf
from minionerec.evaluation.ranking import ranked_items, record, sid_of
from minionerec.evaluation.rows import NOTHING, as_table, rows_of_samples
from minionerec.evaluation.scoring import score_rows
from minionerec.evaluation.slices import pairs_of
from minionerec.experiment import parts as kept
from minionerec.experiment.processes import processes
from minionerec.experiment.run import say
from minionerec.experiment.stages import settings_of
from minionerec.model import ranking
from minionerec.model.policy import Policy
from minionerec.model.ranking import Ranker

FORM = 2  # of a part; parts of another form are of another run

Parts = list[list[list[int]]]  # of every part its batches, of every batch the numbers of its rows


@dataclass(frozen=True)
class Lines:
    """The lines of all rows, in their order; they stay on the disk."""

    file: IO[bytes]  # holds them in any order
    starts: np.ndarray  # (n,) where each row's line begins
    sizes: np.ndarray  # (n,) its bytes

    def __iter__(self) -> Iterator[str]:
        """One line after the other."""
        source = self.file.fileno()
        for start, size in zip(self.starts.tolist(), self.sizes.tolist(), strict=True):
            yield os.pread(source, size, start).decode()

    def write(self, target: Path) -> None:
        """Write them to a file."""
        with open(target, "w", encoding="utf-8", newline="") as handle:
            for line in self:
                handle.write(f"{line}\n")

    def write_all(self, folder: Path) -> None:
        """Write them as ``predictions.jsonl``, and what they say as its copy."""
        rows = ((line, json.loads(line)) for line in self)
        prediction_files.write(folder, rows)


class Ranked(NamedTuple):
    """The rankings of all rows, in their order."""

    items: np.ndarray  # (n, W) item indexes, best first, NOTHING where a list has ended
    lines: Lines  # of predictions.jsonl


def facts_of(policy: Policy) -> dict[str, Any]:
    """What a policy's rankings depend on; flat."""
    catalogue = policy.catalogue
    return settings_of(catalogue.experiment, "evaluate") | {
        "sids_sha256": catalogue.sids.sha256,
        "checkpoint_sha256": policy.checkpoint.digest,
        "data": catalogue.data.digest,
        "model.normalize": policy.normalize,
        "model.max_tokens": policy.max_tokens,
        "dtype": str(policy.model.dtype),
    }


def rank_in_parts(
    ranker: Ranker,
    item_ids: list[str],
    folder: Path,
    facts: dict[str, Any],
    batch_size: int,
) -> tuple[Ranked | None, dict[str, Any]]:
    """Rank what no earlier run of the same evaluation has ranked, every process a share of it.

    Args:
        ranker: of all rows.
        item_ids: by item index.
        folder: where finished parts are kept.
        facts: what the rankings depend on; parts of a run with other facts are never used.
        batch_size: rows of a part, rounded up to whole batches of the ranker.

    Returns:
        All rankings (None but in the main process), and the ``cost`` of what was ranked now.
    """
    state = processes()
    step = -(-batch_size // ranking.USERS_PER_FORWARD)
    parts = [ranker.batches[start : start + step] for start in range(0, len(ranker.batches), step)]
    facts = facts | {
        "evaluate.batch_size": batch_size,
        "device": state.device.type,
        "users per forward": ranking.USERS_PER_FORWARD,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "form": FORM,
    }
    missing = what_is_missing(folder, facts, parts) if state.is_main_process else None
    todo = broadcast_object_list([missing])[0]

    start = time.perf_counter()
    mine = todo[state.process_index :: state.num_processes]
    batches = list(chain.from_iterable(parts[number] for number in mine))
    found = ranker.rank(batches, progress="ranking")
    for number in mine:
        lines = []
        lists = []
        for batch in parts[number]:
            leaves, scores = next(found)
            unwanted = None
            if ranker.unwanted is not None:
                unwanted = [ranker.unwanted[row] for row in batch]
            ranked = ranked_items(leaves, scores, ranker.trie, unwanted)
            for row, (items, item_scores) in zip(batch, ranked, strict=True):
                line = record(ranker.samples[row], items, item_scores, item_ids)
                lines.append(json.dumps(line, ensure_ascii=False))
                lists.append(items)
        kept.write_part(folder, number, [*lines, written(as_table(lists))])
    peaks = gather_object([peak_memory_mb()])  # waits for all processes
    spent = cost(
        ranker.model.num_parameters(),
        time.perf_counter() - start,
        rows_of(parts, todo),
        prompt_tokens_per_user=sum(map(len, ranker.prompts)) / len(ranker.prompts),
        peak_memory=max(peaks),
    )
    return joined_rankings(folder, parts) if state.is_main_process else None, spent


def written(lists: np.ndarray) -> str:
    """A part's ``(rows, W)`` lists of item indexes as its last line.

    They are measured from here: reading ids and looking each up takes ten times as long.
    """
    content = base64.b64encode(lists.astype("<i4").tobytes()).decode("ascii")
    return json.dumps({"width": lists.shape[1], "items": content})


def read_lists(line: str) -> np.ndarray:
    """The ``(rows, W)`` lists that ``written`` wrote."""
    content = json.loads(line)
    items = np.frombuffer(base64.b64decode(content["items"]), dtype="<i4")
    return items.reshape(-1, content["width"])


def what_is_missing(folder: Path, facts: dict[str, Any], parts: Parts) -> list[int]:
    """Numbers of the parts that are to be made; says what it found of an earlier run."""
    changed = kept.open_parts(folder, facts)
    if changed:
        say(
            f"{folder}: held parts of another evaluation ({'; '.join(changed)}); deleted, "
            "beginning anew"
        )
    missing = kept.missing_parts(folder, len(parts))
    if len(missing) < len(parts):
        done = set(range(len(parts))) - set(missing)
        say(f"continuing: {rows_of(parts, done):,} rows are ranked already, in {folder}")
    return missing


def rows_of(parts: Parts, numbers: Iterable[int]) -> int:
    """How many rows the parts with these numbers hold."""
    count = 0
    for number in numbers:
        count += sum(map(len, parts[number]))
    return count


def joined(folder: Path, parts: Parts) -> tuple[Lines, list[list[str]]]:
    """The lines of all parts in the order of the rows, and what each part has behind its own.

    Raises:
        UserError: a part is not there: it was damaged, or written by a machine that does not share
            the folder.
    """
    count = rows_of(parts, range(len(parts)))
    starts = np.zeros(count, np.int64)
    sizes = np.zeros(count, np.int64)
    behind = []
    # Nameless, so that it goes with this process however that ends
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with the lines)
    for number, found in enumerate(kept.read_parts(folder, len(parts))):
        if found is None:
            raise UserError(
                f"{folder}: part {number} is missing or damaged, though it was written; run the "
                "same command again (several machines must share this folder)"
            )
        rows = list(chain.from_iterable(parts[number]))
        for row, line in zip(rows, found[: len(rows)], strict=True):
            starts[row] = file.tell()
            sizes[row] = file.write(line.encode())
        behind.append(found[len(rows) :])
    file.flush()
    return Lines(file, starts, sizes), behind


def joined_rankings(folder: Path, parts: Parts) -> Ranked:
    """The rankings of all parts in the order of the rows.

    Raises:
        UserError: as ``joined``.
    """
    lines, behind = joined(folder, parts)
    tables = [read_lists(content) for (content,) in behind]
    width = max(table.shape[1] for table in tables)
    items = np.full((len(lines.starts), width), NOTHING, np.int32)
    for part, table in zip(parts, tables, strict=True):
        rows = list(chain.from_iterable(part))
        items[rows, : table.shape[1]] = table
    return Ranked(items, lines)


def measure(policy: Policy, items: np.ndarray) -> dict[str, Any]:
    """The content of ``metrics.json`` but for the cost.

    Args:
        policy: whose rankings the lists are.
        items: ``(n, W)`` item indexes of every row of the split.

    Raises:
        UserError: there are recommendations that must not be.
    """
    catalogue = policy.catalogue
    found = measure_lists(catalogue, items, sid_of(catalogue.sids), policy.trie.num_leaves)
    return found | {"sids_sha256": catalogue.sids.sha256, "normalize": policy.normalize}


def measure_lists(
    catalogue: Catalogue,
    items: np.ndarray,
    groups: SidOf | None,
    num_choices: int,
) -> dict[str, Any]:
    """What is measured on any ranking of the split that ``evaluate.split`` names.

    Args:
        catalogue: what was ranked.
        items: ``(n, W)`` item indexes of every row of the split, negative where a list has ended.
        groups: item -> SID; None for a ranking that knows items apart.
        num_choices: SIDs, or items, that could be ranked.

    Raises:
        UserError: there are recommendations that must not be.
    """
    experiment = catalogue.experiment
    s = experiment.evaluate
    ids = catalogue.item_ids
    samples = catalogue.samples.splits[s.split]
    metrics = score_rows(
        rows_of_samples(samples, items, ids),
        groups,
        train_counts(catalogue.samples.train_sequences, len(ids)),
        s.bootstrap_samples,
        experiment.seed,
        depth=s.num_beams if s.num_beams < num_choices else len(ids),
        train_pairs=pairs_of(catalogue.samples.train_sequences, len(ids)),
    )
    if metrics["invalid"] or metrics["duplicates"]:
        raise UserError(
            f"{metrics['invalid']} recommended ids are not in the catalogue and "
            f"{metrics['duplicates']} are repeated; nothing was written, since this must never "
            "happen: please report it with your config"
        )
    return metrics | {
        "num_beams": s.num_beams,
        "checkpoint": str(s.checkpoint),
        "split": s.split,
        "exclude_history": s.exclude_history,
        "empty": int((items[:, :1] < 0).sum()),
    }
