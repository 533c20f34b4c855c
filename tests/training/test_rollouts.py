"""Rollouts: which noise, which model, which items, and for how many steps they are kept."""

from __future__ import annotations

import pytest
import torch

from minionerec.catalogue.rows import NO_TARGET, Row
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.settings import RLSettings
from minionerec.model.backbone import add_dropout
from minionerec.training import rewards
from minionerec.training.rollouts import Roller, RolloutBuffer, Rollouts, shares_of
from tests.worlds import random_catalogue, tiny_model

LEVELS = [list(range(10, 15)), list(range(15, 20)), list(range(20, 25))]
SIDS = random_catalogue(2, 60, 3, 5)


def rule(items, targets, alive, _histories):
    return {"rule": rewards.rule(items, targets, alive)}


def roller(sids=SIDS, **settings) -> Roller:
    chosen = RLSettings(**{"num_generations": 8, "rollout": "beam", **settings})
    return Roller(SidTrie(sids, LEVELS), chosen, "trie", rule)


def rows(*targets: int, prompt=(1, 2, 3)) -> list[Row]:
    return [Row("sid_to_sid", "", list(prompt), [], target) for target in targets]


# ------------------------------------------------------------------------------------------- buffer


def made(name: str) -> Rollouts:
    return Rollouts.none(torch.device("cpu"))._replace(metrics={"name": name})


def test_rollouts_are_made_on_the_first_pass_and_reused_in_order_on_the_others():
    """Two micro-batches per step, three steps per batch: new rollouts in steps 0, 3, 6."""
    buffer, calls, served = RolloutBuffer(passes=3, micro_batches=2), [], []

    def make():
        calls.append(f"rollout {len(calls)}")
        return made(calls[-1])

    for _ in range(12):
        served.append(buffer.next(make).metrics["name"])
    first, second = ["rollout 0", "rollout 1"], ["rollout 2", "rollout 3"]
    assert served == first * 3 + second * 3


def test_with_one_pass_every_micro_batch_gets_rollouts_of_its_own():
    buffer, numbers = RolloutBuffer(passes=1, micro_batches=2), iter(range(9))
    served = [buffer.next(lambda: made(str(next(numbers)))).metrics["name"] for _ in range(5)]
    assert served == ["0", "1", "2", "3", "4"]


# ---------------------------------------------------------------------------------- noise and model


@pytest.mark.parametrize("rollout", ["gumbel", "sample"])
def test_every_row_has_noise_of_its_own_that_does_not_depend_on_its_batch(rollout):
    model, same_prompt = tiny_model("qwen2", 40), rows(0, 1)
    both = roller(rollout=rollout).roll_out(model, same_prompt, seeds=[11, 12])
    alone = roller(rollout=rollout).roll_out(model, same_prompt[1:], seeds=[12])
    assert both.nodes[0].tolist() != both.nodes[1].tolist()
    assert both.nodes[1].tolist() == alone.nodes[0].tolist()


def test_the_policy_rolls_out_without_dropout_and_is_given_back_in_training():
    model = tiny_model("qwen2", 40)
    add_dropout(model, 0.5)
    expected = roller().roll_out(model.eval(), rows(0), seeds=[0])
    found = roller().roll_out(model.train(), rows(0), seeds=[0])
    assert torch.equal(found.old_logps, expected.old_logps)
    assert model.training
    roller().roll_out(model.eval(), rows(0), seeds=[0])
    assert not model.training


def test_a_low_temperature_draws_the_likeliest_items_and_a_high_one_all_of_them():
    """Logits are divided by it."""
    model, distinct = tiny_model("qwen2", 40), {}
    for temperature in (0.02, 1.0, 50.0):
        drawing = roller(rollout="sample", temperature=temperature, num_generations=64)
        found = drawing.roll_out(model, rows(0), seeds=[3])
        distinct[temperature] = len(set(found.nodes[0].tolist()))
    assert distinct[0.02] <= 2 < distinct[1.0] < distinct[50.0]
    likeliest = roller(num_generations=2).roll_out(model, rows(0), seeds=[0]).nodes[0, 0]
    cold = roller(rollout="sample", temperature=0.02, num_generations=64)
    assert likeliest in cold.roll_out(model, rows(0), seeds=[3]).nodes[0]


# -------------------------------------------------------------------------------------- shared SIDs


def test_a_sid_that_several_items_share_names_the_target_in_its_own_group_and_else_the_first():
    """Items 1, 4 and 5 are one SID to the policy; whichever of them is wanted, that SID is
    right.
    """
    sids = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (1, 0, 0), (1, 0, 0)]
    seen = []

    def reward(items, targets, alive, _histories):
        seen.append(items)
        return rule(items, targets, alive, _histories)

    settings = RLSettings(num_generations=6)
    shared = Roller(SidTrie(sids, LEVELS), settings, "trie", reward)
    found = shared.roll_out(tiny_model("qwen2", 40), rows(0, 1, 4, 5), seeds=[0, 0, 0, 0])
    assert [sorted(group) for group in seen[0].tolist()] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0, 2, 3, 4],
        [0, 2, 3, 5],
    ]
    assert found.alive.sum(1).tolist() == [4, 4, 4, 4]  # four distinct SIDs
    assert found.metrics["groups_with_hit"] == 1.0
    is_hit = found.advantages > 0
    assert is_hit.sum(1).tolist() == [1, 1, 1, 1]
    assert len(set(found.nodes[1:][is_hit[1:]].tolist())) == 1  # the same SID three times


# -------------------------------------------------------------------------------------------- S-DPO


def test_softmax_dpo_sees_the_target_beside_the_beams_own_misses():
    """Where the beams miss it, it takes the last one's place; all others stay as they were."""
    model, everything = tiny_model("qwen2", 40), rows(*range(60))
    plain = roller().roll_out(model, everything, seeds=[0] * 60)
    found = roller(objective="sdpo").roll_out(model, everything, seeds=[0] * 60)
    trie = roller().trie
    leaf_nodes = trie.leaf_node[torch.from_numpy(trie.leaf_of_item).long()]
    for row in range(60):
        target = int(leaf_nodes[row])
        before, after = plain.nodes[row].tolist(), found.nodes[row].tolist()
        expected = before if target in before else [*before[:-1], target]
        assert after == expected
        assert found.wanted[row].tolist() == [float(node == target) for node in after]
    assert plain.metrics["groups_with_hit"] < found.metrics["groups_with_hit"] == 1.0
    assert plain.wanted is None


@pytest.mark.parametrize("objective", ["grpo", "list"])
def test_a_prompt_without_a_target_keeps_its_beams_and_is_never_hit(objective):
    """Items 58 and 59 share a SID; it names the first of them where no target says otherwise."""
    sids = [*SIDS[:59], SIDS[58]]
    seen = []

    def reward(items, targets, alive, _histories):
        seen.append(items)
        return rule(items, targets, alive, _histories)

    settings = RLSettings(num_generations=59, objective=objective)
    shared = Roller(SidTrie(sids, LEVELS), settings, "trie", reward)
    model = tiny_model("qwen2", 40)
    found = shared.roll_out(model, rows(NO_TARGET, 59), seeds=[0, 0])
    assert sorted(seen[0][0].tolist()) == list(range(59))
    assert sorted(seen[0][1].tolist()) == [*range(58), 59]
    assert found.metrics["groups_with_hit"] == 0.5
    assert found.advantages[0].eq(0).all()
    # A list that is shorter than the catalogue: nothing is put in the place of its last item
    few = roller(objective=objective).roll_out(model, rows(NO_TARGET), seeds=[0])
    assert torch.equal(few.nodes, roller().roll_out(model, rows(0), seeds=[0]).nodes)


def test_what_is_wanted_are_the_rewards_as_shares_and_penalties_count_nothing():
    rewards_of_groups = torch.tensor([[3.0, 1.0, -2.0], [0.0, -1.0, 0.0]])
    assert shares_of(rewards_of_groups).tolist() == [[0.75, 0.25, 0.0], [0.0, 0.0, 0.0]]
