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

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from minionerec.errors import while_importing

    while_importing()

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minionerec.catalogue.samples import Samples, load_samples, seen_items, train_counts
from minionerec.catalogue.sids import SIDS_FILE, load_sids
from minionerec.errors import UserError, one_line_errors
from minionerec.evaluation import prediction_files
from minionerec.evaluation.cost import cost
from minionerec.evaluation.metrics import KS
from minionerec.evaluation.rows import as_table, rows_of_samples
from minionerec.evaluation.scoring import score_rows
from minionerec.evaluation.slices import pairs_of
from minionerec.experiment.allocator import keep_freed_memory
from minionerec.experiment.commit import committed
from minionerec.experiment.config import read_command_line
from minionerec.experiment.files import write_json
from minionerec.experiment.lineage import is_done, open_stage
from minionerec.experiment.manifest import Parent
from minionerec.experiment.run import run_stage
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import Output, needs_of, outputs, settings_of
from minionerec.pages.plots import write_log
from minionerec.pages.text import metrics_table
from minionerec.rankers.baseline import Inputs, Ranking, rank_test


def main() -> None:
    """Read the command line and make the stage."""
    keep_freed_memory()
    run_stage("baselines", rank_all, read_command_line(__doc__, own=())[0])


def rank_all(experiment: Experiment, path: Path) -> None:
    """Every method on the same rows: from top to bottom."""
    needed = needs_of(experiment, "baselines")
    parents = {stage: open_stage(experiment, stage) for stage in needed}
    data_dir = parents["data"].path
    sids_dir = parents["sids"].path if "sids" in parents else None
    samples = load_samples(data_dir, experiment.data.max_history)
    if not samples.splits["test"]:
        raise UserError(
            f"{data_dir}: the test split has no sample; prepare the data with another data.split "
            "or more users"
        )
    sids = load_sids(sids_dir / SIDS_FILE, samples.item_ids) if sids_dir else None
    unwanted = (
        {split: seen_items(samples.splits[split]) for split in ("valid", "test")}
        if experiment.evaluate.exclude_history
        else None
    )
    inputs = Inputs(samples, sids, sids_dir, experiment, depth=KS[-1], unwanted=unwanted)

    table: dict[str, dict[str, Any]] = {}
    for output in outputs(experiment, "baselines"):
        method = output.facts["method"]
        if not is_done(experiment, output.stage, output.path, method=method):
            print(f"{method}: ranking {len(samples.splits['test']):,} test rows", flush=True)
            read = [parents[stage] for stage in output.needs]
            run_method(method, inputs, output, read)
        table[method] = json.loads((output.path / "metrics.json").read_text(encoding="utf-8"))
    print(metrics_table(table))


def run_method(method: str, inputs: Inputs, output: Output, parents: list[Parent]) -> None:
    """Train or count, rank, measure, commit ``output.path``."""
    settings = settings_of(inputs.experiment, output.stage)
    with committed(output.path, output.stage, settings, parents, method=method) as staging:
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
        metrics = measure(ranking, inputs)
        rows = records(ranking, inputs.samples)
        prediction_files.write(staging, prediction_files.with_lines(rows))
        write_json(
            staging / "metrics.json",
            metrics | {"method": method, "split": "test", **ranking.facts, "cost": spent},
        )


def records(ranking: Ranking, samples: Samples) -> Iterator[dict[str, Any]]:
    """Rows of ``predictions.jsonl``."""
    item_ids = samples.item_ids
    rows = zip(samples.splits["test"], ranking.items, ranking.scores, strict=True)
    for sample, items, scores in rows:
        ranked = []
        rounded = []
        for item, score in zip(np.asarray(items).tolist(), scores, strict=True):
            if item >= 0:
                ranked.append(item_ids[item])
                rounded.append(round(float(score), 6))
        yield {
            "user_id": sample.user_id,
            "target_item_id": item_ids[sample.target],
            "item_ids": ranked,
            "scores": rounded,
        }


def measure(ranking: Ranking, inputs: Inputs) -> dict[str, Any]:
    """``metrics.json`` as ``evaluate.py`` writes it."""
    samples = inputs.samples
    item_ids = samples.item_ids
    sid_of = None
    if ranking.sids_tie and inputs.sids is not None:
        sid_of = dict(zip(inputs.sids.item_ids, inputs.sids.codes, strict=True))
    return score_rows(
        rows_of_samples(samples.splits["test"], as_table(ranking.items), item_ids),
        sid_of,
        train_counts(samples.train_sequences, len(item_ids)),
        inputs.experiment.evaluate.bootstrap_samples,
        inputs.experiment.seed,
        train_pairs=pairs_of(samples.train_sequences, len(item_ids)),
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
