"""Values that are not finite end a run with one line that says where they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from minionerec.errors import UserError
from minionerec.model.beam_search import NotFinite


def first_not_finite(model: nn.Module) -> str | None:
    """``parameter X has N values that are not finite`` for the first such parameter, or None."""
    # In the order of the forward: the first one is usually the cause
    for name, parameter in model.named_parameters():
        bad = int((~torch.isfinite(parameter)).sum())
        if bad:
            return f"parameter '{name}' has {bad} values that are not finite"
    return None


@contextlib.contextmanager
def explained(
    step: int, whole_model: Callable[[], nn.Module], last_good: Callable[[], str]
) -> Iterator[None]:
    """Re-raise ``NotFinite`` as an error that a user can act on.

    Args:
        step: the optimiser step that is being made.
        whole_model: gives the model with all its weights; called only after a failure.
        last_good: describes the last good checkpoint; called only after a failure.

    Raises:
        UserError: names the step, the first bad parameter and the last good checkpoint.
    """
    try:
        yield
    except NotFinite as error:
        reason = str(error).partition(":")[0]
        where = first_not_finite(whole_model()) or "all parameters are finite"
        raise UserError(
            f"step {step}: {reason}; {where}; {last_good()}; "
            "lower the learning rate or check the data"
        ) from error


def refuse_spoilt(model: nn.Module, step: int, last_good: Callable[[], str]) -> None:
    """Refuse to save a model with a weight that is not finite.

    Raises:
        UserError: names the parameter and the last good checkpoint.
    """
    broken = first_not_finite(model)
    if broken:
        raise UserError(
            f"step {step}: {broken}; it was not saved; {last_good()}; lower the learning rate"
        )
