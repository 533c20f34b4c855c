"""``evaluate.fusion``: a ranking of its own beside the model's, which stays as it is."""

import json
import math

import pytest
import torch

import evaluate
import recommend
from baselines import mix
from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.samples import load_samples, seen_items
from minionerec.errors import UserError
from minionerec.evaluation import fused
from minionerec.evaluation.prediction_files import copy_of
from minionerec.evaluation.results import results
from minionerec.experiment import config
from minionerec.experiment.lineage import is_done, is_finished
from minionerec.experiment.settings import BaselineSettings, EvaluateSettings
from minionerec.experiment.stages import evaluation_path, fusion_path, result_name, stage_path
from minionerec.model.policy import Policy
from tests.worlds import tiny_run

WEIGHTS = {"model": 0.5, "markov": 0.3, "text_knn": 0.2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An experiment with a random model, ranked on valid and test rows by the model alone."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("fusion")
    experiment = tiny_run(folder / "runs")
    policy = Policy.create(Catalogue.open(experiment))
    policy.model.get_output_embeddings().weight.data.normal_(std=0.5)
    (folder / "model").mkdir()
    policy.save(policy.model, folder / "model")
    settings = EvaluateSettings(checkpoint=str(folder / "model"), bootstrap_samples=20)
    experiment = experiment.changed({"evaluate": settings})
    for split in ("valid", "test"):
        evaluate.evaluate(*with_settings(experiment, split=split))
    return experiment


def with_settings(experiment, **changes):
    """The experiment with other settings of ``evaluate``, and where the model's ranking is."""
    changed = experiment.changed({"evaluate": experiment.evaluate.changed(changes)})
    return changed, evaluation_path(changed)


def read(path):
    file = path / "predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert list(copy_of(file)) == rows
    return rows


def test_a_fusion_is_written_beside_the_models_ranking_and_leaves_it_as_it_was(world):
    experiment, path = with_settings(world, fusion=WEIGHTS)
    before = (path / "predictions.jsonl").read_bytes()
    assert not is_finished(experiment, "evaluate")
    evaluate.rank_and_fuse(experiment, path)
    target = fusion_path(experiment)
    own = result_name(experiment.evaluate.checkpoint)
    assert target.name == f"{own}-fusion-test" and own.startswith("model-")
    assert (path / "predictions.jsonl").read_bytes() == before
    # finished is finished, for either; other weights are another fusion
    assert is_finished(experiment, "evaluate")
    assert is_done(with_settings(world)[0], "evaluate", path)
    other, _ = with_settings(world, fusion={"model": 0.9, "markov": 0.1})
    with pytest.raises(UserError, match="was made with other settings"):
        is_done(other, "fusion", target)
    metrics = json.loads((target / "metrics.json").read_text())
    assert metrics["fusion"] == WEIGHTS
    assert metrics["invalid"] == metrics["duplicates"] == 0
    assert set(metrics["chosen"]) == {"markov", "text_knn"}
    assert {result.directory for result in results(experiment)} == {path, target}


def test_a_fusion_with_a_network_trains_it_on_first_use_and_is_made_from_it(world, tmp_path):
    experiment, _ = with_settings(world, fusion={"model": 0.5, "gru4rec": 0.5})
    small = BaselineSettings(hidden_size=[16], dropout=[0.1], epochs=1)
    experiment = tiny_run_as(experiment, tmp_path).changed({"baselines": small})
    path = evaluation_path(experiment)
    evaluate.rank_and_fuse(experiment, path)
    target = fusion_path(experiment)
    metrics = json.loads((target / "metrics.json").read_text())
    assert metrics["chosen"] == {"gru4rec": {"folds": 4}}
    parents = json.loads((target / "MANIFEST.json").read_text())["parents"]
    assert any(parent.endswith("gru4rec_folds") for parent in parents)
    # the network is there now, so that weights with it are tried too
    mix.try_mixes(experiment.changed({"evaluate.split": "valid"}))


def test_all_weight_on_the_model_is_the_models_own_ranking(world, tmp_path):
    experiment, path = with_settings(world, fusion={"model": 1.0}, split="valid")
    evaluate.fuse(experiment, path)
    for own, united in zip(read(path), read(fusion_path(experiment)), strict=True):
        assert united["item_ids"] == own["item_ids"][: len(united["item_ids"])]
        total = sum(math.exp(score) for score in own["scores"])
        first = math.exp(own["scores"][0]) / total
        assert united["scores"][0] == pytest.approx(first, abs=1e-5)


def test_what_is_excluded_is_excluded_from_a_fusion_too(world, tmp_path):
    experiment, _ = with_settings(world, exclude_history=True, fusion=WEIGHTS)
    experiment = tiny_run_as(experiment, tmp_path)
    path = evaluation_path(experiment)
    evaluate.evaluate(experiment, path)
    evaluate.fuse(experiment, path)
    data_dir = stage_path(experiment, "data")
    samples = load_samples(data_dir, 5)
    ids = samples.item_ids
    seen = seen_items(samples.splits["test"])
    for record, items in zip(read(fusion_path(experiment)), seen, strict=True):
        assert not {ids[item] for item in items} & set(record["item_ids"])


def tiny_run_as(experiment, folder):
    """The same experiment in a folder of its own."""
    moved = tiny_run(folder)
    return moved.changed({"evaluate": experiment.evaluate})


def test_recommend_shows_the_fusion_that_evaluation_measures(world, capsys):
    """Rows of one history of the test split, ranked by both ways."""
    experiment, path = with_settings(world, fusion=WEIGHTS)
    evaluated = read(fusion_path(experiment))[0]
    samples = load_samples(stage_path(experiment, "data"), 5)
    sample = samples.splits["test"][0]
    capsys.readouterr()
    recommend.recommend(experiment, [samples.item_ids[item] for item in sample.history], 5)
    shown = capsys.readouterr().out.split("recommended:\n")[1].splitlines()
    assert [line.split()[2] for line in shown] == evaluated["item_ids"][:5]
    without, _ = with_settings(experiment, exclude_history=True)
    recommend.recommend(without, ["i3"], 24)
    shown = capsys.readouterr().out.split("recommended:\n")[1].splitlines()
    assert len(shown) == 23
    assert "i3" not in [line.split()[2] for line in shown]


def test_a_ranking_of_other_rows_is_refused_in_one_line(world):
    experiment, path = with_settings(world)
    samples = load_samples(stage_path(experiment, "data"), 5)
    with pytest.raises(UserError, match=r"predictions.jsonl: ranks other rows than the experiment"):
        fused.read_model_lists(
            path / "predictions.jsonl", samples.splits["valid"], samples.item_ids
        )


def test_weights_are_tried_on_validation_rows_in_one_table(world, capsys):
    experiment, _ = with_settings(world)
    mix.try_mixes(experiment.changed({"evaluate.split": "valid"}))
    told = capsys.readouterr().out
    assert "teacher" in told
    assert "fusion" in told
    assert "model alone" in told
    line = next(row for row in told.splitlines() if row.strip().startswith("fusion: {"))
    assert "temperature" in line


def test_a_fusion_of_no_weight_is_refused_before_anything_runs(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("evaluate:\n  fusion: {model: 0, markov: 0}\n")
    with pytest.raises(UserError, match="evaluate.fusion: every weight is 0; give the model or a"):
        config.read_experiment(file)
