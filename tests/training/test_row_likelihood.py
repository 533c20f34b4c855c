"""SFT's loss inside RL: the same scale as the anchor on targets, every answer by its weight, and
alone the control of RL.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import torch

import rl
import sft
from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.rows import NO_TARGET, Label, Row
from minionerec.catalogue.trie import SidTrie
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import stage_path
from minionerec.model.policy import Policy
from minionerec.training.group_logps import GroupBatch
from minionerec.training.likelihood import RowLikelihood
from minionerec.training.objective import likelihood_anchor
from minionerec.training.rl_rows import rl_rows
from minionerec.training.rollouts import Roller
from tests.worlds import random_catalogue, tiny_model, tiny_run

LEVELS = [list(range(10, 15)), list(range(15, 20)), list(range(20, 25))]
TRIE = SidTrie(random_catalogue(2, 60, 3, 5), LEVELS)


def completion(item: int) -> list[int]:
    """SID tokens and the end of the sequence."""
    path = TRIE.item_path(item)
    return [LEVELS[level][int(TRIE.code[node])] for level, node in enumerate(path)] + [0]


def row(target: int, labels: tuple[Label, ...] = ()) -> Row:
    return Row("sid_to_sid", "", [1, 2, 3 + target % 3], completion(target), target, (0,), labels)


def loss_of(rows: list[Row], groups: float = 2.0) -> float:
    likelihood = RowLikelihood(TRIE, "trie", True, torch.device("cpu"))
    return likelihood(tiny_model("qwen2", 40), rows, groups).loss.item()


def test_without_labels_it_is_the_anchor_on_the_targets():
    rows = [row(7), row(31)]
    prompts = [one.prompt for one in rows]
    nodes = TRIE.leaf_node[:2].long()[:, None]
    alive = torch.ones(2, 1, dtype=torch.bool)
    batch = GroupBatch.make(prompts, nodes, alive, TRIE, True, [7, 31])
    targets = batch.forward(tiny_model("qwen2", 40), "trie", with_children=False).target_logps
    assert loss_of(rows) == pytest.approx(likelihood_anchor(targets, 2.0).item(), rel=1e-5)


def test_every_answer_counts_with_its_weight():
    weights = {7: 0.1, 31: 0.675, 13: 0.225}
    labels = [Label(item, completion(item), own, own) for item, own in weights.items()]
    of = {}
    for item in (7, 31, 13):
        answer = Row("sid_to_sid", "", row(7).prompt, completion(item), item, (0,))
        of[item] = loss_of([answer])
    expected = sum(weight * of[item] for item, weight in weights.items())
    assert loss_of([row(7, tuple(labels))]) == pytest.approx(expected, rel=1e-5)


def test_labels_weigh_in_rl_what_they_weighed_when_sft_ended(tmp_path):
    """Of a row SFT gave the teacher .8 at first and .25 at last; a target has the rest of it."""
    experiment = tiny_run(
        tmp_path,
        sft={"soft_labels": {"weight": 0.8, "final_weight": 0.25, "top_k": 3}},
        rl={"sft_weight": 1.0, "anchor": "labels"},
    )
    catalogue = Catalogue.open(experiment)
    rows, _ = rl_rows(catalogue, Policy.create(catalogue, 0.0).renderer)
    assert len(rows) == len(catalogue.samples.splits["train"])
    for one in rows:
        own = {label.item: label.own for label in one.labels}
        assert sum(own.values()) == pytest.approx(1.0)
        assert own[one.target_item] >= 0.75
        assert [label.own for label in one.labels] == [label.teacher for label in one.labels]


def test_a_process_without_rows_takes_part_with_a_loss_of_nothing():
    assert loss_of([]) == 0.0


@pytest.mark.parametrize("labelled", [False, True])
def test_the_control_of_rl_is_sft_continued_without_any_rollout(tmp_path, monkeypatch, labelled):
    """With labels it trains on open histories too; rewards and hints of the same YAML stay unused."""
    more = {"anchor": "labels", "open_histories": True} if labelled else {"hints": True}
    experiment = tiny_run(
        tmp_path,
        sft={"epochs": 1, "soft_labels": {"top_k": 3}, "teacher": {"markov": 1.0}},
        rl={"objective": "sft", "sft_weight": 1.0, "rewards": {"collaborative": 1.0}, **more},
    )

    def refuse(*_args, **_kwargs):
        raise AssertionError("rolled out")

    monkeypatch.setattr(Roller, "roll_out", refuse)
    for stage in (sft, rl):
        stage.train(experiment, stage_path(experiment, stage.__name__))
    assert not stage_path(experiment, "collaborative").exists()
    log = log_of(experiment)
    likelihoods = [line["label_logp"] for line in log if "label_logp" in line]
    assert likelihoods[-1] > likelihoods[0]
    assert not any("reward" in line for line in log)


def test_dropout_acts_in_the_loss_of_rl_and_not_on_the_model_it_begins_from(tmp_path):
    """The first loss is another one, the validation before it the same."""
    first = []
    experiment = tiny_run(tmp_path, sft={"epochs": 1}, rl={"objective": "sft", "sft_weight": 1.0})
    sft.train(experiment, stage_path(experiment, "sft"))
    for dropout in (0.0, 0.5):
        path = stage_path(experiment, "rl")
        rl.train(experiment.changed({"rl.dropout": dropout}), path)
        first.append(log_of(experiment))
        shutil.rmtree(path)
        shutil.rmtree(path.with_name("rl.partial"), ignore_errors=True)
    without, with_dropout = first
    assert without[0] == with_dropout[0] and "eval_NDCG@10" in without[0]
    assert without[1]["loss"] != with_dropout[1]["loss"]


def log_of(experiment: Experiment) -> list[dict]:
    lines = (stage_path(experiment, "rl") / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_who_rewards_teaches_the_labels_too(tmp_path):
    """Counts of how often items were taken, instead of the Markov chain that taught SFT."""
    experiment = tiny_run(
        tmp_path,
        sft={"soft_labels": {"top_k": 3}, "teacher": {"markov": 1.0}},
        rl={
            "sft_weight": 1.0,
            "anchor": "labels",
            "open_histories": True,
            "rewards": {"collaborative": 1.0},
            "teacher": {"popularity": 1.0},
        },
    )
    catalogue = Catalogue.open(experiment)
    rows, _ = rl_rows(catalogue, Policy.create(catalogue, 0.0).renderer)
    counts = Counter(item for sequence in catalogue.samples.train_sequences for item in sequence)
    third = sorted(counts.values())[-3]
    unknown = [one for one in rows if one.target_item == NO_TARGET]
    assert unknown
    for one in unknown:
        assert min(counts[label.item] for label in one.labels) >= third


def test_labels_as_anchor_need_the_labels_of_sft():
    with pytest.raises(ValueError, match="rl.anchor: labels needs sft.soft_labels"):
        Experiment(name="x", rl={"sft_weight": 0.1, "anchor": "labels"})
