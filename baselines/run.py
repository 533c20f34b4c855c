"""Baselines: rules and SASRec on the same samples, the same full-catalogue ranking and the same metrics as the model.

    python baselines/run.py --config configs/quickstart.yaml
    python baselines/run.py --config configs/amazon_industrial.yaml --baselines.methods popularity,markov,item_knn,sasrec

Writes runs/<name>/baselines with <method>/predictions.jsonl (top 50 of every test row) and <method>/metrics.json, for
SASRec also its weights, log.jsonl and curves.png. Everything is learned from the train split and chosen on the validation
split; test targets are only ranked. Items are told apart, so no SIDs are needed and item and SID level agree.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from baselines import rules, sasrec
from minionerec import artifacts
from minionerec.config import UserError, one_line_errors, read_command_line
from minionerec.dataset import Sample, Samples, load_samples, train_counts
from minionerec.metrics import KS, score_predictions
from minionerec.report import curves, metrics_table
from minionerec.settings import Experiment


class Ranking(NamedTuple):
    """``(B, k)`` item indexes, best first, their ``(B, k)`` scores, and what was chosen on validation rows."""

    items: np.ndarray
    scores: np.ndarray
    facts: dict[str, Any]


def main() -> None:
    """Every method on the same rows: from top to bottom."""
    experiment, _ = read_command_line(__doc__, own=())
    path = artifacts.stage_path(experiment, "baselines")
    if artifacts.is_done(experiment, "baselines"):
        print(f"{path} is finished; next: {artifacts.COMMANDS['sft']} with the same --config")
        return
    data_dir = artifacts.require_stage(experiment, "data")
    samples = load_samples(data_dir, experiment.data.max_history)
    if not samples.splits["test"]:
        raise UserError(f"{data_dir}: the test split has no sample; prepare the data with another data.split or more users")
    settings = artifacts.relevant_settings(experiment, "baselines")
    table: dict[str, dict[str, Any]] = {}
    with artifacts.locked(path), artifacts.committed(path, "baselines", settings, parents=[data_dir]) as staging:
        for method in dict.fromkeys(experiment.baselines.methods):
            print(f"{method}: ranking {len(samples.splits['test'])} test rows", flush=True)
            (staging / method).mkdir()
            ranking = rank_test(method, samples, experiment, staging / method)
            table[method] = write_method(method, ranking, samples, experiment, staging / method)
    print(metrics_table(table))
    print(f"\nwritten to {path}; next: {artifacts.COMMANDS['sft']} with the same --config")


def rank_test(method: str, samples: Samples, experiment: Experiment, directory: Path) -> Ranking:
    """The test rows ranked by one method."""
    histories = [sample.history for sample in samples.splits["test"]]
    num_items, sequences = len(samples.items), samples.train_sequences
    counts = train_counts(sequences, num_items)
    order, k = rules.popularity_order(counts), min(KS[-1], num_items)
    if method == "popularity":
        items = np.tile(order[:k], (len(histories), 1))
        return Ranking(items, counts[items], {})
    if method == "sasrec":
        return rank_with_sasrec(samples, experiment, directory, order, k)
    candidates = (rules.markov_candidates if method == "markov" else rules.knn_candidates)(sequences, num_items)
    best, values = rules.choose(candidates, samples.splits["valid"], order)
    chosen = candidates[best]
    print(f"{method}: {chosen_by(values)} {chosen.made_with}")
    tried = [{**rule.made_with, "valid_NDCG@10": value} for rule, value in zip(candidates, values, strict=False)]
    return Ranking(*rules.rank(chosen, histories, order, k), {"chosen": chosen.made_with, "tried": tried})


def rank_with_sasrec(samples: Samples, experiment: Experiment, directory: Path, order: np.ndarray, k: int) -> Ranking:
    """Train SASRec, keep its weights and log in ``directory``, rank the test rows."""
    log: list[dict[str, Any]] = []

    def show(row: dict[str, Any]) -> None:
        log.append(row)
        print("sasrec: " + ", ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
                                     for key, value in row.items()), flush=True)

    model = sasrec.train_sasrec(samples, experiment.seed, experiment.data.max_history, experiment.baselines, show)
    sasrec.save(model, directory)
    (directory / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    curves(log, directory / "curves.png")
    best = max(log, key=lambda row: row.get("valid_NDCG@10", row["epoch"]))
    found = [rank_rows(model, rows, order, k) for rows in blocks(samples.splits["test"], rules.ROWS_AT_ONCE)]
    return Ranking(np.concatenate([items for items, _ in found]), np.concatenate([scores for _, scores in found]),
                   {"chosen": {"epoch": best["epoch"]}})


def rank_rows(model: sasrec.SASRec, rows: list[Sample], order: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """``(B, k)`` items and log-probabilities of one block of samples."""
    scores = sasrec.score(model, [sample.history for sample in rows]).cpu().numpy()
    items = rules.top_k(scores, order, k)
    return items, np.take_along_axis(scores, items, axis=1)


def write_method(method: str, ranking: Ranking, samples: Samples, experiment: Experiment, directory: Path) -> dict[str, Any]:
    """``predictions.jsonl`` and ``metrics.json``; returns the metrics."""
    item_ids, test = samples.item_ids, samples.splits["test"]
    predictions = [
        {"user_id": sample.user_id, "target_item_id": item_ids[sample.target], "item_ids": [item_ids[i] for i in items],
         "scores": [round(float(score), 6) for score in scores]}
        for sample, items, scores in zip(test, ranking.items, ranking.scores, strict=True)
    ]
    counts = train_counts(samples.train_sequences, len(item_ids))
    metrics = score_predictions(
        predictions, None, item_ids, dict(zip(item_ids, counts.tolist(), strict=True)),
        [[item_ids[i] for i in sample.history] for sample in test],
        bootstrap_samples=experiment.evaluate.bootstrap_samples, seed=experiment.seed,
    )
    metrics |= {"method": method, "split": "test", **ranking.facts}
    with open(directory / "predictions.jsonl", "w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
    artifacts.write_json(directory / "metrics.json", metrics)
    return metrics


def chosen_by(values: list[float]) -> str:
    """Words for how a rule was chosen."""
    return f"validation NDCG@10 {max(values):.4f} chooses" if values else "no validation rows to choose by, taking"


def blocks(rows: list[Sample], size: int) -> Iterable[list[Sample]]:
    """The rows, ``size`` at a time."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


if __name__ == "__main__":
    with one_line_errors():
        main()
