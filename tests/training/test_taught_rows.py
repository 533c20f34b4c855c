"""Rows with labels that are made when they are read, against the same rows made at once.

python -m pytest tests/training/test_taught_rows.py
"""

from __future__ import annotations

import numpy as np

from minionerec.catalogue import rows as catalogue_rows
from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.rows import mixture, users_of
from minionerec.model.policy import Policy
from minionerec.training import soft_labels
from minionerec.training.taught_rows import TaughtRows, num_labelled
from tests.worlds import tiny_run

TASKS = {"sid_to_sid": 1.0, "title_to_sid": 1.0, "titles_to_sid": 0.5}


def test_rows_of_a_large_catalogue_have_the_labels_that_those_of_a_small_one_have(
    tmp_path, monkeypatch
):
    """With rows of items and of the ends of users behind them, which are grouped by user, too."""
    settings = {"tasks": TASKS, "teacher": {"markov": 0.7, "item_knn": 0.3}}
    experiment = tiny_run(tmp_path, sft=settings)
    catalogue = Catalogue.open(experiment)
    policy = Policy.create(catalogue, 0.0)
    recipe = soft_labels.Recipe.of({"top_k": 3, "items": 1, "open_histories": 1})
    taught = []
    for few in (10**6, 0):
        monkeypatch.setattr(catalogue_rows, "FEW", few)
        train = catalogue.samples.splits["train"]
        mixed = mixture(TASKS, train, policy.renderer, 24, seed=1)
        taught.append(soft_labels.taught(catalogue, mixed, policy.renderer, recipe)[0])
    at_once, when_read = taught
    assert isinstance(at_once, list)
    assert isinstance(when_read, TaughtRows)
    assert list(when_read) == at_once
    assert 0 < num_labelled(at_once) == num_labelled(when_read) < len(at_once)
    groups = [users_of(rows) for rows in taught]
    np.testing.assert_array_equal(groups[0] < 0, groups[1] < 0)
    pairs = set(zip(groups[0].tolist(), groups[1].tolist(), strict=True))
    for side in zip(*pairs, strict=True):
        assert len(set(side)) == len(pairs)  # the same users, whatever their numbers
