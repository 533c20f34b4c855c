"""Validation while training ranks as evaluation does."""

import json

import pytest
import torch

import evaluate
from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.samples import fixed_subset
from minionerec.evaluation.ranking import validator
from minionerec.experiment.settings import EvaluateSettings
from minionerec.experiment.stages import evaluation_path
from minionerec.model.policy import Policy
from tests.worlds import tiny_run


@pytest.mark.parametrize("exclude", [False, True])
def test_a_validation_has_the_figures_that_evaluate_writes_for_the_valid_split(tmp_path, exclude):
    """Also where items of the history are never recommended: both leave them out."""
    torch.set_num_threads(1)
    experiment = tiny_run(tmp_path / "runs")
    catalogue = Catalogue.open(experiment)
    policy = Policy.create(catalogue)
    policy.model.get_output_embeddings().weight.data.normal_(std=0.5)
    folder = tmp_path / "model"
    folder.mkdir()
    policy.save(policy.model, folder)
    settings = EvaluateSettings(
        checkpoint=str(folder), split="valid", num_beams=10, exclude_history=exclude
    )
    experiment = experiment.changed({"evaluate": settings})
    path = evaluation_path(experiment)
    evaluate.evaluate(experiment, path)
    measured = json.loads((path / "metrics.json").read_text())

    valid = fixed_subset(catalogue.samples.splits["valid"], 0, 1)
    unwanted = fixed_subset(catalogue.seen("valid"), 0, 1) if exclude else None
    found = validator(policy, valid, 10, torch.device("cpu"), unwanted)(policy.model.eval())
    for key in ("HR@1", "HR@10", "NDCG@10", "coverage@10"):
        assert found[key] == pytest.approx(measured[key])
