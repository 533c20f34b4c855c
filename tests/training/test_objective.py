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
    likelihood_anchor,
    mixed_advantages,
    sdpo_loss,
    sibling_advantages,
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
    assert likelihood_anchor(target, groups=2).item() == pytest.approx(-(-2 - 4) / 2)
    assert likelihood_anchor(target[:1], groups=2).item() == pytest.approx(2 / 2)  # a share of it


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


# ------------------------------------------------------------------------ siblings, Dr. GRPO, S-DPO

ALIVE = torch.ones(1, 4, dtype=torch.bool)
#   root -+- 1 -+- 11   reward 1
#         |     +- 12   reward 0
#         |     +- 12   reward 0 (drawn twice)
#         +- 2 --- 21   reward 0
PATHS = torch.tensor([[[1, 11], [1, 12], [1, 12], [2, 21]]])
REWARDS = torch.tensor([[1.0, 0.0, 0.0, 0.0]])


def test_a_prefix_is_compared_with_its_siblings_at_every_level_where_it_has_some():
    """Level 1: node 1 is worth 1/3, node 2 nothing. Level 2: 11 is worth 1, 12 nothing; 21 is an
    only child.
    """
    first = 1 / 6 / (math.sqrt(2) / 6 + 1e-4)  # worths 1/3 and 0: each 1/6 off their mean
    second = 0.5 / (math.sqrt(2) / 2 + 1e-4)  # two nodes, whatever passes them: 1 and 0
    expected = [(first + second) / 2, (first - second) / 2, (first - second) / 2, -first]
    found = sibling_advantages(REWARDS, ALIVE, PATHS)
    assert found[0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_siblings_without_a_difference_and_dead_places_carry_no_signal():
    assert sibling_advantages(torch.full((1, 4), 0.1), ALIVE, PATHS).tolist() == [[0.0] * 4]
    alive = torch.tensor([[True, True, False, False]])
    paths = torch.tensor([[[1, 11], [2, 21], [0, 0], [0, 0]]])
    found = sibling_advantages(torch.tensor([[1.0, 0.0, 9.0, 9.0]]), alive, paths)
    one = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert found[0].tolist() == pytest.approx([one, -one, 0.0, 0.0], rel=1e-5)


def test_a_short_sid_has_no_siblings_below_its_leaf():
    paths = torch.tensor([[[1, 0], [2, 21], [2, 22], [2, 22]]])  # the first has one level
    found = sibling_advantages(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), ALIVE, paths)
    # level 1: worths 0 and 2/3 of nodes 1 and 2; the first completion has that level alone
    first = 1 / 3 / (math.sqrt(2) / 3 + 1e-4)
    assert found[0, 0].item() == pytest.approx(-first, rel=1e-5)


def test_alpha_mixes_advantages_of_the_group_and_of_siblings():
    group = group_advantages(REWARDS, ALIVE)
    siblings = sibling_advantages(REWARDS, ALIVE, PATHS)
    found = mixed_advantages(REWARDS, ALIVE, PATHS, alpha=0.25)
    torch.testing.assert_close(found, 0.75 * group + 0.25 * siblings)
    assert torch.equal(mixed_advantages(REWARDS, ALIVE, PATHS, alpha=0.0), group)


def test_dr_grpo_divides_by_the_longest_length_so_that_tokens_of_short_sids_weigh_no_more():
    mask = torch.tensor([[[True, True], [True, False]]])
    advantages = torch.tensor([[1.0, -3.0]])
    zeros = torch.zeros(1, 2, 2)
    own = grpo_loss(zeros, None, advantages, mask, epsilon=0.2)
    same = grpo_loss(zeros, None, advantages, mask, epsilon=0.2, constant_length=True)
    assert own.loss.item() == pytest.approx(-((1 + 1) / 2 - 3 / 1) / 2)
    assert same.loss.item() == pytest.approx(-((1 + 1) / 2 - 3 / 2) / 2)


LOGPS = torch.tensor([[-1.0, -2.0, -4.0]])
REF_LOGPS = torch.tensor([[-1.5, -1.0, -3.0]])
THREE = torch.ones(1, 3, dtype=torch.bool)


def test_softmax_dpo_is_the_papers_formula():
    """The loss of arXiv:2406.09215 as it is written there."""
    beta = 0.7
    target, *others = (beta * (LOGPS - REF_LOGPS))[0].tolist()
    inner = sum(math.exp(other - target) for other in others)
    expected = -math.log(1 / (1 + math.exp(math.log(inner))))  # -log sigmoid(-log sum)
    wanted = torch.tensor([[1.0, 0.0, 0.0]])
    found = sdpo_loss(LOGPS, REF_LOGPS, wanted, THREE, beta=beta, groups=1)
    assert found.item() == pytest.approx(expected)


def test_softmax_dpo_against_one_miss_is_dpo():
    wanted = torch.tensor([[1.0, 0.0]])
    found = sdpo_loss(LOGPS[:, :2], REF_LOGPS[:, :2], wanted, THREE[:, :2], beta=0.7, groups=1)
    margin = 0.7 * (LOGPS - REF_LOGPS)[0, 0] - 0.7 * (LOGPS - REF_LOGPS)[0, 1]
    assert found.item() == pytest.approx(-torch.nn.functional.logsigmoid(margin).item())


def test_softmax_dpo_of_several_wanted_ones_is_their_cross_entropy_and_ignores_dead_places():
    logps = torch.tensor([[-1.0, -2.0, 5.0]], requires_grad=True)
    alive = torch.tensor([[True, True, False]])
    wanted = torch.tensor([[0.75, 0.25, 0.0]])
    found = sdpo_loss(logps, torch.zeros(1, 3), wanted, alive, beta=1.0, groups=2)
    total = math.log(math.exp(-1) + math.exp(-2))
    assert found.item() == pytest.approx(-(0.75 * (-1 - total) + 0.25 * (-2 - total)) / 2)
    found.backward()
    share = math.exp(-1 - total)
    assert logps.grad[0].tolist() == pytest.approx([(share - 0.75) / 2, (0.75 - share) / 2, 0.0])
