"""Stage 4: HR@K, NDCG@K, MRR@K and Recall@K of a checkpoint over the full catalogue.

    bash evaluate.sh --config configs/quickstart.yaml [--evaluate.checkpoint sft|rl|PATH]
                     [--evaluate.split test|valid]

Writes runs/<name>/evaluate/<checkpoint>-<split>/{metrics.json,predictions.jsonl}, and with
``evaluate.fusion`` beside it <checkpoint>-fusion-<split>: the same lists united with those of rules
(``minionerec/rankers/fusion.py``). Metrics are item-level: a SID that several items share counts in
expectation; the SID-string number stands beside it. PATH may be any Hugging Face checkpoint whose
tokenizer knows this experiment's SID tokens; how it is asked (prompt_template.json, policy.json) is
read from it where it says so.

Several processes rank a share each. What is ranked is kept in evaluate/.<checkpoint>-<split>.parts:
after a kill the same command ranks the rest. However it came about, predictions.jsonl has the same
bytes (on a CPU, with one thread).
"""

from __future__ import annotations

if __name__ == "__main__":
    from minionerec.errors import while_importing

    while_importing()

from pathlib import Path
from typing import Any

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.samples import fixed_subset
from minionerec.errors import one_line_errors
from minionerec.evaluation.beam_widths import by_width
from minionerec.evaluation.cost import training_seconds
from minionerec.evaluation.fusing import fuse
from minionerec.evaluation.run import facts_of, measure, rank_in_parts
from minionerec.experiment import processes
from minionerec.experiment.allocator import keep_freed_memory
from minionerec.experiment.commit import committed
from minionerec.experiment.config import read_command_line
from minionerec.experiment.files import write_json
from minionerec.experiment.lineage import is_done
from minionerec.experiment.run import run_stage, say
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import TRAINED, fusion_path, parts_path, settings_of
from minionerec.model import backbone
from minionerec.model.policy import Policy
from minionerec.pages.text import evaluation_report


def main() -> None:
    """Read the command line and make the stage."""
    keep_freed_memory()
    run_stage("evaluate", rank_and_fuse, read_command_line(__doc__, own=())[0])


def rank_and_fuse(experiment: Experiment, path: Path) -> None:
    """The model's ranking unless it is there already, and the fusion if one is asked for."""
    if not is_done(experiment, "evaluate", path):
        evaluate(experiment, path)
    if experiment.evaluate.fusion and processes.processes().is_main_process:
        print(evaluation_report(fusion_path(experiment).name, fuse(experiment, path)), flush=True)


def evaluate(experiment: Experiment, path: Path) -> None:
    """Checkpoint, ranking, metrics: from top to bottom."""
    s = experiment.evaluate
    processes.quiet_libraries()
    processes.check_launch()
    state = processes.processes()

    # Data, SIDs and the checkpoint that goes with them
    catalogue = Catalogue.open(experiment)
    policy = Policy.load(s.checkpoint, catalogue).to(state.device)

    # Rank
    rows = catalogue.samples.splits[s.split]
    about = backbone.describe(policy.model)
    say(f"{len(rows):,} {s.split} rows, {s.num_beams} beams, {about}")
    unwanted = catalogue.seen(s.split) if s.exclude_history else None
    with backbone.fits_memory("evaluate.num_beams"):
        ranker = policy.ranker(rows, s.num_beams, unwanted)
        ranked, spent = rank_in_parts(
            ranker, catalogue.item_ids, parts_path(path), facts_of(policy), s.batch_size
        )

    # A sample of the rows at other widths: all processes rank, each its share
    widths: dict[str, Any] = {}
    if s.beam_widths:
        sample = fixed_subset(rows, s.beam_rows, experiment.seed)
        barred = fixed_subset(unwanted, s.beam_rows, experiment.seed) if unwanted else None
        with backbone.fits_memory("evaluate.beam_widths"):
            widths["beam_widths"] = by_width(
                policy,
                sample,
                s.beam_widths,
                barred,
                bootstrap_samples=s.bootstrap_samples,
                seed=experiment.seed,
            )

    # Measure
    if ranked is not None:
        if s.checkpoint in TRAINED:
            run = policy.checkpoint.path.parent
            spent["train_seconds"] = training_seconds(run, s.checkpoint)
        metrics = measure(policy, ranked.items) | widths | {"cost": spent}
        facts = {
            "sids_sha256": catalogue.sids.sha256,
            "checkpoint_sha256": policy.checkpoint.digest,
            "sources": policy.checkpoint.sources,
        }
        settings = settings_of(experiment, "evaluate")
        with committed(path, "evaluate", settings, policy.parents, **facts) as staging:
            write_json(staging / "metrics.json", metrics)
            ranked.lines.write_all(staging)
        print(evaluation_report(path.name, metrics), flush=True)
    state.wait_for_everyone()


if __name__ == "__main__":
    with one_line_errors():
        main()
