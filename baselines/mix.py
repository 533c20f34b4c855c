"""Weights for ``sft.teacher`` and ``evaluate.fusion``, tried on validation rows alone.

    python baselines/mix.py --config C
    bash evaluate.sh --config C --evaluate.checkpoint sft --evaluate.split valid
    python baselines/mix.py --config C --evaluate.checkpoint sft

Prints a table of mixes of the rankers, best first, and the line to write into the YAML; if the
checkpoint of ``evaluate.checkpoint`` has ranked the validation rows (the second command), the
same for mixes of the model with the rankers. Weights are multiples of a tenth, temperatures of
the text neighbours a few; lists are 100 items long.
"""

from __future__ import annotations

from collections.abc import Sequence

from minionerec.catalogue.samples import load_samples, seen_items
from minionerec.errors import one_line_errors
from minionerec.evaluation import fused
from minionerec.experiment import artifacts
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import Experiment
from minionerec.pages.text import aligned
from minionerec.rankers.mixing import Mix, in_yaml, rankers_lists, tried

SHOWN = 8  # rows of a table
KEYS = ("log p", "HR@1", "HR@10", "HR@50", "NDCG@10")


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
    valid = samples.splits["valid"]
    lists = rankers_lists(samples, valid, sids_dir / "embeddings.npy", unwanted)

    print(f"teacher: mixes of rankers on {len(valid):,} validation rows\n")
    best = tried({}, lists, valid, num_items=len(samples.items), by="log p")
    print(as_table(best))
    print(f"\n  soft_labels: {{temperature: {best[0].temperature:g}}}")
    print(f"  teacher: {in_yaml(best[0].weights)}")

    path = artifacts.evaluation_path(experiment)
    path = path.with_name(f"{path.name.removesuffix(experiment.evaluate.split)}valid")
    if not path.is_dir():
        print(
            f"\nno table of fusions: {path} not found; run `bash evaluate.sh` with the same "
            f"--config --evaluate.checkpoint {experiment.evaluate.checkpoint} --evaluate.split valid"
        )
        return
    artifacts.check_parents(path, artifacts.verify(path))
    model = fused.read_model_lists(path / "predictions.jsonl", valid, samples.item_ids)
    print(f"\nfusion: the model of {path.name} with rankers, on the same rows\n")
    best = tried({"model": model}, lists, valid, num_items=len(samples.items), by="NDCG@10")
    print(as_table(best))
    chosen = best[0].weights | {"temperature": best[0].temperature}
    print(f"\n  fusion: {in_yaml(chosen)}")


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


if __name__ == "__main__":
    with one_line_errors():
        main()
