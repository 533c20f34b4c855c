"""Validation while training ranks as evaluation does."""

import json

import pytest
import torch

import evaluate
from minionerec.catalogue import inputs
from minionerec.catalogue.prompts import TEMPLATES
from minionerec.catalogue.samples import fixed_subset, seen_items
from minionerec.evaluation.ranking import validator
from minionerec.experiment import artifacts
from minionerec.experiment.settings import EvaluateSettings
from minionerec.model import backbone
from tests.worlds import tiny_run


@pytest.mark.parametrize("exclude", [False, True])
def test_a_validation_has_the_figures_that_evaluate_writes_for_the_valid_split(tmp_path, exclude):
    """Also where items of the history are never recommended: both leave them out."""
    torch.set_num_threads(1)
    experiment = tiny_run(tmp_path / "runs")
    data_dir = artifacts.stage_path(experiment, "data")
    sids_dir = artifacts.stage_path(experiment, "sids")
    samples, sids = inputs.load_catalogue(experiment, data_dir, sids_dir)
    model, tokenizer = backbone.build(experiment.model, sids, inputs.texts(samples.items), seed=1)
    model.get_output_embeddings().weight.data.normal_(std=0.5)
    folder = tmp_path / "model"
    folder.mkdir()
    backbone.save(model, tokenizer, sids_dir / "sids.json", TEMPLATES["compact"], folder)
    settings = EvaluateSettings(
        checkpoint=str(folder), split="valid", num_beams=10, exclude_history=exclude
    )
    experiment = experiment.changed({"evaluate": settings})
    path = artifacts.evaluation_path(experiment)
    evaluate.evaluate(experiment, path)
    measured = json.loads((path / "metrics.json").read_text())

    template = TEMPLATES["compact"]
    validate = validator(
        fixed_subset(samples.splits["valid"], 0, 1),
        inputs.renderer(tokenizer, template, sids, samples, experiment.model.max_tokens),
        inputs.trie(sids, tokenizer),
        sids,
        num_beams=10,
        normalize=experiment.model.normalize,
        unwanted=fixed_subset(seen_items(data_dir, "valid"), 0, 1) if exclude else None,
    )
    found = validate(model.eval())
    for key in ("HR@1", "HR@10", "NDCG@10", "coverage@10"):
        assert found[key] == pytest.approx(measured[key])
