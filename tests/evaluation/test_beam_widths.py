"""The same rows at several numbers of beams.

python -m pytest tests/evaluation/test_beam_widths.py
"""

import json

import pytest
import torch

import evaluate
from minionerec.catalogue.inputs import Catalogue
from minionerec.evaluation.results import results
from minionerec.experiment.settings import EvaluateSettings
from minionerec.experiment.stages import evaluation_path
from minionerec.model.policy import Policy
from minionerec.pages import experiment_page
from tests.reference import plain_hr, plain_ndcg
from tests.worlds import plain_logps, tiny_run


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A random model's evaluation with 10 beams, at 1, 10 and all beams; the policy beside it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("beams")
    experiment = tiny_run(folder / "runs")
    policy = Policy.create(Catalogue.open(experiment))
    policy.model.get_output_embeddings().weight.data.normal_(std=0.5)
    (folder / "model").mkdir()
    policy.save(policy.model, folder / "model")
    settings = EvaluateSettings(
        checkpoint=str(folder / "model"),
        num_beams=10,
        bootstrap_samples=50,
        beam_widths=[10, 0, 1],
        beam_rows=12,
    )
    experiment = experiment.changed({"evaluate": settings})
    path = evaluation_path(experiment)
    evaluate.evaluate(experiment, path)
    return experiment, policy, json.loads((path / "metrics.json").read_text())


def test_all_beams_rank_by_the_exact_score_of_every_item(evaluated):
    """Scores from one plain forward per item; ``vocab`` log-probabilities added up over the levels."""
    experiment, policy, metrics = evaluated
    found = metrics["beam_widths"]
    assert found["rows"] == 12
    assert list(found["widths"]) == ["1", "10", "all"]
    samples = evaluate.fixed_subset(policy.catalogue.samples.splits["test"], 12, experiment.seed)
    model = policy.model.eval()
    hits, gains = [], []
    for sample in samples:
        prompt = policy.renderer.prompt("sid_to_sid", sample.history)
        scored = []
        for item in range(24):
            sequence = prompt + policy.renderer.completion("sid_to_sid", item)[:-1]
            total = sum(row.item() for row in plain_logps(model, sequence, len(prompt)))
            scored.append((-total, item))
        ranked = [str(item) for _, item in sorted(scored)]
        hits.append(plain_hr(ranked, str(sample.target), 10))
        gains.append(plain_ndcg(ranked, str(sample.target), 10))
    exact = found["widths"]["all"]
    assert exact["HR@10"] == pytest.approx(sum(hits) / 12)
    assert exact["NDCG@10"] == pytest.approx(sum(gains) / 12)
    assert exact["same_first_10"] == 1.0


def test_a_width_answers_for_no_more_than_it_ranks_and_says_how_much_of_the_exact_list_it_finds(
    evaluated,
):
    _, _, metrics = evaluated
    widths = metrics["beam_widths"]["widths"]
    assert set(widths["1"]) == {"HR@1", "same_first_10", "intervals"}
    assert set(widths["10"]["intervals"]) == {"HR@1", "HR@10", "NDCG@10"}
    assert widths["1"]["same_first_10"] == pytest.approx(0.1)
    assert 0.1 < widths["10"]["same_first_10"] <= 1.0


def test_the_widths_are_on_the_page(evaluated):
    experiment, _, _ = evaluated
    text = experiment_page.page(experiment, results(experiment))
    assert "<h2>Beams</h2>" in text
    for name in ("1 beams", "10 beams", "all beams"):
        assert (f"{name}</title>" in text) is (name != "1 beams")  # no NDCG@10 of one beam
