"""The rewards of ``rl.rewards`` as one function of items; what they read is loaded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.rows import NO_TARGET
from minionerec.experiment.commit import committed
from minionerec.experiment.lineage import is_done, open_stage
from minionerec.experiment.manifest import Parent
from minionerec.experiment.processes import processes
from minionerec.experiment.run import say
from minionerec.experiment.stages import settings_of, stage_path
from minionerec.rankers import experts, sequential
from minionerec.training import rewards
from minionerec.training.rollouts import Reward

# (B histories, the rows' own targets) -> (B, N); all equal where a row shows no history
Scores = Callable[[Sequence[Sequence[int]], Sequence[int]], Tensor]
TEMPERATURE = 0.07  # of text_knn, as for soft labels


def weighted_rewards(catalogue: Catalogue) -> tuple[Reward, list[Parent]]:
    """The reward function of an experiment, and the trained models that it reads.

    The function takes items ``(B, G)``, targets ``(B,)``, ``alive (B, G)``, which says what places
    hold an item, and B histories; it gives each reward times its weight, ``(B, G)``.
    """
    settings = catalogue.experiment.rl
    weights = {name: weight for name, weight in settings.rewards.items() if weight}
    # Nothing that nobody asks is loaded or trained
    if not settings.rolls_out:
        weights = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embeddings = codes = score = None
    models = []
    if "semantic" in weights:
        embeddings = normalize(torch.from_numpy(catalogue.embeddings()).to(device), dim=-1)
    if "prefix" in weights:
        longest = len(catalogue.sids.codebook_sizes)
        padded = [[*sid, *[-1] * (longest - len(sid))] for sid in catalogue.sids.codes]
        codes = torch.tensor(padded, device=device)  # (N, L)
    if "collaborative" in weights and settings.teacher:
        score = teacher_scores(catalogue, settings.teacher, device)
    elif "collaborative" in weights:
        models.append(collaborative_model(catalogue))
        score = collaborative_scores(catalogue, models[0].path, device)

    def reward(
        items: Tensor, targets: Tensor, alive: Tensor, histories: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """Each reward times its weight, ``(B, G)``, by name."""
        parts = {}
        if "rule" in weights:
            parts["rule"] = rewards.rule(items, targets, alive)
        if "ranking" in weights:
            parts["ranking"] = rewards.ranking(items, targets, alive)
        if embeddings is not None:
            parts["semantic"] = rewards.semantic(items, targets, alive, embeddings)
        if codes is not None:
            parts["prefix"] = rewards.prefix(items, targets, alive, codes)
        if score is not None:
            scores = score(histories, targets.tolist())
            parts["collaborative"] = rewards.collaborative(items, alive, scores)
        # Without a target nothing but the teacher can tell one item from another
        has_target = (targets != NO_TARGET)[:, None]
        for name in parts:
            if name != "collaborative":
                parts[name] = torch.where(has_target, parts[name], 0.0)
        return {name: weight * parts[name] for name, weight in weights.items()}

    return reward, models


def collaborative_model(catalogue: Catalogue) -> Parent:
    """The SASRec of the collaborative reward: trained on the train split on first use."""
    experiment = catalogue.experiment
    path = stage_path(experiment, "collaborative")
    settings = settings_of(experiment, "collaborative")
    with processes().main_process_first():  # the others find it finished
        if not is_done(experiment, "collaborative"):
            say("training the SASRec of the collaborative reward (once)")
            with committed(path, "collaborative", settings, [catalogue.data]) as staging:
                trained = sequential.train(
                    "sasrec",
                    catalogue.samples,
                    experiment.seed,
                    experiment.data.max_history,
                    experiment.baselines,
                )
                sequential.save("sasrec", trained.model, staging)
    return open_stage(experiment, "collaborative")


def teacher_scores(catalogue: Catalogue, weights: Mapping[str, float], device: str) -> Scores:
    """Scores by a mix of rankers, as they teach SFT: what they hold likely, without the row itself.

    A ranker that has counted the row's own transition would but repeat its target. Items that the
    user is never recommended again earn nothing.
    """
    experiment = catalogue.experiment
    exclude = experiment.evaluate.exclude_history
    shares = {name: weight for name, weight in weights.items() if weight}
    unwanted = None
    if exclude:
        unwanted = catalogue.seen("valid")
    teacher = experts.build(
        list(shares),
        catalogue.samples,
        embeddings_file=catalogue.sids_stage.path / "embeddings.npy",
        temperature=TEMPERATURE,
        unwanted=unwanted,
    )

    def score(histories: Sequence[Sequence[int]], targets: Sequence[int]) -> Tensor:
        # Leave-one-out: what the row itself has added to the counts is taken out
        mixed = experts.mix(teacher, list(shares.values()), histories, targets).toarray()  # (B, N)
        for row, history in enumerate(histories):
            # Nothing is known of a row that shows no history: all items are worth the same
            if not history:
                mixed[row] = 0.0
            elif exclude:
                mixed[row, list(history)] = 0.0
        return torch.from_numpy(mixed).float().to(device)

    return score


def collaborative_scores(catalogue: Catalogue, path: Path, device: str) -> Scores:
    """Scores by the SASRec: its log-probabilities.

    A row that shows no history (title -> SID, say) gets the same score for every item, hence no
    reward.
    """
    model = sequential.load("sasrec", path).to(device)
    num_items = len(catalogue.items)

    def score(histories: Sequence[Sequence[int]], _targets: Sequence[int]) -> Tensor:
        scores = torch.zeros(len(histories), num_items, device=device)
        shown = [i for i, history in enumerate(histories) if history]
        if shown:
            scores[shown] = sequential.score(model, [histories[i] for i in shown]).to(device)
        return scores

    return score
