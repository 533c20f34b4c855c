"""Hints: the fewest true codes that put the target among the beams, and what is made of them."""

from __future__ import annotations

import json

import pytest
import torch

import rl
import sft
from minionerec.catalogue.rows import Row
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.settings import RLSettings
from minionerec.experiment.stages import stage_path
from minionerec.model.beam_search import constrained_beam_search
from minionerec.model.decoders import make_decoder
from minionerec.training import hints, rewards
from minionerec.training.group_logps import GroupBatch
from minionerec.training.group_loss import GroupLoss
from minionerec.training.rollouts import Roller, given_nodes
from tests.worlds import random_catalogue, tiny_model, tiny_run

LEVELS = [list(range(10, 15)), list(range(15, 20)), list(range(20, 25))]
SIDS = random_catalogue(2, 60, 3, 5)
PROMPT = [1, 2, 3]


def rows(*targets: int) -> list[Row]:
    return [Row("sid_to_sid", "", PROMPT, [], target) for target in targets]


def search(model, prompts, sids, levels, beams, given=None):
    trie = SidTrie(sids, levels)
    decoder = make_decoder(model)
    return trie, constrained_beam_search(
        decoder, prompts, trie, beams, normalize="trie", given=given
    )


@pytest.mark.parametrize("codes", [1, 2])
def test_given_codes_are_as_if_they_stood_in_the_prompt(codes):
    """The reference searches the catalogue below them, behind a prompt that ends in them."""
    model, target = tiny_model("qwen2", 40), 7
    trie = SidTrie(SIDS, LEVELS)
    given = given_nodes(trie, rows(target, 0), [codes, 0])
    _, found = search(model, [PROMPT, PROMPT], SIDS, LEVELS, 6, given)
    prefix = SIDS[target][:codes]
    below = [item for item, sid in enumerate(SIDS) if sid[:codes] == prefix]
    longer = PROMPT + [LEVELS[level][code] for level, code in enumerate(prefix)]
    rest = [SIDS[item][codes:] for item in below]
    small, expected = search(model, [longer], rest, LEVELS[codes:], 6)

    alive = found.leaves[0] >= 0
    got = [trie.items_of_leaf(leaf)[0] for leaf in found.leaves[0][alive].tolist()]
    count = int((expected.leaves[0] >= 0).sum())
    best_first = [below[small.items_of_leaf(leaf)[0]] for leaf in expected.leaves[0].tolist()]
    assert got == best_first[:count]
    torch.testing.assert_close(
        found.token_logps[0, :count, codes:], expected.token_logps[0, :count], atol=1e-5, rtol=1e-5
    )
    # the other prompt of the batch is free
    _, alone = search(model, [PROMPT], SIDS, LEVELS, 6)
    assert found.leaves[1].tolist() == alone.leaves[0].tolist()


@pytest.mark.parametrize("rollout", ["gumbel", "sample"])
def test_drawn_rollouts_keep_to_their_hints_too(rollout):
    settings = RLSettings(num_generations=8, rollout=rollout)
    roller = Roller(
        SidTrie(SIDS, LEVELS),
        settings,
        "trie",
        lambda items, targets, alive, _: {"rule": rewards.rule(items, targets, alive)},
    )
    found = roller.roll_out(tiny_model("qwen2", 40), rows(7, 9), seeds=[1, 2], given=[1, 2])
    for group, (target, codes) in enumerate([(7, 1), (9, 2)]):
        for node in found.nodes[group][found.alive[group]]:
            leaf = int(roller.trie.leaf[node])
            item = roller.trie.items_of_leaf(leaf)[0]
            assert SIDS[item][:codes] == SIDS[target][:codes]


def test_every_row_gets_the_least_number_of_codes_that_brings_its_target_in():
    model, trie = tiny_model("qwen2", 40), SidTrie(SIDS, LEVELS)
    everything = rows(*range(60))
    found = hints.least_hints(model, everything, trie, 4, "trie")
    assert set(found) == {0, 1, 2}
    for row, codes in zip(everything, found, strict=True):
        for number in range(codes + 1):
            given = given_nodes(trie, [row], [number])
            _, beams = search(model, [PROMPT], SIDS, LEVELS, 4, given)
            leaf = int(trie.leaf_of_item[row.target_item])
            # One code is left to generate, whether that brings the target in or not
            assert (leaf in beams.leaves[0].tolist()) == (number == codes) or codes == 2


def test_a_short_sid_keeps_a_code_to_generate():
    sids = [(0,), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]
    found = hints.least_hints(
        tiny_model("qwen2", 40), rows(*range(6)), SidTrie(sids, LEVELS[:2]), 1, "trie"
    )
    assert found[0] == 0 and max(found) == 1


def test_codes_of_a_hint_have_no_policy_gradient_but_may_have_a_likelihood():
    model, trie = tiny_model("qwen2", 40), SidTrie(SIDS, LEVELS)

    def reward(items, targets, alive, _):
        return {"rule": (items % 3).float()}

    losses = {}
    for weight in (0.0, 0.5):
        settings = RLSettings(num_generations=4, beta=0.0, hints=True, hint_weight=weight)
        roller = Roller(trie, settings, "trie", reward)
        rollouts = roller.roll_out(model, rows(7, 9), seeds=[0, 0], given=[1, 0])
        batch = GroupBatch.make(
            rollouts.prompts, rollouts.nodes, rollouts.alive, trie, given=rollouts.given
        )
        assert not batch.mask[0, :, 0].any()
        assert batch.mask[0, rollouts.alive[0], 1:].all() and batch.mask[1, :, 0].all()
        loss = GroupLoss(trie, settings, "trie", True)
        losses[weight] = loss(model, lambda *_: None, rollouts, [0, 1]).loss.item()
    first_code = hint_logp(model, trie, 7)
    assert losses[0.5] - losses[0.0] == pytest.approx(-0.5 * first_code / 3 / 2, abs=1e-5)


def hint_logp(model, trie, target: int) -> float:
    """Log-probability of the target's first code among all first codes, by a plain forward."""
    logits = model(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    first_codes = sorted({sid[0] for sid in SIDS})
    legal = torch.tensor([LEVELS[0][code] for code in first_codes])
    return logits[legal].log_softmax(-1)[first_codes.index(SIDS[target][0])].item()


def test_hints_are_made_once_for_a_checkpoint_and_anew_for_another(tmp_path, monkeypatch, capsys):
    torch.set_num_threads(1)
    experiment = tiny_run(
        tmp_path,
        rl={
            "num_generations": 4,
            "batch_size": 64,
            "epochs": 0.3,
            "evals": 1,
            "eval_rows": 5,
            "eval_beams": 10,
            "hints": True,
            "sft_weight": 0.01,
            "hint_weight": 0.01,
        },
        sft={"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "batch_size": 64, "eval_rows": 5},
    )
    sft.train(experiment, stage_path(experiment, "sft"))
    made = []
    original = hints.least_hints

    def counting(*arguments):
        made.append(len(arguments[1]))
        return original(*arguments)

    monkeypatch.setattr(hints, "least_hints", counting)
    rl.train(experiment, stage_path(experiment, "rl"))
    assert "codes of their target to hold it among 4 beams" in capsys.readouterr().out
    file = stage_path(experiment, hints.HINTS_FILE)
    first = json.loads(file.read_text())
    assert made == [len(first["codes"])]

    # What was written for something else, or is cut off, is made anew
    rl.train(experiment, tmp_path / "again")
    assert len(made) == 1
    file.write_text(json.dumps(first | {"digest": "another checkpoint"}))
    rl.train(experiment, tmp_path / "other")
    file.write_text("{")
    rl.train(experiment, tmp_path / "cut")
    assert len(made) == 3 and json.loads(file.read_text()) == first
