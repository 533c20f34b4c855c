"""Baselines: rules and small networks on the same rows, with the same metrics as the model.

    python baselines/run.py --config configs/quickstart.yaml
    python baselines/run.py --config configs/own_dataset.yaml --baselines.methods markov,sasrec

Every method writes runs/<name>/baselines/<method> with predictions.jsonl (top 50 of every test row)
and metrics.json, networks also their weights, log.jsonl and curves.png; methods that are there
already are not run again. Everything is learned from the train split and chosen on the validation
split; test targets are only ranked. Items are told apart, so item and SID level agree (tiger writes
SIDs and is counted as the language models are).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minionerec.catalogue.samples import Samples, load_samples, seen_items, train_counts
from minionerec.catalogue.sids import SIDS_FILE, load_sids
from minionerec.errors import UserError, one_line_errors
from minionerec.evaluation.cost import cost
from minionerec.evaluation.metrics import KS
from minionerec.evaluation.scoring import score_predictions
from minionerec.experiment import artifacts
from minionerec.experiment.baselines import BASELINES
from minionerec.experiment.config import read_command_line
from minionerec.pages.plots import write_log
from minionerec.pages.text import metrics_table
from minionerec.rankers.baseline import Inputs, Ranking, rank_test

NEEDS_SIDS = tuple(name for name, row in BASELINES.items() if row.reads_sids)


def main() -> None:
    """Every method on the same rows: from top to bottom."""
    experiment, _ = read_command_line(__doc__, own=())
    methods = tuple(dict.fromkeys(experiment.baselines.methods))
    data_dir = artifacts.require_stage(experiment, "data")
    sids_dir = (
        artifacts.require_stage(experiment, "sids") if set(methods) & set(NEEDS_SIDS) else None
    )
    samples = load_samples(data_dir, experiment.data.max_history)
    if not samples.splits["test"]:
        raise UserError(
            f"{data_dir}: the test split has no sample; prepare the data with another data.split "
            "or more users"
        )
    sids = load_sids(sids_dir / SIDS_FILE, samples.item_ids) if sids_dir else None
    unwanted = (
        {split: seen_items(data_dir, split) for split in ("valid", "test")}
        if experiment.evaluate.exclude_history
        else None
    )
    inputs = Inputs(samples, sids, sids_dir, experiment, depth=KS[-1], unwanted=unwanted)

    table: dict[str, dict[str, Any]] = {}
    with artifacts.locked(artifacts.stage_path(experiment, "baselines")):
        for method in methods:
            path = artifacts.baseline_path(experiment, method)
            if not artifacts.is_done(experiment, artifacts.baseline_stage(method), path):
                print(f"{method}: ranking {len(samples.splits['test']):,} test rows", flush=True)
                run_method(
                    method, inputs, path, [data_dir, *([sids_dir] if method in NEEDS_SIDS else [])]
                )
            table[method] = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    print(metrics_table(table))
    written = artifacts.stage_path(experiment, "baselines")
    print(f"\nwritten to {written}; next: {artifacts.COMMANDS['sft']} with the same --config")


def run_method(method: str, inputs: Inputs, path: Path, parents: list[Path]) -> None:
    """Train or count, rank, measure, commit ``path``."""
    stage = artifacts.baseline_stage(method)
    with artifacts.committed(
        path, stage, artifacts.relevant_settings(inputs.experiment, stage), parents
    ) as staging:
        start = time.perf_counter()
        ranking = rank_test(method, inputs, staging)
        spent = cost(
            ranking.parameters,
            time.perf_counter() - ranking.ready,
            len(ranking.items),
            train_seconds=ranking.ready - start,
        )
        if ranking.log:
            write_log(ranking.log, staging)
        predictions = list(records(ranking, inputs.samples))
        metrics = measure(predictions, ranking, inputs)
        with open(staging / "predictions.jsonl", "w", encoding="utf-8") as handle:
            handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
        artifacts.write_json(
            staging / "metrics.json",
            metrics | {"method": method, "split": "test", **ranking.facts, "cost": spent},
        )


def records(ranking: Ranking, samples: Samples) -> Iterator[dict[str, Any]]:
    """Lines of ``predictions.jsonl``."""
    item_ids = samples.item_ids
    rows = zip(samples.splits["test"], ranking.items, ranking.scores, strict=True)
    for sample, items, scores in rows:
        ranked = []
        rounded = []
        for item, score in zip(items, scores, strict=True):
            if item >= 0:
                ranked.append(item_ids[item])
                rounded.append(round(float(score), 6))
        yield {
            "user_id": sample.user_id,
            "target_item_id": item_ids[sample.target],
            "item_ids": ranked,
            "scores": rounded,
        }


def measure(predictions: list[dict[str, Any]], ranking: Ranking, inputs: Inputs) -> dict[str, Any]:
    """``metrics.json`` as ``evaluate.py`` writes it."""
    samples = inputs.samples
    item_ids = samples.item_ids
    counts = train_counts(samples.train_sequences, len(item_ids))
    histories = []
    for history in inputs.test_histories:
        histories.append([item_ids[item] for item in history])
    sid_of = None
    if ranking.sids_tie and inputs.sids is not None:
        sid_of = dict(zip(inputs.sids.item_ids, inputs.sids.codes, strict=True))
    return score_predictions(
        predictions,
        sid_of,
        item_ids,
        dict(zip(item_ids, counts.tolist(), strict=True)),
        histories,
        bootstrap_samples=inputs.experiment.evaluate.bootstrap_samples,
        seed=inputs.experiment.seed,
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
