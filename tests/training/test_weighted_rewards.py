"""The collaborative reward: any mix of rankers, asked without the row's own transition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.rows import NO_TARGET
from minionerec.experiment.settings import RLSettings
from minionerec.rankers import experts
from minionerec.training.weighted_rewards import weighted_rewards
from tests.worlds import tiny_run

TEACHER = {"markov": 0.75, "text_knn": 0.25}
OPEN = {"open_histories": True, "rewards": {"collaborative": 1.0}, "teacher": TEACHER}


def reward_of(folder, rows, **changes):
    """The collaborative reward of every item for some train rows, and what it is made from."""
    settings = {"rewards": {"collaborative": 0.5}, "teacher": TEACHER, **changes}
    catalogue = Catalogue.open(tiny_run(folder, rl=settings))
    samples = catalogue.samples.splits["train"][:rows]
    items = torch.arange(24).expand(rows, 24)
    reward, models = weighted_rewards(catalogue)
    found = reward(
        items,
        torch.tensor([sample.target for sample in samples]),
        torch.ones(rows, 24, dtype=torch.bool),
        [sample.history for sample in samples],
    )
    assert models == []  # rankers that only count are no trained model of another stage
    return catalogue, samples, found["collaborative"].numpy()


def test_it_is_what_the_mix_holds_of_an_item_in_shares_of_its_favourite(tmp_path):
    catalogue, samples, found = reward_of(tmp_path, 6)
    teacher = experts.build(
        list(TEACHER),
        catalogue.samples,
        embeddings_file=catalogue.sids_stage.path / "embeddings.npy",
        temperature=0.07,
    )
    expected = experts.mix(
        teacher,
        list(TEACHER.values()),
        [sample.history for sample in samples],
        [sample.target for sample in samples],
    ).toarray()
    expected -= expected.min(axis=1, keepdims=True)
    np.testing.assert_allclose(
        found, 0.5 * expected / expected.max(axis=1, keepdims=True), rtol=1e-4, atol=1e-6
    )


def test_the_rows_own_transition_is_no_evidence_for_its_own_reward(tmp_path):
    """A pair that only this row has: Markov has counted it once, for this very row."""
    catalogue = Catalogue.open(tiny_run(tmp_path))
    followers: dict[tuple[int, int], int] = {}
    for sequence in catalogue.samples.train_sequences:
        for place, item in enumerate(sequence):
            for other in sequence[:place]:
                for pair in ((other, item), (item, other)):
                    followers[pair] = followers.get(pair, 0) + 1
    train = catalogue.samples.splits["train"]
    alone = [
        number
        for number, sample in enumerate(train)
        if sample.target not in sample.history
        and all(followers[item, sample.target] == 1 for item in sample.history)
    ]
    assert alone
    rows = alone[-1] + 1
    _, samples, found = reward_of(tmp_path, rows, teacher={"markov": 1.0})
    for number in alone:
        assert found[number, samples[number].target] == 0.0


def test_without_a_target_the_teacher_alone_rewards_and_leaves_nothing_out(tmp_path):
    """Four rewards that need a target give 0; the teacher is asked as about a held-out row."""
    names = ("rule", "ranking", "semantic", "prefix", "collaborative")
    settings = {"rewards": dict.fromkeys(names, 1.0), "teacher": TEACHER}
    catalogue = Catalogue.open(tiny_run(tmp_path, rl=settings))
    histories = [tuple(sequence[-5:]) for sequence in catalogue.samples.train_sequences[:4]]
    items = torch.arange(24).expand(4, 24)
    alive = torch.ones(4, 24, dtype=torch.bool)
    reward, _ = weighted_rewards(catalogue)
    found = reward(items, torch.full((4,), NO_TARGET), alive, histories)
    for name in names[:-1]:
        assert found[name].eq(0).all()
    teacher = experts.build(
        list(TEACHER),
        catalogue.samples,
        embeddings_file=catalogue.sids_stage.path / "embeddings.npy",
        temperature=0.07,
    )
    expected = experts.mix(teacher, list(TEACHER.values()), histories).toarray()
    expected -= expected.min(axis=1, keepdims=True)
    expected /= expected.max(axis=1, keepdims=True)
    np.testing.assert_allclose(found["collaborative"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "sft"}, "sft has no loss but that of sft_weight"),
        ({"anchor": "labels"}, "labels has no effect without sft_weight"),
        ({"open_histories": True}, "needs rl.teacher"),
        (OPEN | {"hints": True}, "have no target to give away"),
        (OPEN | {"sft_weight": 0.1}, "set it to labels"),
        ({"teacher": {"markov": 1.0}}, "has no effect without rl.rewards"),
        ({"hint_weight": 0.1}, "has no effect without rl.hints"),
        ({"rewards": {"collaborative": 1.0}, "teacher": {"markov": 0}}, "every weight is 0"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RLSettings(**changes)
