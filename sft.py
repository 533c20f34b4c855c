"""Stage 2: supervised fine-tuning on next-item and language tasks (paper, section on SFT).

    bash sft.sh --config configs/quickstart.yaml [--section.key value ...]
    bash sft.sh --config configs/quickstart.yaml --dry_run        # what it costs; writes nothing
    ACCELERATE_CONFIG=configs/accelerate/ddp.yaml bash sft.sh --config ...

Reads runs/<name>/{data,sids}, writes runs/<name>/sft: a plain Hugging Face checkpoint with the SID
tokens, sids.json and the prompt template. Departures from the reference: (1) the checkpoint is
chosen by NDCG@10 of constrained beam search on validation rows, not by loss; (2) rows are packed as
prefix trees, which changes no number; (3) no prompt holds its target. An interrupted run continues
from its last checkpoint in runs/<name>/sft.partial.
"""

from __future__ import annotations

if __name__ == "__main__":
    from minionerec.errors import while_importing

    while_importing()

import itertools
from functools import partial
from pathlib import Path

import minionerec_trainer as trainers
from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.rows import mixture, users_of
from minionerec.catalogue.samples import held_out
from minionerec.errors import one_line_errors
from minionerec.evaluation.ranking import stage_validator
from minionerec.experiment import processes
from minionerec.experiment.commit import committed
from minionerec.experiment.config import read_command_line
from minionerec.experiment.lineage import require_unchanged
from minionerec.experiment.manifest import Parent
from minionerec.experiment.preflight import check_reporters
from minionerec.experiment.run import run_stage, say
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import settings_of
from minionerec.model import backbone
from minionerec.model.policy import Policy
from minionerec.pages import plots
from minionerec.training import run, soft_labels
from minionerec.training.callbacks import early_stopping
from minionerec.training.checkpoints import CheckpointContents
from minionerec.training.code_words import code_rows
from minionerec.training.sharded import decoder_of


def main() -> None:
    """Read the command line and make the stage."""
    experiment, flags = read_command_line(__doc__, own=("dry_run",))
    run_stage("sft", partial(train, dry_run="dry_run" in flags), experiment)


def train(experiment: Experiment, path: Path, dry_run: bool = False) -> None:
    """Data, model, trainer, checkpoint: from top to bottom."""
    s = experiment.sft
    processes.quiet_libraries()
    processes.check_launch(experiment.model.tune)
    check_reporters(s.report_to, "sft.report_to")

    # Data, and a model with tokens for the SIDs; then what may learn
    catalogue = Catalogue.open(experiment)
    samples = catalogue.samples
    sources = backbone.sources_of(experiment.model)
    policy = Policy.create(catalogue, s.dropout)
    require_unchanged(sources)
    model = backbone.add_adapters(policy.model, experiment.model, policy.sid_token_ids())
    targets, _ = held_out(catalogue.train_targets(), s.holdout_for_rl)
    mixed = mixture(s.tasks, targets, policy.renderer, len(samples.items), experiment.seed)
    rows = mixed + code_rows(s.tasks, catalogue, policy.tokenizer, policy.renderer)
    recipe = soft_labels.Recipe.of(s.soft_labels)
    teachers: list[Parent] = []
    if s.soft_labels:
        rows, teachers = soft_labels.taught(catalogue, rows, policy.renderer, recipe)
    backbone.check_context(model, rows, "model.max_tokens")
    tasks = sum(share > 0 for share in s.tasks.values())
    say(f"{len(rows):,} rows of {tasks} tasks; {backbone.describe(model)}")

    # Train
    micro, accumulation = run.split_batch("sft", s.batch_size, s.micro_batch_size)
    steps_per_epoch = -(-len(rows) // s.batch_size)
    arguments = run.training_arguments(
        experiment,
        "sft",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=s.epochs,
        eval_steps=max(1, round(steps_per_epoch / s.evals_per_epoch)),
        total_steps=steps_per_epoch * s.epochs,
    )
    validate, num_valid = stage_validator(policy, s.eval_rows, s.eval_beams, arguments.device)
    settings = settings_of(experiment, "sft")
    parents = [*policy.parents, *teachers]
    trainer = trainers.SFTTrainer(
        model,
        arguments,
        rows,
        policy.tokenizer,
        CheckpointContents("sft", settings, parents, policy, sources),
        validate,
        users_of(rows) if s.group_by_user else None,
        trie=policy.trie if policy.normalize == "trie" else None,
        decoder=decoder_of(model, arguments),
        teacher_weight=recipe.weight_at,
        callbacks=early_stopping(s.patience),
    )
    if s.soft_labels:
        batches = list(itertools.islice(trainer.batches, 8))
        say(soft_labels.price(rows, batches, trainer.data_collator))
    run.train_or_resume(trainer, num_valid, dry_run)

    # Save the best
    best = trainer.state.best_metric
    trained = trainer.plain_model(trainer.model)
    if trainer.is_world_process_zero():
        facts = {"sids_sha256": catalogue.sids.sha256, "sources": sources}
        with committed(path, "sft", settings, parents, **facts) as staging:
            policy.save(backbone.merged(trained), staging)
            plots.save_log(trainer, staging)
    processes.processes().wait_for_everyone()
    at, steps = trainer.state.best_global_step, trainer.state.global_step
    say(f"\nbest validation NDCG@10 {best:.4f} at step {at} of {steps}")


if __name__ == "__main__":
    with one_line_errors():
        main()
