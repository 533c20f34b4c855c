"""Stage 3: GRPO over constrained beam search (paper, section on RL; GRPO: arXiv:2402.03300).

    bash rl.sh --config configs/quickstart.yaml [--rl.preset paper] [--section.key value ...]

Reads runs/<name>/{data,sids,sft}, writes runs/<name>/rl, a checkpoint like that of SFT. Departures from the reference:
(1) every row carries its own target; (2) rollouts, loss and validation use one distribution (``model.normalize``) and one
prompt; (3) the prompt is read once per group; (4) the checkpoint handed on is the best one on validation NDCG@10, and if
no step beats the SFT model, it is the SFT model; (5) groups whose completions all earn the same are dropped before the
forward, KL included (``rl.kl_on_flat_groups``); (6) with adapters the reference is the policy with the adapters off.
``rl.preset: paper`` gives the paper's settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from minionerec.errors import one_line_errors
from minionerec.experiment.config import read_command_line
from minionerec.experiment.settings import Experiment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from minionerec.catalogue.samples import Samples
    from minionerec.catalogue.sids import SidTable
    from minionerec_trainer import Reward


def main() -> None:
    experiment, _ = read_command_line(__doc__, own=())
    from minionerec.experiment import artifacts, processes

    path = artifacts.stage_path(experiment, "rl")
    if artifacts.is_done(experiment, "rl"):
        processes.say(
            f"{path} is finished; next: {artifacts.COMMANDS['evaluate']} with the same --config"
        )
        return
    with processes.locked(path):
        train(experiment, path)


def train(experiment: Experiment, path: Path) -> None:
    """SFT model, rewards, trainer, the better of the two models: from top to bottom."""
    import torch

    import minionerec_trainer as trainers
    from minionerec.catalogue import inputs
    from minionerec.catalogue.prompts import load_template
    from minionerec.catalogue.rows import mixture
    from minionerec.catalogue.samples import fixed_subset, seen_items
    from minionerec.evaluation.ranking import validator
    from minionerec.experiment import artifacts, processes
    from minionerec.model import backbone
    from minionerec.pages import plots
    from minionerec.training import run

    s = experiment.rl
    processes.quiet_libraries()
    processes.check_launch(experiment.model.tune)

    # Data and the SFT model
    data_dir, sids_dir, sft_dir = (
        artifacts.require_stage(experiment, stage) for stage in ("data", "sids", "sft")
    )
    samples, sids = inputs.load_catalogue(experiment, data_dir, sids_dir)
    backbone.check_sids(sft_dir, sids)
    model, tokenizer = backbone.load(sft_dir, torch.float32)
    template = load_template(sft_dir, experiment.model.template)
    renderer = inputs.renderer(tokenizer, template, sids, samples, experiment.model.max_tokens)
    trie = inputs.trie(sids, tokenizer)
    rows = mixture(s.tasks, samples.splits["train"], renderer, len(samples.items), experiment.seed)
    sid_token_ids = [token for level in sids.level_token_ids(tokenizer) for token in level]
    # With adapters the SFT model is the policy without them, unless the reference moves or its weights are sharded
    adapters_off = (
        experiment.model.tune != "full"
        and not s.sync_ref_steps
        and processes.processes().distributed_type != "FSDP"
    )
    reference = (
        backbone.load(sft_dir, torch.float32)[0].requires_grad_(False)
        if s.beta > 0 and not adapters_off
        else None
    )
    torch.manual_seed(experiment.seed)  # new adapters depend on nothing that was drawn before
    model = backbone.add_adapters(model, experiment.model, sid_token_ids)
    processes.say(
        f"{len(rows):,} prompts x {s.num_generations} completions; {backbone.describe(model)}"
    )

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
    )
    trie = trie.to(arguments.device)
    valid = fixed_subset(samples.splits["valid"], s.eval_rows, experiment.seed)
    normalize = experiment.model.normalize
    unwanted = None
    if experiment.evaluate.exclude_history:
        unwanted = fixed_subset(seen_items(data_dir, "valid"), s.eval_rows, experiment.seed)
    validate = validator(
        valid,
        renderer,
        trie,
        sids,
        num_beams=s.eval_beams,
        normalize=normalize,
        unwanted=unwanted,
    )
    before = validate(model.to(arguments.device))
    processes.say(
        "SFT model: validation "
        + "  ".join(f"{key} {before[key]:.4f}" for key in ("HR@1", "HR@10", "NDCG@10"))
    )
    contents = trainers.CheckpointContents(
        "rl",
        artifacts.relevant_settings(experiment, "rl"),
        [data_dir, sids_dir, sft_dir],
        sids_dir / "sids.json",
        template,
    )
    reward = make_reward(experiment, samples, sids, sids_dir)
    trainer = trainers.GRPOTrainer(
        model,
        arguments,
        rows,
        tokenizer,
        contents,
        validate,
        trie=trie,
        settings=s,
        normalize=normalize,
        reward=reward,
        ref_model=reference,
    )
    run.train_or_resume(trainer)

    # Hand on whichever ranks the validation rows better
    best = trainer.state.best_metric
    improved = best is not None and best > before["NDCG@10"]
    chosen = (
        backbone.merged(trainer.whole_model())
        if improved
        else backbone.load(sft_dir, torch.float32)[0]
    )
    facts = {
        "sids_sha256": sids.sha256,
        "improved_on_sft": improved,
        "sft_validation_NDCG@10": before["NDCG@10"],
    }
    if trainer.is_world_process_zero():
        with artifacts.committed(
            path, "rl", contents.settings, contents.parents, **facts
        ) as staging:
            backbone.save(chosen, tokenizer, contents.sids_file, template, staging)
            trainer.state.log_history.insert(
                0, {"step": 0} | {f"eval_{key}": value for key, value in before.items()}
            )
            plots.save_log(trainer, staging)
    run.clean_up(experiment, "rl")
    verdict = (
        f"at step {trainer.state.best_global_step} of {total_steps}"
        if improved
        else "no step beat it: the SFT weights are handed on"
    )
    processes.say(
        f"\nvalidation NDCG@10: SFT {before['NDCG@10']:.4f}, best of RL {best:.4f}; {verdict}"
        f"\nwritten to {path}; next: {artifacts.COMMANDS['evaluate']} with the same --config"
    )


def make_reward(experiment: Experiment, samples: Samples, sids: SidTable, sids_dir: Path) -> Reward:
    """The weighted rewards of ``rl.rewards`` as one function (items, targets, alive, histories) -> parts ``(B, G)``."""
    import numpy as np
    import torch

    from minionerec.experiment import artifacts
    from minionerec.training import rewards

    weights = {name: weight for name, weight in experiment.rl.rewards.items() if weight}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embeddings = codes = score = None
    if "semantic" in weights:
        embeddings = torch.from_numpy(
            artifacts.load_array(sids_dir / "embeddings.npy").astype(np.float32)
        ).to(device)
        embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
    if "prefix" in weights:
        longest = len(sids.codebook_sizes)
        codes = torch.tensor(
            [[*sid, *[-1] * (longest - len(sid))] for sid in sids.codes], device=device
        )
    if "collaborative" in weights:
        score = collaborative_scores(experiment, samples, device)

    def reward(
        items: Tensor, targets: Tensor, alive: Tensor, histories: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """Each reward times its weight, ``(B, G)``, for items ``(B, G)``, targets ``(B,)`` and which items are there ``(B, G)``."""
        parts = {}
        for name, weight in weights.items():
            match name:
                case "rule":
                    value = rewards.rule(items, targets, alive)
                case "ranking":
                    value = rewards.ranking(items, targets, alive)
                case "semantic":
                    value = rewards.semantic(items, targets, alive, embeddings)
                case "prefix":
                    value = rewards.prefix(items, targets, alive, codes)
                case "collaborative":
                    value = rewards.collaborative(items, alive, score(histories))
            parts[name] = weight * value
        return parts

    return reward


def collaborative_scores(
    experiment: Experiment, samples: Samples, device: str
) -> Callable[[Sequence[Sequence[int]]], Tensor]:
    """Log-probabilities ``(B, N)`` of a SASRec for B histories; it is trained on the same train split on first use.

    A row that shows no history (title -> SID, say) gets the same score for every item, hence no reward.
    """
    import torch

    from minionerec.experiment import artifacts, processes
    from minionerec.rankers import sequential

    path = artifacts.stage_path(experiment, "collaborative")
    with processes.processes().main_process_first():  # the others find it finished
        if not artifacts.is_done(experiment, "collaborative"):
            processes.say("training the SASRec of the collaborative reward (once)")
            with artifacts.committed(
                path,
                "collaborative",
                artifacts.relevant_settings(experiment, "collaborative"),
                [artifacts.stage_path(experiment, "data")],
            ) as staging:
                trained = sequential.train(
                    "sasrec",
                    samples,
                    experiment.seed,
                    experiment.data.max_history,
                    experiment.baselines,
                )
                sequential.save("sasrec", trained.model, staging)
    model = sequential.load("sasrec", path).to(device)

    def score(histories: Sequence[Sequence[int]]) -> Tensor:
        scores = torch.zeros(len(histories), len(samples.items), device=device)
        shown = [i for i, history in enumerate(histories) if history]
        if shown:
            scores[shown] = sequential.score(model, [histories[i] for i in shown]).to(device)
        return scores

    return score


if __name__ == "__main__":
    with one_line_errors():
        main()
