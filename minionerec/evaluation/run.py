"""An evaluation's ranking, part by part so that a killed run continues, and its measures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.samples import train_counts
from minionerec.errors import UserError
from minionerec.evaluation.cost import cost, peak_memory_mb
from minionerec.evaluation.metrics import SidOf
from minionerec.evaluation.ranking import predictions, sid_of
from minionerec.evaluation.scoring import score_predictions
from minionerec.evaluation.slices import pairs_of
from minionerec.experiment import parts as kept
from minionerec.experiment.processes import processes
from minionerec.experiment.run import say
from minionerec.experiment.stages import settings_of
from minionerec.model import ranking
from minionerec.model.policy import Policy
from minionerec.model.ranking import Ranker

Parts = list[list[list[int]]]  # of every part its batches, of every batch the numbers of its rows


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
    ranker: Ranker, item_ids: list[str], folder: Path, facts: dict[str, Any], batch_size: int
) -> tuple[list[str], dict[str, Any]]:
    """Rank what no earlier run of the same evaluation has ranked, every process a share of it.

    Args:
        ranker: of all rows.
        item_ids: by item index.
        folder: where finished parts are kept.
        facts: what the rankings depend on; parts of a run with other facts are never used.
        batch_size: rows of a part, rounded up to whole batches of the ranker.

    Returns:
        The lines of ``predictions.jsonl`` (empty but in the main process), and the ``cost`` of what
        was ranked now.
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
    }
    missing = what_is_missing(folder, facts, parts) if state.is_main_process else None
    todo = broadcast_object_list([missing])[0]

    start = time.perf_counter()
    mine = todo[state.process_index :: state.num_processes]
    batches = [batch for number in mine for batch in parts[number]]
    found = ranker.rank(batches, progress="ranking")
    for number in mine:
        lines = []
        for batch in parts[number]:
            leaves, scores = next(found)
            samples = [ranker.samples[row] for row in batch]
            unwanted = None
            if ranker.unwanted is not None:
                unwanted = [ranker.unwanted[row] for row in batch]
            for record in predictions(samples, leaves, scores, ranker.trie, item_ids, unwanted):
                lines.append(json.dumps(record, ensure_ascii=False))
        kept.write_part(folder, number, lines)
    peaks = gather_object([peak_memory_mb()])  # waits for all processes
    spent = cost(
        ranker.model.num_parameters(),
        time.perf_counter() - start,
        rows_of(parts, todo),
        prompt_tokens_per_user=sum(map(len, ranker.prompts)) / len(ranker.prompts),
        peak_memory=max(peaks),
    )
    return joined(folder, parts) if state.is_main_process else [], spent


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


def joined(folder: Path, parts: Parts) -> list[str]:
    """The lines of all parts in the order of the rows.

    Raises:
        UserError: a part is not there: it was damaged, or written by a machine that does not share
            the folder.
    """
    lines: dict[int, str] = {}
    for number, part in enumerate(parts):
        found = kept.read_part(folder, number)
        if found is None:
            raise UserError(
                f"{folder}: part {number} is missing or damaged, though it was written; run the "
                "same command again (several machines must share this folder)"
            )
        rows = [row for batch in part for row in batch]
        lines |= zip(rows, found, strict=True)
    return [lines[row] for row in range(len(lines))]


def measure(policy: Policy, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of ``metrics.json`` but for the cost.

    Args:
        policy: whose rankings the records are.
        records: the rows of ``predictions.jsonl``.

    Raises:
        UserError: there are recommendations that must not be.
    """
    catalogue = policy.catalogue
    found = measure_records(catalogue, records, sid_of(catalogue.sids), policy.trie.num_leaves)
    return found | {"sids_sha256": catalogue.sids.sha256, "normalize": policy.normalize}


def measure_records(
    catalogue: Catalogue, records: list[dict[str, Any]], groups: SidOf | None, num_choices: int
) -> dict[str, Any]:
    """What is measured on any ranking of the split that ``evaluate.split`` names.

    Args:
        catalogue: what was ranked.
        records: the rows of ``predictions.jsonl``.
        groups: item -> SID; None for a ranking that knows items apart.
        num_choices: SIDs, or items, that could be ranked.

    Raises:
        UserError: there are recommendations that must not be.
    """
    experiment = catalogue.experiment
    s = experiment.evaluate
    ids = catalogue.item_ids
    counts = train_counts(catalogue.samples.train_sequences, len(ids))
    histories = []
    for row in catalogue.samples.splits[s.split]:
        histories.append([ids[item] for item in row.history])
    metrics = score_predictions(
        records,
        groups,
        ids,
        dict(zip(ids, counts.tolist(), strict=True)),
        histories,
        s.bootstrap_samples,
        experiment.seed,
        depth=s.num_beams if s.num_beams < num_choices else len(ids),
        train_pairs=pairs_of(catalogue.samples.train_sequences, ids),
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
        "empty": sum(not record["item_ids"] for record in records),
    }
