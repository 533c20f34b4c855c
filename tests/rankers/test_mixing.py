"""Weights tried on validation rows."""

import numpy as np
import pandas as pd
import pytest

from minionerec.catalogue.samples import Sample, Samples
from minionerec.rankers import mixing
from minionerec.rankers.experts import best_of
from minionerec.rankers.fusion import Lists


def test_the_best_mix_joins_rankers_that_are_right_about_different_rows():
    """The first ranker is sure and right about row 0, the second about row 1; else both guess."""
    valid = [Sample("a", (0,), 3, 0), Sample("b", (0,), 5, 0)]
    sure, unsure = [0.9, 0.1], [0.5, 0.5]
    first = Lists(np.array([[3, 1], [1, 2]]), np.array([sure, unsure]))
    second = Lists(np.array([[1, 2], [5, 1]]), np.array([unsure, sure]))
    found = mixing.tried(
        {}, {0.1: {"markov": first, "item_knn": second}}, valid, num_items=8, by="NDCG@10"
    )
    assert len(found) == 11
    best = found[0]
    assert best.metrics["HR@1"] == 1.0
    assert 0 < best.weights["markov"] < 1
    alone = next(mix for mix in found if mix.weights["markov"] == 1.0)
    assert alone.metrics["HR@1"] == 0.5
    assert alone.metrics["NDCG@10"] == 0.5
    half = next(mix for mix in found if mix.weights["markov"] == 0.5)
    assert half.metrics["log p"] == pytest.approx(np.log(0.9 * 0.45 + 0.1 / 8))


def test_texts_are_asked_at_every_temperature_and_rules_once(tmp_path):
    sequences = [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1]]
    valid = [Sample(f"u{n}", tuple(own[:3]), own[3], 0) for n, own in enumerate(sequences)]
    items = pd.DataFrame({"item_id": list("abcdefgh")})
    samples = Samples(items, {"train": [], "valid": valid, "test": []}, sequences)
    np.save(tmp_path / "embeddings.npy", np.random.default_rng(0).normal(size=(8, 3)))
    found = mixing.rankers_lists(samples, valid, tmp_path / "embeddings.npy", None)
    assert list(found) == list(mixing.TEMPERATURES)
    sharpest = [lists["text_knn"].weights.max() for lists in found.values()]
    assert (np.diff(sharpest) < 0).all()
    assert len({id(lists["markov"]) for lists in found.values()}) == 1


def test_measurements_of_ranks_worked_by_hand():
    found = mixing.measured(np.array([0, 2, 9, 10, 49, 50, 10**9]))
    assert found["HR@1"] == pytest.approx(1 / 7)
    assert found["HR@10"] == pytest.approx(3 / 7)
    assert found["HR@50"] == pytest.approx(5 / 7)
    gains = 1 + 1 / np.log2(4) + 1 / np.log2(11)
    assert found["NDCG@10"] == pytest.approx(gains / 7)


def test_weights_are_written_as_yaml_reads_them():
    assert mixing.in_yaml({"markov": 0.7, "item_knn": 0.0, "text_knn": 0.3}) == (
        "{markov: 0.7, text_knn: 0.3}"
    )


def test_what_a_list_is_too_short_for_counts_nothing_in_a_mix():
    probabilities = np.array([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
    found = best_of(probabilities, 2)
    np.testing.assert_allclose(found[0], [4 / 7, 3 / 7, 0, 0])
    np.testing.assert_allclose(found[1], probabilities[1])
    np.testing.assert_array_equal(best_of(probabilities, 9), probabilities)
