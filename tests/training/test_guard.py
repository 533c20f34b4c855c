"""The guard of RL: what may be handed on, and what is said."""

from __future__ import annotations

import pytest

from minionerec.experiment.settings import Experiment
from minionerec.training.guard import GUARDED, Guard, unlike_sft

SFT = {"HR@1": 0.05, "HR@10": 0.2, "HR@50": 0.4, "NDCG@10": 0.1}


def scripted(*rows):
    """A validation that gives these (NDCG@10, HR@50) one after the other."""
    left = iter(rows)

    def validate(_model, _most):
        ndcg, hits = next(left)
        return SFT | {"NDCG@10": ndcg, "HR@50": hits}

    return validate


def logged(guard, *rows):
    """What the Trainer logs of these validations, ten steps apart."""
    validate = guard.watching(scripted(*rows))
    history = []
    for number in range(1, len(rows) + 1):
        found = {f"eval_{key}": value for key, value in validate(None).items()}
        history.append({"step": 10 * number, **found})
    return history


def test_a_step_counts_only_if_it_keeps_all_but_half_a_percent_of_the_hits():
    validate = Guard(SFT, 0.005).watching(scripted((0.2, 0.398), (0.2, 0.3979), (0.05, 0.5)))
    assert [validate(None)[GUARDED] for _ in range(3)] == [0.2, 0.0, 0.05]


def test_without_lists_of_fifty_the_longest_ones_are_guarded():
    guard = Guard({"HR@1": 0.05, "HR@3": 0.1, "HR@10": 0.2, "NDCG@10": 0.1}, 0.0)
    assert guard.key == "HR@10"
    assert guard.passes({"HR@10": 0.2}) and not guard.passes({"HR@10": 0.19})


def test_a_guard_that_allows_everything_refuses_nothing():
    assert Guard(SFT, 1.0).passes({"HR@50": 0.0})


@pytest.mark.parametrize(
    "rows, verdict",
    [
        (
            [(0.3, 0.39), (0.2, 0.4), (0.15, 0.41)],
            "SFT 0.1000, best of RL 0.2000; at step 20 of 30",
        ),
        (
            [(0.3, 0.39), (0.09, 0.4)],
            "SFT 0.1000, best of RL 0.3000; no step beat it and kept HR@50 at 0.3980 or more "
            "(rl.guard): the SFT weights are handed on",
        ),
        (
            [(0.09, 0.39), (0.1, 0.4)],
            "SFT 0.1000, best of RL 0.1000; no step beat it: the SFT weights are handed on",
        ),
    ],
)
def test_the_verdict_names_the_step_or_why_sft_is_handed_on(rows, verdict):
    guard = Guard(SFT, 0.005)
    history = [{"step": 1, "loss": 0.0}, *logged(guard, *rows)]
    assert guard.verdict(history) == verdict
    best = max(row[f"eval_{GUARDED}"] for row in history[1:])
    assert guard.beaten_by(best) == ("at step" in verdict)


def test_the_console_line_says_where_sft_left_off_and_what_must_be_kept():
    assert str(Guard(SFT, 0.005)) == (
        "HR@1 0.0500  HR@10 0.2000  HR@50 0.4000  NDCG@10 0.1000; "
        "a step must keep HR@50 at 0.3980 (rl.guard)"
    )


@pytest.mark.parametrize(
    "rows, changes, said",
    [
        (5000, {}, " (50 beams, 5,000 rows; SFT's own: 10 beams, 1,000 rows)"),
        (900, {"sft.eval_beams": 50}, ""),  # all 900 both times
        (900, {}, " (50 beams, 900 rows; SFT's own: 10 beams, 900 rows)"),
        (5000, {"sft.eval_beams": 50, "sft.eval_rows": 0}, ""),
    ],
)
def test_why_the_same_weights_have_other_figures_in_rl_is_said(rows, changes, said):
    experiment = Experiment(name="x").changed({"sft.eval_rows": 1000, "rl.eval_rows": 0, **changes})
    assert unlike_sft(experiment, rows) == said
