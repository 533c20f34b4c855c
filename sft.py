"""Stage 2: supervised fine-tuning on next-item and language-alignment tasks (paper, section on SFT).

    bash sft.sh --config configs/quickstart.yaml [--section.key value ...]
    ACCELERATE_CONFIG=configs/accelerate/ddp.yaml bash sft.sh --config ...

Reads runs/<name>/{data,sids}, writes runs/<name>/sft: a plain Hugging Face checkpoint with the SID tokens, sids.json and
the prompt template. Departures from the reference: (1) the checkpoint is chosen by NDCG@10 of constrained beam search
on validation rows, not by loss; (2) rows are packed as prefix trees, which changes no number; (3) no prompt holds its
target. An interrupted run continues from its last checkpoint in runs/<name>/sft.partial.
"""

from __future__ import annotations

from pathlib import Path

from minionerec.errors import one_line_errors
from minionerec.experiment.config import read_command_line
from minionerec.experiment.run import run_stage, say
from minionerec.experiment.settings import Experiment


def main() -> None:
    run_stage("sft", train, read_command_line(__doc__, own=())[0])


def train(experiment: Experiment, path: Path) -> None:
    """Data, model, trainer, checkpoint: from top to bottom."""
    import minionerec_trainer as trainers
    from minionerec.catalogue import inputs
    from minionerec.catalogue.rows import mixture
    from minionerec.catalogue.samples import fixed_subset, window_samples
    from minionerec.evaluation.ranking import validator
    from minionerec.experiment import artifacts, lineage, processes
    from minionerec.model import backbone
    from minionerec.pages import plots
    from minionerec.training import run
    from minionerec.training.callbacks import early_stopping

    s, model_settings = experiment.sft, experiment.model
    processes.quiet_libraries()
    processes.check_launch(model_settings.tune)
    run.check_reporters(s.report_to, "sft.report_to")

    # Data
    parents = [lineage.open_stage(experiment, stage) for stage in ("data", "sids")]
    data_dir, sids_dir = (parent.path for parent in parents)
    samples, sids = inputs.load_catalogue(experiment, data_dir, sids_dir)

    # Model: SID tokens first, then what may learn
    model, tokenizer = backbone.build(
        model_settings, sids, inputs.texts(samples.items), experiment.seed, s.dropout
    )
    template = inputs.template_of(model_settings)
    renderer = inputs.renderer(tokenizer, template, sids, samples, model_settings.max_tokens)
    trie = inputs.trie(sids, tokenizer)
    sid_token_ids = [token for level in sids.level_token_ids(tokenizer) for token in level]
    model = backbone.add_adapters(model, model_settings, sid_token_ids)
    train = (
        samples.splits["train"]
        if s.rows == "per_target"
        else window_samples(samples.train_sequences, experiment.data.max_history, experiment.seed)
    )
    rows = mixture(s.tasks, train, renderer, len(samples.items), experiment.seed)
    backbone.check_context(model, rows, "model.max_tokens")
    say(
        f"{len(rows):,} rows of {sum(share > 0 for share in s.tasks.values())} tasks; {backbone.describe(model)}"
    )

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
    valid = fixed_subset(samples.splits["valid"], s.eval_rows, experiment.seed)
    validate = validator(
        valid,
        renderer,
        trie.to(arguments.device),
        sids,
        num_beams=s.eval_beams,
        normalize=model_settings.normalize,
    )
    contents = trainers.CheckpointContents(
        "sft",
        artifacts.relevant_settings(experiment, "sft"),
        parents,
        sids_dir / "sids.json",
        template,
    )
    groups = [row.user_id for row in rows] if s.group_by_user else None
    trainer = trainers.SFTTrainer(
        model,
        arguments,
        rows,
        tokenizer,
        contents,
        validate,
        groups,
        trie=trie if model_settings.normalize == "trie" else None,
        callbacks=early_stopping(s.patience),
    )
    run.train_or_resume(trainer)

    # Save
    best, whole = trainer.state.best_metric, trainer.whole_model()
    if trainer.is_world_process_zero():
        with artifacts.committed(
            path, "sft", contents.settings, contents.parents, sids_sha256=sids.sha256
        ) as staging:
            backbone.save(backbone.merged(whole), tokenizer, contents.sids_file, template, staging)
            plots.save_log(trainer, staging)
    processes.processes().wait_for_everyone()
    say(
        f"\nbest validation NDCG@10 {best:.4f} at step {trainer.state.best_global_step} of {trainer.state.global_step}"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
