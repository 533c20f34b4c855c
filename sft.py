"""Stage 2: supervised fine-tuning on next-item and language-alignment tasks (paper, section on SFT).

    bash sft.sh --config configs/quickstart.yaml [--section.key value ...]
    ACCELERATE_CONFIG=configs/accelerate/ddp.yaml bash sft.sh --config ...

Reads runs/<name>/{data,sids}, writes runs/<name>/sft: a plain Hugging Face checkpoint with the SID tokens, sids.json and
the prompt template. Departures from the reference: (1) the checkpoint is chosen by NDCG@10 of constrained beam search
on validation rows, not by loss; (2) rows are packed as prefix trees, which changes no number; (3) no prompt holds its
target. An interrupted run continues from its last checkpoint in runs/<name>/sft.partial.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from minionerec.errors import UserError, one_line_errors
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import Experiment

if TYPE_CHECKING:
    from minionerec.catalogue.prompts import Renderer
    from minionerec.catalogue.rows import Row
    from minionerec.catalogue.samples import Samples
    from minionerec.training.soft_labels import Recipe


def main() -> None:
    experiment, _ = read_command_line(__doc__, own=())
    from minionerec.experiment import artifacts, processes

    path = artifacts.stage_path(experiment, "sft")
    if artifacts.is_done(experiment, "sft"):
        processes.say(
            f"{path} is finished; next: {artifacts.COMMANDS['rl']} with the same --config"
        )
        return
    with processes.locked(path):
        train(experiment, path)


def train(experiment: Experiment, path: Path) -> None:
    """Data, model, trainer, checkpoint: from top to bottom."""
    import minionerec_trainer as trainers
    from minionerec.catalogue import inputs
    from minionerec.catalogue.rows import mixture
    from minionerec.catalogue.samples import fixed_subset, seen_items, window_samples
    from minionerec.evaluation.ranking import validator
    from minionerec.experiment import artifacts, processes
    from minionerec.model import backbone
    from minionerec.pages import plots
    from minionerec.training import run, soft_labels
    from minionerec.training.callbacks import early_stopping

    s, model_settings = experiment.sft, experiment.model
    processes.quiet_libraries()
    processes.check_launch(model_settings.tune)

    # Data
    data_dir, sids_dir = (
        artifacts.require_stage(experiment, "data"),
        artifacts.require_stage(experiment, "sids"),
    )
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
    recipe = soft_labels.Recipe.of(s.soft_labels)
    if s.soft_labels:
        rows = taught(experiment, rows, recipe, samples, renderer, data_dir, sids_dir)
    processes.say(
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
    unwanted = None
    if experiment.evaluate.exclude_history:
        unwanted = fixed_subset(seen_items(data_dir, "valid"), s.eval_rows, experiment.seed)
    validate = validator(
        valid,
        renderer,
        trie.to(arguments.device),
        sids,
        num_beams=s.eval_beams,
        normalize=model_settings.normalize,
        unwanted=unwanted,
    )
    contents = trainers.CheckpointContents(
        "sft",
        artifacts.relevant_settings(experiment, "sft"),
        [data_dir, sids_dir],
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
        teacher_weight=lambda done: soft_labels.weight_at(done, recipe.weight, recipe.final_weight),
        callbacks=early_stopping(s.patience),
    )
    if s.soft_labels:
        batches = list(itertools.islice(trainer.batches, 8))
        processes.say(soft_labels.price(rows, batches, trainer.data_collator))
    run.train_or_resume(trainer)

    # Save
    best, whole = trainer.state.best_metric, trainer.whole_model()
    if trainer.is_world_process_zero():
        with artifacts.committed(
            path, "sft", contents.settings, contents.parents, sids_sha256=sids.sha256
        ) as staging:
            backbone.save(backbone.merged(whole), tokenizer, contents.sids_file, template, staging)
            plots.save_log(trainer, staging)
    run.clean_up(experiment, "sft")
    processes.say(
        f"\nbest validation NDCG@10 {best:.4f} at step {trainer.state.best_global_step} of {trainer.state.global_step}"
        f"\nwritten to {path}; next: {artifacts.COMMANDS['rl']} with the same --config, or "
        f"{artifacts.COMMANDS['evaluate']} with --evaluate.checkpoint sft"
    )


def taught(
    experiment: Experiment,
    rows: list[Row],
    recipe: Recipe,
    samples: Samples,
    renderer: Renderer,
    data_dir: Path,
    sids_dir: Path,
) -> list[Row]:
    """The rows with the labels of ``sft.teacher``, which knows the train split alone.

    Raises:
        UserError: the teacher lacks what it needs, or more items are asked of it than there are.
    """
    from minionerec.catalogue.samples import seen_items
    from minionerec.experiment import processes
    from minionerec.rankers import experts, mixing
    from minionerec.training import soft_labels

    num_items = len(samples.items)
    if recipe.top_k > num_items:
        raise UserError(
            f"sft.soft_labels: top_k: got {recipe.top_k}, but the catalogue has {num_items} items; "
            "lower it"
        )
    exclude = experiment.evaluate.exclude_history
    unwanted = seen_items(data_dir, "valid") if exclude else None
    embeddings_file = sids_dir / "embeddings.npy"
    weights, temperature = experiment.sft.teacher, recipe.temperature
    if not weights:
        valid = samples.splits["valid"]
        lists = mixing.rankers_lists(samples, valid, embeddings_file, unwanted)
        best = mixing.tried({}, lists, valid, num_items=num_items, by="log p")[0]
        weights, temperature = best.weights, best.temperature
        processes.say(
            f"teacher: {mixing.in_yaml(weights)} at temperature {temperature:g} expects validation "
            f"rows best, log p {best.metrics['log p']:.4f}, NDCG@10 {best.metrics['NDCG@10']:.4f}"
        )
    shares = {name: weight for name, weight in weights.items() if weight}
    teacher = experts.build(
        list(shares),
        samples,
        embeddings_file=embeddings_file,
        temperature=temperature,
        unwanted=unwanted,
    )
    for expert in teacher:
        processes.say(f"teacher: {shares[expert.name]:g} {expert.name} {expert.made_with}")
    mixed = list(shares.values())
    labelled = soft_labels.with_labels(
        rows,
        teacher,
        mixed,
        recipe.top_k,
        renderer,
        sharpness=recipe.sharpness,
        exclude_history=exclude,
    )
    of_items = soft_labels.item_rows(
        num_items,
        teacher,
        mixed,
        recipe.top_k,
        renderer,
        sharpness=recipe.sharpness,
        exclude_history=exclude,
    )
    return labelled + recipe.items * of_items


if __name__ == "__main__":
    with one_line_errors():
        main()
