"""Training, scoring and storing of the next-item networks of ``networks.py``.

All learn by softmax cross-entropy over the whole catalogue at every position instead of sampled
negatives: Klenitskiy and Vasilev, arXiv:2309.07602, show that this is where most of SASRec's
successors' gain comes from. The windows of a long sequence begin at a random item each epoch, so
that every item is seen at every position. Every combination of the values in the settings is
trained; early stopping and the choice between them look at validation NDCG@10 only.

Shapes: B histories, T positions, D width, N items.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minionerec.catalogue.samples import Sample, Samples, windows
from minionerec.errors import UserError
from minionerec.experiment.settings import BaselineSettings
from minionerec.rankers.baseline import Inputs, Ranking, parameters_of, printer
from minionerec.rankers.fitting import Log, Trained, cut_batches, fit, try_all
from minionerec.rankers.networks import NETWORKS, NextItemModel
from minionerec.rankers.scores import rank_by_scores, rows_at_once

# Settings of which every combination is trained
TRIED = ("hidden_size", "layers", "dropout", "learning_rate")

LOGITS_AT_ONCE = 2**28  # of a training step: bounds memory at some GB
IGNORED = -100  # target of a padded position, torch's ignore_index


def rank_test(method: str, inputs: Inputs, directory: Path) -> Ranking:
    """Train a network, save it in ``directory``, rank the test rows."""
    experiment = inputs.experiment
    samples = inputs.samples
    trained = train(
        method,
        samples,
        experiment.seed,
        experiment.data.max_history,
        experiment.baselines,
        printer(method),
    )
    save(method, trained.model, directory)
    ready = time.perf_counter()

    def scores_of(histories: Sequence[Sequence[int]]) -> np.ndarray:
        return score(trained.model, histories).cpu().numpy()

    items, scores = rank_by_scores(
        scores_of,
        inputs.test_histories,
        inputs.popularity_order(),
        inputs.depth,
        inputs.unwanted_of("test"),
    )
    return Ranking(
        items.tolist(),
        scores.tolist(),
        facts={"chosen": trained.chosen, "tried": trained.tried},
        parameters=parameters_of(trained.model),
        ready=ready,
        log=trained.log,
    )


def train(
    kind: str,
    samples: Samples,
    seed: int,
    max_history: int = 10,
    settings: BaselineSettings | None = None,
    show: Log = lambda row: None,
) -> Trained:
    """Train every combination of the settings' lists, each until validation NDCG@10 stops rising.

    The caller's random state is left as it was. Runs on the first GPU if there is one.

    Args:
        kind: a key of ``NETWORKS``.
        samples: ``train_sequences`` and ``splits["valid"]`` are used, nothing else.
        seed: of initialisation, shuffling and dropout.
        max_history: T, longest history in items.
        settings: all keys but ``methods`` and ``tiger_*``; None: their defaults.
        show: called once per epoch with ``{"step", "epoch", "loss", "valid_NDCG@10"}``.

    Raises:
        UserError: no sequence has two items, the heads do not divide a width, or the loss is no
            longer a number.
    """
    settings = settings or BaselineSettings()
    for width in settings.hidden_size:
        if width % settings.heads:
            raise UserError(
                f"baselines.heads: got {settings.heads}, expected a divisor of "
                f"baselines.hidden_size {width}"
            )
    if not any(len(sequence) > 1 for sequence in samples.train_sequences):
        raise UserError(
            f"{kind}: no user has two train interactions, so there is nothing to learn from; "
            "check data.split"
        )
    grid: dict[str, Sequence[float]] = {key: getattr(settings, key) for key in TRIED}

    def train_choice(choice: dict[str, Any], log: Log) -> NextItemModel:
        return train_one(kind, samples, seed, max_history, settings, choice, log)

    return try_all(grid, train_choice, show)


def train_one(
    kind: str,
    samples: Samples,
    seed: int,
    max_history: int,
    settings: BaselineSettings,
    choice: dict[str, Any],
    log: Log,
) -> NextItemModel:
    """One combination of settings; the model has the weights of its best epoch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETWORKS[kind](
            len(samples.items),
            max_history,
            choice["hidden_size"],
            choice["layers"],
            settings.heads,
            choice["dropout"],
        ).to(device)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=choice["learning_rate"],
            weight_decay=settings.weight_decay,
        )

        def epoch() -> Iterator[float]:
            rows = windows(samples.train_sequences, max_history, rng)
            for batch in cut_batches(rows, settings.batch_size, rng):
                yield train_step(model, optimizer, batch)

        validate = validator(model, samples.splits["valid"])
        fit(kind, model, epoch, validate, settings.epochs, settings.patience, log)
    return model


def validator(model: NextItemModel, valid: Sequence[Sample]) -> Callable[[], float] | None:
    """A function that gives NDCG@10 of the validation samples; None where there are none."""
    return (lambda: mean_ndcg_at_10(model, valid)) if valid else None


def train_step(
    model: NextItemModel, optimizer: torch.optim.Optimizer, rows: Sequence[Sequence[int]]
) -> float:
    """One optimiser step on windows of items; every item after a window's first is a target.

    Returns:
        The loss: mean cross-entropy over all targets of the batch.
    """
    model.train()
    items, targets = batch(rows, model.bias.device)  # (B, T), (B, T)
    known = targets != IGNORED
    # Logits only where there is a target: (targets, N) instead of (B, T, N)
    loss = mean_cross_entropy(model, model.hidden(items)[known], targets[known])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def mean_cross_entropy(model: NextItemModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Of the targets ``(n,)`` behind the vectors ``(n, D)``, over the whole catalogue.

    Of many items a part of the logits after the other, made again on the way back: all of a batch
    and their gradients are 10 GB at a million items.
    """

    def summed(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(hidden), targets, reduction="sum")

    step = max(1, LOGITS_AT_ONCE // len(model.bias))
    if len(targets) <= step:
        return F.cross_entropy(model.logits(hidden), targets)
    parts = zip(hidden.split(step), targets.split(step), strict=True)
    sums = [checkpoint(summed, *part, use_reentrant=False) for part in parts]
    return torch.stack(sums).sum() / len(targets)


def batch(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs ``(B, T)`` and next items ``(B, T)`` of windows.

    Padded on the right: inputs with 0, targets with ``IGNORED``.
    """
    longest = max(len(row) for row in rows) - 1
    items = np.zeros((len(rows), longest), dtype=np.int64)
    targets = np.full((len(rows), longest), IGNORED)
    for place, row in enumerate(rows):
        length = len(row) - 1
        items[place, :length] = row[:-1]
        targets[place, :length] = row[1:]
    return torch.from_numpy(items).to(device), torch.from_numpy(targets).to(device)


@torch.no_grad()
def score(model: NextItemModel, histories: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities of the next item, ``(B, N)`` float32 on the model's device.

    Args:
        model: as trained; evaluated without dropout, whatever mode it is in.
        histories: item indexes, oldest first, at least one; only the latest ``max_history`` count.
    """
    was_training = model.training
    model.eval()
    recent = [list(history[-model.max_history :]) for history in histories]
    lengths = torch.tensor([len(history) for history in recent])  # (B,)
    items = torch.zeros((len(recent), int(lengths.max())), dtype=torch.long)  # (B, T)
    for row, history in enumerate(recent):
        items[row, : len(history)] = torch.tensor(history)
    hidden = model.hidden(items.to(model.bias.device))  # (B, T, D)
    last = hidden[torch.arange(len(recent)), lengths - 1]  # (B, D), at the end of each history
    scores = F.log_softmax(model.logits(last), dim=-1)
    model.train(was_training)
    return scores


def mean_ndcg_at_10(model: NextItemModel, samples: Sequence[Sample]) -> float:
    """NDCG@10 of the samples' targets over the catalogue, as ``places.ndcg_at_k`` defines it."""
    total = 0.0
    step = rows_at_once(len(model.bias))
    for start in range(0, len(samples), step):
        rows = samples[start : start + step]
        scores = score(model, [sample.history for sample in rows])  # (B, N)
        targets = torch.tensor([sample.target for sample in rows], device=scores.device)
        of_target = scores.gather(1, targets[:, None])  # (B, 1)
        ranks = (scores > of_target).sum(dim=1).double()  # (B,) from 0
        gains = torch.where(ranks < 10, 1.0 / torch.log2(ranks + 2.0), 0.0)
        total += gains.sum().item()
    return total / len(samples)


def save(kind: str, model: NextItemModel, directory: Path) -> None:
    """Write ``<kind>.safetensors`` (weights) and ``<kind>.json`` (shape)."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, directory / f"{kind}.safetensors")
    (directory / f"{kind}.json").write_text(json.dumps(model.config, indent=1) + "\n")


def load(kind: str, directory: Path) -> NextItemModel:
    """The model that ``save`` wrote, on the CPU, ready to score.

    Raises:
        UserError: the directory does not hold one.
    """
    for name in (f"{kind}.json", f"{kind}.safetensors"):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory / name} not found; expected a {kind} model as baselines/run.py "
                "writes it"
            )
    shape = json.loads((directory / f"{kind}.json").read_text())
    model = NETWORKS[kind](**shape)
    model.load_state_dict(load_file(directory / f"{kind}.safetensors"))
    return model.eval()
