"""What all neural baselines share: batches of similar length, the training loop, and the choice among settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import nn

from minionerec.errors import UserError

BATCHES_TOGETHER = 8  # rows of so many batches are sorted by length, which halves the padding

Model = TypeVar("Model", bound=nn.Module)
Row = TypeVar("Row")
Log = Callable[[dict[str, Any]], None]


class Trained(NamedTuple):
    """The best model, its choice of settings, its log (a row per epoch), and what every choice reached."""

    model: nn.Module
    chosen: dict[str, float]
    log: list[dict[str, Any]]
    tried: list[dict[str, Any]]


def try_all(
    grid: dict[str, Sequence[float]], train_one: Callable[[dict[str, float], Log], Model], show: Log
) -> Trained:
    """Train every combination of the grid's values and keep the one with the best validation NDCG@10, the first of equals.

    Args:
        grid: name -> values to try.
        train_one: a combination -> the model with the weights of its best epoch; calls the log once per epoch.
        show: called with every row of every log.
    """
    best: Trained | None = None
    tried = []
    for values in product(*grid.values()):
        choice, log = dict(zip(grid, values, strict=True)), []
        model = train_one(choice, lambda row, log=log: (log.append(row), show(row)))
        row = max(log, key=lambda row: row.get("valid_NDCG@10", row["epoch"]))
        tried.append({**choice, "epoch": row["epoch"], "valid_NDCG@10": row.get("valid_NDCG@10")})
        if best is None or (row.get("valid_NDCG@10") or 0.0) > (
            best.chosen["valid_NDCG@10"] or 0.0
        ):
            best = Trained(model.eval(), tried[-1], log, tried)
    return best


def fit(
    name: str,
    model: nn.Module,
    epoch: Callable[[], list[float]],
    validate: Callable[[], float] | None,
    epochs: int,
    patience: int,
    log: Log,
) -> None:
    """The training loop of all neural baselines; leaves the best epoch's weights (the last's, without validation) in the model.

    Args:
        name: of the method, for messages.
        epoch: trains one pass and returns the loss of every step.
        validate: NDCG@10 of the validation rows; None if there are none.

    Raises:
        UserError: the loss is no longer a number.
    """
    best, best_weights, waited, step = -1.0, {}, 0, 0
    for number in range(1, epochs + 1):
        losses = epoch()
        step += len(losses)
        row = {"step": step, "epoch": number, "loss": float(np.mean(losses))}
        if not math.isfinite(row["loss"]):
            raise UserError(
                f"{name}: the loss is {row['loss']} in epoch {number}; lower its learning rate"
            )
        if validate is None:
            log(row)
            continue
        row["valid_NDCG@10"] = validate()
        log(row)
        waited += 1
        if row["valid_NDCG@10"] > best:
            best, waited = row["valid_NDCG@10"], 0
            best_weights = {
                key: value.detach().clone() for key, value in model.state_dict().items()
            }
        if waited == patience:
            break
    if best_weights:
        model.load_state_dict(best_weights)


def cut_batches(
    rows: list[Row], batch_size: int, rng: np.random.Generator, length: Callable[[Row], int] = len
) -> list[list[Row]]:
    """Batches of rows of similar length, in random order; a row stays among the ``BATCHES_TOGETHER`` batches around it."""
    chunk, batches = batch_size * BATCHES_TOGETHER, []
    for start in range(0, len(rows), chunk):
        block = sorted(rows[start : start + chunk], key=length)
        batches += [block[i : i + batch_size] for i in range(0, len(block), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]
