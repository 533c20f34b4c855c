"""Stage 3: GRPO over constrained beam search (paper, section on RL; GRPO: arXiv:2402.03300).

    bash rl.sh --config configs/quickstart.yaml [--rl.preset paper] [--section.key value ...]
    bash rl.sh --config configs/quickstart.yaml --dry_run         # what it costs; writes nothing

Reads runs/<name>/{data,sids,sft}, writes runs/<name>/rl, a checkpoint like SFT's. Departures from
the reference, whose settings ``rl.preset: paper`` gives: (1) a row carries its own target; (2)
rollouts, loss and validation use one distribution (``model.normalize``) and one prompt; (3) the
prompt is read once per group; (4) the best checkpoint by validation NDCG@10 that keeps SFT's HR@50
(``rl.guard``) is handed on, or SFT's weights; (5) 32 draws without replacement for 16 beams, a KL
summed over all codes for an estimate; (6) the reference is the policy with adapters off.
"""

from __future__ import annotations

if __name__ == "__main__":
    from minionerec.errors import while_importing

    while_importing()

from functools import partial
from pathlib import Path

import torch

import minionerec_trainer as trainers
from minionerec.catalogue.inputs import Catalogue
from minionerec.errors import one_line_errors
from minionerec.evaluation.ranking import stage_validator
from minionerec.experiment import processes
from minionerec.experiment.commit import committed
from minionerec.experiment.config import read_command_line
from minionerec.experiment.preflight import check_reporters
from minionerec.experiment.run import run_stage, say
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import settings_of
from minionerec.model import backbone
from minionerec.model.policy import Policy
from minionerec.pages import plots
from minionerec.training import run
from minionerec.training.checkpoints import CheckpointContents
from minionerec.training.guard import GUARDED, Guard, unlike_sft
from minionerec.training.hints import kept_hints
from minionerec.training.rl_rows import rl_rows
from minionerec.training.sharded import decoder_of
from minionerec.training.weighted_rewards import weighted_rewards


def main() -> None:
    """Read the command line and make the stage."""
    experiment, flags = read_command_line(__doc__, own=("dry_run",))
    run_stage("rl", partial(train, dry_run="dry_run" in flags), experiment)


def train(experiment: Experiment, path: Path, dry_run: bool = False) -> None:
    """SFT model, rewards, trainer, the better of the two models: from top to bottom."""
    s = experiment.rl
    processes.quiet_libraries()
    processes.check_launch(experiment.model.tune)
    check_reporters(s.report_to, "rl.report_to")

    # Data, the SFT model, and the reference that it stays close to
    settings, catalogue = settings_of(experiment, "rl"), Catalogue.open(experiment)
    policy = Policy.load("sft", catalogue, torch.float32)
    rows, teachers = rl_rows(catalogue, policy.renderer)
    reference = None
    if s.has_reference and not run.adapters_off_is_reference(experiment):
        reference = policy.model_again(torch.float32).requires_grad_(False)
    backbone.add_dropout(policy.model, s.dropout)
    torch.manual_seed(experiment.seed)  # new adapters depend on nothing that was drawn before
    model = backbone.add_adapters(policy.model, experiment.model, policy.sid_token_ids())
    say(f"{len(rows):,} prompts x {s.completions} completions; {backbone.describe(model)}")

    # Train, after a look at where SFT left off
    micro, accumulation = run.split_batch("rl", s.batch_size, s.micro_batch_size)
    total_steps = max(1, round(s.epochs * len(rows) / s.batch_size)) * s.num_iterations
    arguments = run.training_arguments(
        experiment,
        "rl",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_steps=total_steps,
        eval_steps=max(1, total_steps // s.evals // s.num_iterations) * s.num_iterations,
        total_steps=total_steps,
        chosen_by=GUARDED,
    )
    validate, num_valid = stage_validator(policy, s.eval_rows, s.eval_beams, arguments.device)
    decoder = decoder_of(model, arguments)
    before = validate(decoder)
    guard = Guard(before, s.guard)
    unlike = unlike_sft(experiment, len(catalogue.samples.splits["valid"]))
    say(f"SFT model: validation {guard}{unlike}")
    reward, reward_models = weighted_rewards(catalogue)
    hints = kept_hints(policy, decoder, rows, arguments.device, not dry_run)
    parents = [*policy.parents, *reward_models, *teachers]
    trainer = trainers.GRPOTrainer(
        model,
        arguments,
        rows,
        policy.tokenizer,
        CheckpointContents("rl", settings, parents, policy),
        guard.watching(validate),
        trie=policy.trie,
        settings=s,
        normalize=policy.normalize,
        reward=reward,
        decoder=decoder,
        ref_model=reference,
        hints=hints,
    )
    run.train_or_resume(trainer, num_valid, dry_run)

    # Hand on whichever ranks the validation rows better
    improved = guard.beaten_by(trainer.state.best_metric)
    trained = trainer.plain_model(trainer.model)
    if trainer.is_world_process_zero():
        chosen = backbone.merged(trained) if improved else policy.model_again(torch.float32)
        facts = {"improved_on_sft": improved, "sft_validation_NDCG@10": before["NDCG@10"]}
        sids = catalogue.sids.sha256
        with committed(path, "rl", settings, parents, **facts, sids_sha256=sids) as staging:
            policy.save(chosen, staging)
            plots.save_log(trainer, staging, before)
    processes.processes().wait_for_everyone()
    say(f"\nvalidation NDCG@10: {guard.verdict(trainer.state.log_history)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
