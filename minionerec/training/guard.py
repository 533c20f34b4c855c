"""The guard of RL: a step counts as better than SFT only if the end of its lists holds.

RL tends to lift the first places of a ranking at the cost of the last. So a checkpoint is chosen by
NDCG@10 among those whose HR@50 is at least the SFT model's, less a small share. Where no step
passes and beats SFT, SFT's weights are handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from minionerec.experiment.settings import Experiment

# (model, how many of the rows or None for all) -> metrics
Validate = Callable[..., dict[str, float]]
CHOSEN_BY = "NDCG@10"
GUARDED = "guarded_NDCG@10"  # what the Trainer compares: NDCG@10, or 0 where the guard refuses


def unlike_sft(experiment: Experiment, rows: int) -> str:
    """Why RL's first figures are not SFT's last, although the weights are; "" if they are alike.

    Args:
        experiment: whose two validations they are.
        rows: of the validation split; fewer may be looked at.
    """
    sft, rl = experiment.sft, experiment.rl
    seen = [(stage.eval_beams, min(stage.eval_rows or rows, rows)) for stage in (rl, sft)]
    if seen[0] == seen[1]:
        return ""
    (beams, here), (beams_of_sft, there) = seen
    return f" ({beams} beams, {here:,} rows; SFT's own: {beams_of_sft} beams, {there:,} rows)"


class Guard:
    """Compares every validation with the first, that of the SFT model.

    Args:
        before: the SFT model's metrics of the validation rows.
        allowed: share of its HR@K that a step may lose.

    Attributes:
        key: HR@K, the longest list that is validated: HR@50 unless ``rl.eval_beams`` is less.
        floor: the least that a step must have of it.

    Example:
        >>> guard = Guard({"HR@10": 0.2, "HR@50": 0.4, "NDCG@10": 0.1}, 0.005)
        >>> round(guard.floor, 3), guard.passes({"HR@50": 0.398}), guard.passes({"HR@50": 0.39})
        (0.398, True, False)
    """

    def __init__(self, before: Mapping[str, float], allowed: float):
        lengths = [int(key.removeprefix("HR@")) for key in before if key.startswith("HR@")]
        self.key = f"HR@{max(lengths)}"
        # A hit less than a rounding error below the floor is no loss
        self.floor = before[self.key] * (1.0 - allowed) - 1e-9
        self.before = before

    def __str__(self) -> str:
        """Where SFT left off, and what a step must keep."""
        names = dict.fromkeys(("HR@1", "HR@10", self.key, CHOSEN_BY))
        shown = "  ".join(f"{name} {self.before[name]:.4f}" for name in names)
        return f"{shown}; a step must keep {self.key} at {self.floor:.4f} (rl.guard)"

    def passes(self, metrics: Mapping[str, float]) -> bool:
        """Whether a step may be handed on."""
        return metrics[self.key] >= self.floor

    def watching(self, validate: Validate) -> Validate:
        """The same validation, with ``GUARDED`` among its metrics."""

        def guarded(model: nn.Module, most: int | None = None) -> dict[str, float]:
            metrics = validate(model, most)
            value = metrics[CHOSEN_BY] if self.passes(metrics) else 0.0
            return metrics | {GUARDED: value}

        return guarded

    def beaten_by(self, best: float | None) -> bool:
        """Whether the best guarded step ranks better than the SFT model."""
        return best is not None and best > self.before[CHOSEN_BY]

    def verdict(self, history: Sequence[Mapping[str, Any]]) -> str:
        """What came of the run, in words; ``history`` is the Trainer's log."""
        validations = [row for row in history if f"eval_{GUARDED}" in row]
        best = max(validations, key=lambda row: row[f"eval_{GUARDED}"])
        start = f"SFT {self.before[CHOSEN_BY]:.4f}"
        if self.beaten_by(best[f"eval_{GUARDED}"]):
            shown = best[f"eval_{CHOSEN_BY}"]
            at = f"at step {best['step']} of {validations[-1]['step']}"
            return f"{start}, best of RL {shown:.4f}; {at}"
        highest = max(row[f"eval_{CHOSEN_BY}"] for row in validations)
        reason = "no step beat it"
        # A step may rank better, but not all of the way down
        if highest > self.before[CHOSEN_BY]:
            reason = f"no step beat it and kept {self.key} at {self.floor:.4f} or more (rl.guard)"
        return f"{start}, best of RL {highest:.4f}; {reason}: the SFT weights are handed on"
