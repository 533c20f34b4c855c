"""Networks asked about rows they have not learned.

python -m pytest tests/rankers/test_crossfit.py
"""

import json

import numpy as np
import pytest
import torch

import sft
from minionerec.catalogue.samples import Sample, Samples
from minionerec.experiment.settings import BaselineSettings
from minionerec.experiment.stages import stage_path
from minionerec.rankers import crossfit, experts, sequential
from minionerec.training import soft_labels
from tests.rankers.test_sequential import MAX_HISTORY, NUM_ITEMS, ring_samples, untrained
from tests.worlds import tiny_run, weights_digest

ONE_EPOCH = BaselineSettings(hidden_size=[16], epochs=1, dropout=[0.1], batch_size=16)


def rows_of(sequences) -> list[Sample]:
    """Every target of every sequence, with the latest items before it."""
    rows = []
    for user, sequence in enumerate(sequences):
        for place in range(1, len(sequence)):
            history = tuple(sequence[max(0, place - MAX_HISTORY) : place])
            rows.append(Sample(f"u{user}", history, sequence[place], place))
    return rows


def test_what_a_user_took_changes_nothing_about_the_network_that_is_asked_about_the_user():
    """Another history of one user: the other folds' networks differ, the user's own does not."""
    samples = ring_samples(num_users=24)
    sequences = samples.train_sequences
    changed = [list(sequence) for sequence in sequences]
    changed[5] = [(item + 4) % NUM_ITEMS for item in reversed(changed[5])]
    found = []
    for of_users in (sequences, changed):
        rows = rows_of(of_users)
        whole = Samples(samples.items, samples.splits, of_users)
        torch.manual_seed(0)
        trained = crossfit.train_folds("gru4rec", whole, rows, 1, MAX_HISTORY, ONE_EPOCH)
        found.append([model.items.weight.detach() for model in trained.models])
    own = crossfit.folds_of(rows)["u5"]
    for fold, (before, after) in enumerate(zip(*found, strict=True)):
        assert torch.equal(before, after) is (fold == own)


def test_a_row_of_train_is_answered_by_the_network_of_its_fold_and_any_other_by_all():
    models = [untrained("gru4rec", seed=seed).eval() for seed in range(crossfit.FOLDS)]
    expert = crossfit.network("gru4rec", models)
    histories = [(1, 2), (3,), (), (4, 5, 6), (1, 2)]
    folds = [0, 3, 1, 2, 1]
    alone = []
    for history, fold in zip(histories, folds, strict=True):
        if history:
            alone.append(sequential.score(models[fold], [history]).exp()[0].numpy())
        else:
            alone.append(np.zeros(NUM_ITEMS))
    np.testing.assert_allclose(
        expert.probabilities(histories, [0] * 5, folds), np.stack(alone), atol=1e-6
    )
    together = expert.probabilities(histories)
    each = [sequential.score(model, [(1, 2)]).exp()[0].numpy() for model in models]
    np.testing.assert_allclose(together[0], np.mean(each, axis=0), atol=1e-6)
    assert together[2].sum() == 0
    np.testing.assert_allclose(together[[0, 1, 3, 4]].sum(axis=1), 1.0, atol=1e-6)


def test_equal_rows_of_users_in_different_folds_are_each_asked_without_themselves():
    """Two users go from 0 to 1; a teacher that knows the first fold's answer only."""

    def probabilities(histories, targets=None, folds=None):
        table = np.zeros((len(histories), 4))
        for row, fold in enumerate(folds):
            table[row, 2 + fold] = 1.0
        return table

    teacher = experts.Expert("gru4rec", 4, probabilities, {})
    rows = [
        soft_labels.Row("sid_to_sid", user, [0], [1, 0], 1, (0,)) for user in ("u0", "u1", "u0")
    ]

    class OneToken:
        def completion(self, _task, item):
            return [item, 0]

    labelled = soft_labels.with_labels(
        rows,
        [teacher],
        [1.0],
        soft_labels.Recipe.of({"top_k": 1}),
        OneToken(),
        exclude_history=False,
        folds={"u0": 0, "u1": 1},
    )
    taught = [[label.item for label in row.labels if label.teacher] for row in labelled]
    assert taught == [[2], [3], [2]]


@pytest.mark.parametrize("rows", ["per_target", "per_user"])
def test_sft_trains_the_networks_of_its_teacher_once_and_is_made_from_them(tmp_path, capsys, rows):
    torch.set_num_threads(1)
    settings = {"soft_labels": {"top_k": 4}, "teacher": {"markov": 0.5, "gru4rec": 0.5}}
    experiment = tiny_run(tmp_path, sft={"epochs": 1, "rows": rows, **settings})
    experiment = experiment.changed({"baselines": ONE_EPOCH})
    path = stage_path(experiment, "sft")
    sft.train(experiment, path)
    told = capsys.readouterr().out
    assert "training 4 gru4rec networks, each without a part of the rows (once)" in told
    assert "teacher: 0.5 gru4rec" in told
    folder = stage_path(experiment, "gru4rec_folds")
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert any(parent.endswith("gru4rec_folds") for parent in manifest["parents"])
    # once: a second run finds them, and learns the same from them
    again = tiny_run(tmp_path, sft={"epochs": 1, "rows": rows, **settings})
    again = again.changed({"baselines": ONE_EPOCH})
    made = (folder / "MANIFEST.json").stat().st_mtime_ns
    digest = weights_digest(path)
    path.rename(tmp_path / "before")
    sft.train(again, path)
    assert "networks, each without" not in capsys.readouterr().out
    assert (folder / "MANIFEST.json").stat().st_mtime_ns == made
    assert weights_digest(path) == digest
