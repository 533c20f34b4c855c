"""What all neural baselines share: batches of similar length, training, the choice of settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor, nn

from minionerec.errors import UserError
from minionerec.experiment.progress import Progress

BATCHES_TOGETHER = 8  # rows of so many batches are sorted by length, which halves the padding

Model = TypeVar("Model", bound=nn.Module)
Row = TypeVar("Row")
Log = Callable[[dict[str, Any]], None]


class Trained(NamedTuple):
    """The best model, its settings, its log (a row per epoch), and what every choice reached."""

    model: Any
    chosen: dict[str, Any]
    log: list[dict[str, Any]]
    tried: list[dict[str, Any]]


def try_all(
    grid: Mapping[str, Sequence[float]],
    train_one: Callable[[dict[str, Any], Log], nn.Module],
    show: Log,
) -> Trained:
    """Train every combination of the grid's values; keep the best validation NDCG@10.

    Of equals the first is kept; without validation rows, the first of all.

    Args:
        grid: name -> values to try.
        train_one: a combination -> the model with the weights of its best epoch; calls the log once
            per epoch.
        show: called with every row of every log.
    """
    best: Trained | None = None
    tried: list[dict[str, Any]] = []
    for values in product(*grid.values()):
        choice = dict(zip(grid, values, strict=True))
        log: list[dict[str, Any]] = []

        def note(row: dict[str, Any], log: list[dict[str, Any]] = log) -> None:
            log.append(row)
            show(row)

        model = train_one(choice, note)
        # Without validation every epoch counts as better than the one before.
        row = max(log, key=lambda row: row.get("valid_NDCG@10", row["epoch"]))
        reached = row.get("valid_NDCG@10")
        tried.append({**choice, "epoch": row["epoch"], "valid_NDCG@10": reached})
        if best is None or (reached or 0.0) > (best.chosen["valid_NDCG@10"] or 0.0):
            best = Trained(model.eval(), tried[-1], log, tried)
    if best is None:
        raise ValueError("the grid holds no combination")
    return best


def fit(
    name: str,
    model: nn.Module,
    epoch: Callable[[], Iterable[float]],
    validate: Callable[[], float] | None,
    epochs: int,
    patience: int,
    log: Log,
) -> None:
    """Train until validation NDCG@10 stops rising; the model ends with its best epoch's weights.

    Args:
        name: of the method, for messages.
        model: whose weights ``epoch`` changes.
        epoch: trains one pass and yields the loss of every step.
        validate: NDCG@10 of the validation rows; None if there are none: the last epoch's weights
            stay.
        epochs: most passes.
        patience: epochs without a better NDCG@10 before training stops.
        log: called with a row per epoch.

    Raises:
        UserError: the loss is no longer a number.
    """
    best = -1.0
    best_weights: dict[str, Tensor] = {}
    waited = 0
    step = 0
    progress = Progress(name, epochs, "epochs")
    for number in range(1, epochs + 1):
        losses = []
        for one in epoch():
            losses.append(one)
            progress.update(0, loss=f"{one:.3f}")
        progress.update()
        step += len(losses)
        loss = float(np.mean(losses))
        if not math.isfinite(loss):
            raise UserError(
                f"{name}: the loss is {loss} in epoch {number}; lower its learning rate"
            )
        row: dict[str, Any] = {"step": step, "epoch": number, "loss": loss}
        if validate is None:
            log(row)
            continue
        reached = validate()
        row["valid_NDCG@10"] = reached
        log(row)
        if reached > best:
            best = reached
            waited = 0
            best_weights = copy_of_weights(model)
        else:
            waited += 1
        if waited == patience:
            break
    progress.close()
    if best_weights:
        model.load_state_dict(best_weights)


def copy_of_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they are now, apart from what later steps do to them."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def cut_batches(
    rows: Sequence[Row],
    batch_size: int,
    rng: np.random.Generator,
    length: Callable[[Any], int] = len,
) -> list[list[Row]]:
    """Batches of rows of similar length, in random order.

    A row stays among the ``BATCHES_TOGETHER`` batches around it.
    """
    chunk = batch_size * BATCHES_TOGETHER
    batches: list[list[Row]] = []
    for start in range(0, len(rows), chunk):
        block = sorted(rows[start : start + chunk], key=length)
        for place in range(0, len(block), batch_size):
            batches.append(block[place : place + batch_size])
    return [batches[i] for i in rng.permutation(len(batches))]
