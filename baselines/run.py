"""Baselines: rules and small networks on the same samples, the same full-catalogue ranking and the same metrics as the model.

    python baselines/run.py --config configs/quickstart.yaml
    python baselines/run.py --config configs/amazon_industrial.yaml --baselines.methods popularity,markov,item_knn,sasrec

Every method writes runs/<name>/baselines/<method> with predictions.jsonl (top 50 of every test row) and metrics.json, networks
also their weights, log.jsonl and curves.png; methods that are there already are not run again. Everything is learned from the
train split and chosen on the validation split; test targets are only ranked. Items are told apart, so item and SID level
agree (tiger writes SIDs and is counted as the language models are).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minionerec.catalogue.samples import Samples, load_samples, seen_items, train_counts
from minionerec.catalogue.sids import SIDS_FILE, SidTable, load_sids
from minionerec.errors import UserError, one_line_errors
from minionerec.evaluation.cost import cost
from minionerec.evaluation.metrics import KS
from minionerec.evaluation.scoring import score_predictions
from minionerec.experiment import artifacts
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import Experiment
from minionerec.pages.plots import curves
from minionerec.pages.text import metrics_table
from minionerec.rankers import rules, tgh

NEEDS_SIDS = ("text_knn", "tgh", "tiger")


class Ranking(NamedTuple):
    """Item indexes, best first, and their scores, a list per test row; what was chosen on validation rows; what it took."""

    items: Sequence[Sequence[int]]
    scores: Sequence[Sequence[float]]
    facts: dict[str, Any]
    parameters: int  # numbers learned; of a rule its non-zero counts
    ready: float  # time.perf_counter() when training had ended and ranking began


class Inputs(NamedTuple):
    """What a method may read."""

    samples: Samples
    sids: SidTable | None
    sids_dir: Path | None
    experiment: Experiment
    unwanted: dict[str, list[frozenset[int]]] | None = (
        None  # split -> per row what must not be ranked
    )


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
            f"{data_dir}: the test split has no sample; prepare the data with another data.split or more users"
        )
    sids = load_sids(sids_dir / SIDS_FILE, samples.item_ids) if sids_dir else None
    unwanted = (
        {split: seen_items(data_dir, split) for split in ("valid", "test")}
        if experiment.evaluate.exclude_history
        else None
    )
    inputs = Inputs(samples, sids, sids_dir, experiment, unwanted)

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
    print(
        f"\nwritten to {artifacts.stage_path(experiment, 'baselines')}; next: {artifacts.COMMANDS['sft']} with the same --config"
    )


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
        predictions = list(records(ranking, inputs.samples))
        groups = (
            dict(zip(inputs.sids.item_ids, inputs.sids.codes, strict=True))
            if method == "tiger"
            else None
        )
        metrics = measure(predictions, inputs.samples, groups, inputs.experiment)
        with open(staging / "predictions.jsonl", "w", encoding="utf-8") as handle:
            handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
        artifacts.write_json(
            staging / "metrics.json",
            metrics | {"method": method, "split": "test", **ranking.facts, "cost": spent},
        )


def rank_test(method: str, inputs: Inputs, directory: Path) -> Ranking:
    """The test rows ranked by one method; a network leaves its weights and log in ``directory``."""
    samples, num_items = inputs.samples, len(inputs.samples.items)
    counts = train_counts(samples.train_sequences, num_items)
    order, k = rules.popularity_order(counts), min(KS[-1], num_items)
    match method:
        case "tiger":
            return rank_with_tiger(inputs, directory, k)
        case "sasrec" | "gru4rec" | "hstu":
            return rank_with_network(method, inputs, directory, order, k)
        case "popularity":
            candidates = [rules.popularity(counts)]
        case "recent_popularity":
            candidates = rules.recent_candidates(samples.splits["train"], num_items)
        case "repeat_last":
            candidates = [rules.repeat_last(num_items)]
        case "markov":
            candidates = rules.markov_candidates(samples.train_sequences, num_items)
        case "item_knn":
            candidates = rules.knn_candidates(samples.train_sequences, num_items)
        case "text_knn":
            candidates = rules.text_candidates(
                artifacts.load_array(inputs.sids_dir / "embeddings.npy").astype(np.float32)
            )
        case "tgh":
            candidates = tgh.candidates(
                samples.train_sequences,
                artifacts.load_array(inputs.sids_dir / "embeddings.npy").astype(np.float32),
                order,
                again=inputs.unwanted is None,
            )
    unwanted = inputs.unwanted or {}
    best, values = rules.choose(candidates, samples.splits["valid"], order, unwanted.get("valid"))
    chosen = candidates[best]
    if len(candidates) > 1:
        print(f"{method}: {chosen_by(values)} {chosen.made_with}")
    tried = [
        {**rule.made_with, "valid_NDCG@10": value}
        for rule, value in zip(candidates, values, strict=False)
    ]
    ready = time.perf_counter()
    items, scores = rules.rank(chosen.scores, histories_of(samples), order, k, unwanted.get("test"))
    return Ranking(
        items.tolist(),
        scores.tolist(),
        {"chosen": chosen.made_with, "tried": tried},
        chosen.size,
        ready,
    )


def rank_with_network(
    kind: str, inputs: Inputs, directory: Path, order: np.ndarray, k: int
) -> Ranking:
    """SASRec, GRU4Rec or HSTU."""
    from minionerec.rankers import sequential

    experiment, samples = inputs.experiment, inputs.samples
    trained = sequential.train(
        kind,
        samples,
        experiment.seed,
        experiment.data.max_history,
        experiment.baselines,
        shower(kind),
    )
    sequential.save(kind, trained.model, directory)
    save_log(trained.log, directory)
    ready = time.perf_counter()
    items, scores = rules.rank(
        lambda histories: sequential.score(trained.model, histories).cpu().numpy(),
        histories_of(samples),
        order,
        k,
        (inputs.unwanted or {}).get("test"),
    )
    return Ranking(
        items.tolist(),
        scores.tolist(),
        {"chosen": trained.chosen, "tried": trained.tried},
        parameters_of(trained.model),
        ready,
    )


def rank_with_tiger(inputs: Inputs, directory: Path, k: int) -> Ranking:
    """An encoder-decoder over SIDs."""
    from minionerec.rankers import tiger

    trained = tiger.train(
        inputs.samples,
        inputs.sids,
        inputs.experiment.seed,
        inputs.experiment.baselines,
        shower("tiger"),
    )
    trained.model.save_pretrained(directory)
    save_log(trained.log, directory)
    ready = time.perf_counter()
    items, scores = tiger.rank(
        trained.model,
        inputs.samples.splits["test"],
        inputs.sids,
        k,
        (inputs.unwanted or {}).get("test"),
    )
    facts = {"chosen": trained.chosen, "tried": trained.tried, "sids_sha256": inputs.sids.sha256}
    return Ranking(items, scores, facts, parameters_of(trained.model), ready)


def records(ranking: Ranking, samples: Samples) -> Iterator[dict[str, Any]]:
    """Lines of ``predictions.jsonl``."""
    item_ids = samples.item_ids
    for sample, items, scores in zip(
        samples.splits["test"], ranking.items, ranking.scores, strict=True
    ):
        there = [(item, score) for item, score in zip(items, scores, strict=True) if item >= 0]
        yield {
            "user_id": sample.user_id,
            "target_item_id": item_ids[sample.target],
            "item_ids": [item_ids[item] for item, _ in there],
            "scores": [round(float(score), 6) for _, score in there],
        }


def measure(
    predictions: list[dict[str, Any]],
    samples: Samples,
    sid_of: dict[str, tuple[int, ...]] | None,
    experiment: Experiment,
) -> dict[str, Any]:
    """``metrics.json`` as ``evaluate.py`` writes it."""
    item_ids = samples.item_ids
    counts = train_counts(samples.train_sequences, len(item_ids))
    return score_predictions(
        predictions,
        sid_of,
        item_ids,
        dict(zip(item_ids, counts.tolist(), strict=True)),
        [[item_ids[i] for i in sample.history] for sample in samples.splits["test"]],
        bootstrap_samples=experiment.evaluate.bootstrap_samples,
        seed=experiment.seed,
    )


def parameters_of(model: Any) -> int:
    """Numbers that a network has learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_log(log: list[dict[str, Any]], directory: Path) -> None:
    """``log.jsonl`` and ``curves.png`` of the run that was chosen."""
    (directory / "log.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in log), encoding="utf-8"
    )
    curves(log, directory / "curves.png")


def shower(method: str) -> Any:
    """Prints a row of a log, with the seconds since the start."""
    start = time.perf_counter()

    def show(row: dict[str, Any]) -> None:
        numbers = ", ".join(
            f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.items()
        )
        print(f"{method}: {numbers}, {time.perf_counter() - start:.0f} s", flush=True)

    return show


def chosen_by(values: list[float]) -> str:
    """Words for how a rule was chosen."""
    return (
        f"validation NDCG@10 {max(values):.4f} chooses"
        if values
        else "no validation rows to choose by, taking"
    )


def histories_of(samples: Samples) -> list[tuple[int, ...]]:
    """What the test rows show."""
    return [sample.history for sample in samples.splits["test"]]


if __name__ == "__main__":
    with one_line_errors():
        main()
