"""Weights for ``sft.teacher`` and ``evaluate.fusion``, tried on validation rows alone.

    python baselines/mix.py --config C
    bash evaluate.sh --config C --evaluate.checkpoint sft --evaluate.split valid
    python baselines/mix.py --config C --evaluate.checkpoint sft

Prints a table of mixes of the rankers, best first, and the line to write into the YAML; if the
checkpoint of ``evaluate.checkpoint`` has ranked the validation rows (the second command), the
same for mixes of the model with the rankers. Weights are multiples of a tenth, temperatures of
the text neighbours a few (fifths of more than four rankers); lists are 100 items long. Networks are
among them where ``sft.teacher`` or ``evaluate.fusion`` has had them trained.
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from minionerec.errors import while_importing

    while_importing()

from collections.abc import Sequence

from minionerec.catalogue.inputs import Catalogue
from minionerec.errors import one_line_errors
from minionerec.evaluation import fused
from minionerec.experiment.config import read_command_line
from minionerec.experiment.lineage import open_folder
from minionerec.experiment.run import say
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import COMMANDS, evaluation_path, stage_path
from minionerec.pages.text import aligned
from minionerec.rankers import crossfit
from minionerec.rankers.mixing import Mix, in_yaml, rankers_lists, tried
from minionerec.rankers.networks import NETWORKS

SHOWN = 8  # rows of a table
KEYS = ("log p", "HR@1", "HR@10", "HR@50", "NDCG@10")


def main() -> None:
    """Read the command line, try, print."""
    experiment, _ = read_command_line(__doc__, own=())
    try_mixes(experiment.changed({"evaluate.split": "valid"}))


def try_mixes(experiment: Experiment) -> None:
    """Both tables, from top to bottom."""
    catalogue = Catalogue.open(experiment)
    samples = catalogue.samples
    valid = samples.splits["valid"]
    num_items = len(catalogue.item_ids)
    unwanted = catalogue.seen("valid") if experiment.evaluate.exclude_history else None
    embeddings_file = catalogue.sids_stage.path / "embeddings.npy"
    # Networks that a teacher or a fusion has had trained
    networks = []
    for kind in NETWORKS:
        if stage_path(experiment, crossfit.folds_stage(kind)).is_dir():
            networks.append(crossfit.cross_fitted(catalogue, kind)[0])
    lists = rankers_lists(samples, valid, embeddings_file, unwanted, networks)

    say(f"teacher: mixes of rankers on {len(valid):,} validation rows\n")
    best = tried({}, lists, valid, num_items=num_items, by="log p")
    say(as_table(best))
    say(f"\n  soft_labels: {{temperature: {best[0].temperature:g}}}")
    say(f"  teacher: {in_yaml(best[0].weights)}")

    path = evaluation_path(experiment)
    if not path.is_dir():
        say(
            f"\nno table of fusions: {path} not found; run `{COMMANDS['evaluate']}` with the same "
            f"--config --evaluate.checkpoint {experiment.evaluate.checkpoint} "
            "--evaluate.split valid"
        )
        return
    open_folder(experiment, path)
    model = fused.read_model_lists(path / "predictions.jsonl", valid, catalogue.item_ids)
    say(f"\nfusion: the model of {path.name} with rankers, on the same rows\n")
    best = tried({"model": model}, lists, valid, num_items=num_items, by="NDCG@10")
    say(as_table(best))
    chosen = best[0].weights | {"temperature": best[0].temperature}
    say(f"\n  fusion: {in_yaml(chosen)}")


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
