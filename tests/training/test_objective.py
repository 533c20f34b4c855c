"""The RL loss, worked by hand: two groups of two completions with up to two tokens."""

from __future__ import annotations

import math

import pytest
import torch

from minionerec.training.objective import (
    exact_kl,
    group_advantages,
    groups_with_signal,
    grpo_loss,
    k3_kl,
)

TWO_TOKENS = torch.ones(1, 1, 2, dtype=torch.bool)


def logps_of_ratio(*ratios: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, with gradient, of one completion whose tokens have moved by these
    ratios.
    """
    old = torch.full((1, 1, len(ratios)), -1.0)
    new = (old + torch.tensor(ratios).log()).requires_grad_(True)
    return new, old


@pytest.mark.parametrize(
    "advantage, ratios, objective, moves",
    [
        (2.0, (1.5, 1.1), (1.2, 1.1), (False, True)),  # too far in the right direction: cut off
        (2.0, (0.5, 0.9), (0.5, 0.9), (True, True)),  # in the wrong one: still corrected
        (-2.0, (0.5, 0.9), (0.8, 0.9), (False, True)),
        (-2.0, (1.5, 1.1), (1.5, 1.1), (True, True)),
    ],
)
def test_the_ratio_is_clipped_only_where_that_takes_a_gain_away(
    advantage, ratios, objective, moves
):
    new, old = logps_of_ratio(*ratios)
    found = grpo_loss(new, old, torch.tensor([[advantage]]), TWO_TOKENS, epsilon=0.2)
    assert found.loss.item() == pytest.approx(-advantage * sum(objective) / 2, abs=1e-6)
    found.loss.backward()
    assert (new.grad[0, 0] != 0).tolist() == list(moves)
    outside = sum(abs(ratio - 1) > 0.2 for ratio in ratios)
    assert found.parts == {"clip_ratio": outside / 2}


def test_on_policy_the_gradient_is_the_advantage_times_that_of_the_log_probability():
    new = torch.tensor([[[-1.0, -3.0]]], requires_grad=True)
    found = grpo_loss(new, None, torch.tensor([[0.5]]), TWO_TOKENS, epsilon=0.2)
    assert found.loss.item() == -0.5 and found.parts == {"clip_ratio": 0.0}
    found.loss.backward()
    assert new.grad.flatten().tolist() == [-0.25, -0.25]


def test_means_are_over_tokens_then_completions_then_groups():
    """The second completion is shorter, the second group has one completion: each level has its own
    mean.
    """
    mask = torch.tensor([[[True, True], [True, False]], [[True, True], [False, False]]])
    kl = torch.tensor([[[1.0, 3.0], [5.0, 99.0]], [[7.0, 9.0], [99.0, 99.0]]])
    zero = torch.zeros(2, 2)
    found = grpo_loss(torch.zeros(2, 2, 2), None, zero, mask, epsilon=0.2, kl=kl, beta=0.1)
    groups = [((1 + 3) / 2 + 5) / 2, (7 + 9) / 2]
    assert found.loss.item() == pytest.approx(0.1 * sum(groups) / 2)
    assert found.parts["kl"] == pytest.approx((1 + 3 + 5 + 7 + 9) / 5)  # per token


def test_a_batch_cut_in_two_gives_the_same_loss_when_the_number_of_groups_is_known():
    torch.manual_seed(0)
    logps, old = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    advantages, kl = torch.randn(4, 3), torch.rand(4, 3, 2)
    mask = torch.ones(4, 3, 2, dtype=torch.bool)
    options = {"epsilon": 0.2, "beta": 0.1}
    whole = grpo_loss(logps, old, advantages, mask, kl=kl, **options).loss
    parts = []
    for half in (slice(0, 1), slice(1, 4)):
        part = grpo_loss(
            logps[half], old[half], advantages[half], mask[half], kl=kl[half], groups=4, **options
        )
        parts.append(part.loss)
    torch.testing.assert_close(sum(parts), whole)


def test_the_likelihood_of_the_target_is_a_mean_over_its_tokens_and_lowers_the_loss():
    target = torch.tensor([[-1.0, -3.0], [-2.0, -6.0]])
    zero = torch.zeros(2, 1)
    mask = torch.ones(2, 1, 2, dtype=torch.bool)
    found = grpo_loss(
        torch.zeros(2, 1, 2), None, zero, mask, epsilon=0.2, target_logps=target, sft_weight=0.5
    )
    assert found.loss.item() == pytest.approx(-0.5 * (-2 - 4) / 2)
    assert found.parts["target_logp"] == pytest.approx(-3.0)


def test_k3_is_schulmans_estimate():
    found = k3_kl(torch.tensor([-1.0]), torch.tensor([-2.0]))
    assert found.item() == pytest.approx(math.exp(-1) + 1 - 1)
    found = k3_kl(torch.tensor([-2.0]), torch.tensor([-1.0]))
    assert found.item() == pytest.approx(math.exp(1) - 1 - 1)


def test_the_exact_kl_weighs_the_policys_children_and_ignores_missing_ones():
    policy = torch.tensor([[0.75, 0.25, 0.0]]).log()
    reference = torch.tensor([[0.5, 0.5, 0.0]]).log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert exact_kl(policy, reference).item() == pytest.approx(expected)


def test_only_groups_whose_completions_earn_different_rewards_have_a_signal():
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.1, 0.1], [0.0, 0.2]])
    alive = torch.ones(4, 2, dtype=torch.bool)
    assert groups_with_signal(group_advantages(rewards, alive)) == [0, 3]
    alive[3, 1] = False  # what is left of the group earns one reward
    assert groups_with_signal(group_advantages(rewards, alive)) == [0]
    assert groups_with_signal(torch.empty(0, 0)) == []
