"""Weights for ``sft.teacher`` and ``evaluate.fusion``, tried on validation rows; test rows are never looked at.

    python baselines/mix.py --config configs/quickstart.yaml
    bash evaluate.sh --config configs/quickstart.yaml --evaluate.checkpoint sft --evaluate.split valid
    python baselines/mix.py --config configs/quickstart.yaml --evaluate.checkpoint sft

Prints a table of mixes of the rankers, best first, and the line to write into the YAML; if the checkpoint of
``evaluate.checkpoint`` has ranked the validation rows (the second command), the same for mixes of the model with the
rankers. Weights are multiples of a tenth, temperatures of the text neighbours a few; lists are 100 items long.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minionerec.catalogue.samples import Sample, Samples, load_samples, seen_items
from minionerec.errors import one_line_errors
from minionerec.evaluation import fused
from minionerec.experiment import artifacts
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import Experiment
from minionerec.pages.text import aligned
from minionerec.rankers import experts, fusion
from minionerec.rankers.fusion import Lists

RANKERS = ("markov", "item_knn", "text_knn")
TEMPERATURES = (0.05, 0.07, 0.1)
STEPS = 10  # weights are multiples of 1 / STEPS
LENGTH = 100  # items of each ranker's list
SHOWN = 8  # rows of a table
KEYS = ("HR@1", "HR@10", "HR@50", "NDCG@10")


class Mix(NamedTuple):
    """Weights, by the name of the ranker, the temperature of the texts, and what they measured."""

    weights: dict[str, float]
    temperature: float
    metrics: dict[str, float]


def main() -> None:
    """Read the command line, try, print."""
    experiment, _ = read_command_line(__doc__, own=())
    main_of(experiment)


def main_of(experiment: Experiment) -> None:
    """Both tables, from top to bottom."""
    data_dir = artifacts.require_stage(experiment, "data")
    sids_dir = artifacts.require_stage(experiment, "sids")
    samples = load_samples(data_dir, experiment.data.max_history)
    exclude = experiment.evaluate.exclude_history
    unwanted = seen_items(data_dir, "valid") if exclude else None
    lists = rankers_lists(samples, sids_dir / "embeddings.npy", unwanted)
    valid = samples.splits["valid"]

    print(f"teacher: mixes of rankers on {len(valid):,} validation rows\n")
    best = tried({}, lists, valid)
    print(as_table(best))
    print(f"\n  soft_labels: {{temperature: {best[0].temperature:g}}}")
    print(f"  teacher: {in_yaml(best[0].weights)}")

    path = artifacts.evaluation_path(experiment)
    path = path.with_name(f"{path.name.removesuffix(experiment.evaluate.split)}valid")
    if not path.is_dir():
        print(
            f"\nno table of fusions: {path} not found; run `bash evaluate.sh` with the same --config "
            f"--evaluate.checkpoint {experiment.evaluate.checkpoint} --evaluate.split valid"
        )
        return
    artifacts.check_parents(path, artifacts.verify(path))
    model = fused.read_model_lists(path / "predictions.jsonl", valid, samples.item_ids)
    print(f"\nfusion: the model of {path.name} with rankers, on the same rows\n")
    best = tried({"model": model}, lists, valid)
    print(as_table(best))
    chosen = best[0].weights | {"temperature": best[0].temperature}
    print(f"\n  fusion: {in_yaml(chosen)}")


def rankers_lists(
    samples: Samples, embeddings_file: Path, unwanted: Sequence[Collection[int]] | None
) -> dict[float, dict[str, Lists]]:
    """Temperature -> ranker -> its lists of the validation rows."""
    histories = [sample.history for sample in samples.splits["valid"]]
    length = min(LENGTH, len(samples.items))
    found: dict[float, dict[str, Lists]] = {}
    rules: dict[str, Lists] = {}
    for temperature in TEMPERATURES:
        # only the texts have a temperature: the rules are asked once
        names = [name for name in RANKERS if name not in rules]
        made = experts.build(
            names,
            samples,
            embeddings_file=embeddings_file,
            temperature=temperature,
            unwanted=unwanted,
        )
        ranked = {
            expert.name: fusion.from_expert(expert, histories, length, unwanted) for expert in made
        }
        rules |= {name: one for name, one in ranked.items() if name != "text_knn"}
        found[temperature] = rules | ranked
    return found


def tried(
    model: dict[str, Lists], lists: dict[float, dict[str, Lists]], valid: Sequence[Sample]
) -> list[Mix]:
    """Every mix, the best NDCG@10 first; of equals the one with more of the first ranker."""
    targets = np.array([sample.target for sample in valid])
    found = []
    for temperature, rankers in lists.items():
        together = model | rankers
        united = fusion.union(list(together.values()))
        for weights in fusion.weight_grid(len(together), STEPS):
            ranks = fusion.ranks(united, weights, targets)
            named = dict(zip(together, weights, strict=True))
            found.append(Mix(named, temperature, measured(ranks)))
    return sorted(found, key=lambda mix: -mix.metrics["NDCG@10"])


def measured(ranks: np.ndarray) -> dict[str, float]:
    """HR@K and NDCG@10 of ``(n,)`` places of the targets, counted from 0."""
    found = {f"HR@{k}": float((ranks < k).mean()) for k in (1, 10, 50)}
    gains = np.where(ranks < 10, 1.0 / np.log2(np.minimum(ranks, 10) + 2.0), 0.0)
    return found | {"NDCG@10": float(gains.mean())}


def as_table(best: Sequence[Mix]) -> str:
    """The best mixes, and each ranker alone at its best."""
    rows = [["mix", "temperature", *KEYS]]
    for mix in best[:SHOWN]:
        rows.append([in_yaml(mix.weights), f"{mix.temperature:g}", *figures(mix)])
    for name in best[0].weights:
        alone = next(mix for mix in best if mix.weights[name] == 1.0)
        rows.append([f"{name} alone", f"{alone.temperature:g}", *figures(alone)])
    return aligned(rows)


def figures(mix: Mix) -> list[str]:
    """The measurements as a table shows them."""
    return [f"{mix.metrics[key]:.4f}" for key in KEYS]


def in_yaml(weights: dict[str, float]) -> str:
    """``{markov: 0.7, text_knn: 0.3}``: what has a weight."""
    return (
        "{" + ", ".join(f"{name}: {weight:g}" for name, weight in weights.items() if weight) + "}"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
