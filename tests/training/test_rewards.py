"""Rewards and advantages, worked by hand."""

import math

import pytest
import torch

from minionerec.training import objective, rewards

ITEMS = torch.tensor([[4, 7, 2], [1, 2, 3]])
TARGETS = torch.tensor([7, 9])
ALIVE = torch.ones(2, 3, dtype=torch.bool)


def test_the_rule_rewards_only_the_target():
    assert rewards.rule(ITEMS, TARGETS, ALIVE).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_ranking_penalises_confident_misses_and_only_in_groups_that_hold_the_target():
    d = [1.0, 1 / math.log2(3), 0.5]
    total = sum(d)
    found = rewards.ranking(ITEMS, TARGETS, ALIVE)
    assert found[0].tolist() == pytest.approx([-d[0] / total, 0.0, -d[2] / total])
    assert found[1].tolist() == [0, 0, 0]


def test_places_without_an_item_earn_nothing_and_do_not_enter_the_normaliser():
    alive = torch.tensor([[True, True, False]])
    items, target = torch.tensor([[4, 7, -1]]), torch.tensor([7])
    d = [1.0, 1 / math.log2(3)]
    assert rewards.ranking(items, target, alive)[0].tolist() == pytest.approx(
        [-d[0] / sum(d), 0, 0]
    )
    assert rewards.rule(items, torch.tensor([-1]), alive)[0].tolist() == [0, 0, 0]


def test_semantic_is_the_cosine_with_the_target():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    found = rewards.semantic(
        torch.tensor([[0, 1, 2]]), torch.tensor([2]), torch.ones(1, 3, dtype=torch.bool), table
    )
    assert found[0].tolist() == pytest.approx([0.6, 0.8, 1.0])


def test_collaborative_scales_scores_to_the_unit_interval_within_the_catalogue():
    scores = torch.tensor([[-4.0, -2.0, -1.0, 0.0]])
    assert rewards.collaborative(
        torch.tensor([[1, 3]]), torch.ones(1, 2, dtype=torch.bool), scores
    )[0].tolist() == [0.5, 1.0]


def test_collaborative_scores_of_one_row_do_not_scale_those_of_another():
    """Each row's catalogue has its own lowest and highest score."""
    scores = torch.tensor([[-4.0, -2.0, 0.0], [-100.0, -95.0, -90.0]])
    found = rewards.collaborative(
        torch.tensor([[0, 1], [1, 2]]), torch.ones(2, 2, dtype=torch.bool), scores
    )
    assert found.tolist() == [[0.0, 0.5], [0.5, 1.0]]


def test_prefix_counts_levels_from_the_top_and_stops_at_the_first_wrong_one():
    codes = torch.tensor([[1, 2, 3], [1, 2, 9], [1, 9, 3], [9, 2, 3], [5, 6, -1]])
    items = torch.tensor([[0, 1, 2, 3]])
    found = rewards.prefix(items, torch.tensor([0]), torch.ones(1, 4, dtype=torch.bool), codes)
    assert found[0].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert rewards.prefix(
        torch.tensor([[4, 0]]), torch.tensor([4]), torch.ones(1, 2, dtype=torch.bool), codes
    )[0].tolist() == [1, 0]


def test_advantages_are_the_group_z_scores_of_the_paper():
    r = torch.tensor([[1.0, 0.0, 0.0, 3.0]])
    mean, std = 1.0, math.sqrt((0 + 1 + 1 + 4) / 3)
    expected = [(x - mean) / (std + 1e-4) for x in (1, 0, 0, 3)]
    assert objective.group_advantages(r, torch.ones(1, 4, dtype=torch.bool))[
        0
    ].tolist() == pytest.approx(expected, rel=1e-5)
    assert objective.group_advantages(r, torch.ones(1, 4, dtype=torch.bool), scale=False)[
        0
    ].tolist() == pytest.approx([0, -1, -1, 2])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_a_group_of_equal_rewards_has_exactly_no_signal(value):
    found = objective.group_advantages(
        torch.full((1, 7), value), torch.ones(1, 7, dtype=torch.bool)
    )
    assert found.tolist() == [[0.0] * 7]


def test_dead_places_take_no_part_in_mean_and_deviation():
    alive = torch.tensor([[True, True, False]])
    found = objective.group_advantages(torch.tensor([[1.0, 0.0, 50.0]]), alive)
    assert found[0].tolist() == pytest.approx(
        [0.5 / (math.sqrt(0.5) + 1e-4), -0.5 / (math.sqrt(0.5) + 1e-4), 0.0], rel=1e-5
    )
