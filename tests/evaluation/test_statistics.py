"""Uncertainty: what is corrected, what is resampled, what is paired.

python -m pytest tests/evaluation/test_statistics.py
"""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest

import compare as command
from minionerec.evaluation import scoring, statistics

ITEMS = [f"i{n}" for n in range(12)]


def row(user: str, target: str, place: int) -> dict:
    """A list of all items with the target at a place, counted from 0."""
    others = [item for item in ITEMS if item != target]
    items = [*others[:place], target, *others[place:]]
    scores = [-float(n) for n in range(len(items))]
    return {"user_id": user, "target_item_id": target, "item_ids": items, "scores": scores}


def test_holms_correction_is_that_of_the_step_down_rule():
    """By hand: .01 * 4, .03 * 3, then .035 * 2 = .07, which must not fall below .09, then .5 * 1."""
    assert statistics.holm([0.03, 0.5, 0.01, 0.035]) == pytest.approx([0.09, 0.5, 0.04, 0.09])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@pytest.mark.parametrize("seed", range(5))
def test_holms_correction_is_the_closed_test_of_bonferroni(seed):
    """A hypothesis falls when every set of hypotheses that holds it is refused by Bonferroni."""
    p_values = [random.Random(seed).random() ** 3 for _ in range(5)]
    sets = [s for n in range(1, 6) for s in itertools.combinations(range(5), n)]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s)
        for i in range(5)
    ]
    assert statistics.holm(p_values) == pytest.approx(expected)


def test_a_difference_is_marked_by_its_corrected_p_value(tmp_path, capsys):
    """Six users, all better: of 64 sign patterns 2 are as extreme, p is .031; of three metrics
    .094.
    """
    targets = [(f"u{n}", ITEMS[n]) for n in range(6)]
    for name, place in (("a", 1), ("b", 0)):
        rows = [row(user, target, place) for user, target in targets]
        (tmp_path / name).mkdir()
        metrics = scoring.score_predictions(rows, None, ITEMS, {}, bootstrap_samples=0)
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics | {"split": "test"}))
        (tmp_path / name / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def marks(metrics: str) -> list[tuple[float, float, bool]]:
        out = tmp_path / "out.json"
        command.main(
            [str(tmp_path / "a"), str(tmp_path / "b"), "--metric", metrics, "--json", str(out)]
        )
        found = json.loads(out.read_text())["differences"]
        return [(row["p_value"], row["holm_p_value"], row["significant"]) for row in found]

    ((p_value, corrected, significant),) = marks("HR@1")
    assert p_value == corrected == pytest.approx(2 / 64, abs=0.01) and significant
    assert "better *" in capsys.readouterr().out
    for p_value, corrected, significant in marks("HR@1,NDCG@1,MRR@1"):
        assert corrected == pytest.approx(3 * p_value) and p_value < 0.05 < corrected
        assert not significant
    assert "better" not in capsys.readouterr().out


def test_the_bootstrap_is_of_the_mean_over_rows_not_of_the_mean_over_users():
    """One user of forty has 60 of the 99 rows, all hits; how often that user is drawn decides."""
    users = ["heavy"] * 60 + [f"u{n}" for n in range(39)]
    values = np.array([1.0] * 60 + [0.0] * 39)
    low, high = statistics.bootstrap_intervals({"x": values}, users, 4000, seed=0)["x"]
    rng = random.Random(1)
    means = []
    for _ in range(4000):
        drawn = [rng.randrange(40) for _ in range(40)]
        hits = 60 * drawn.count(0)
        means.append(hits / (hits + 40 - drawn.count(0)))
    means.sort()
    # Never drawn: 0; drawn three times: 180 of 217 rows. A mean over users would end at .075.
    assert (low, high) == pytest.approx((means[100], means[3900]), abs=0.01)
    assert low == 0.0 and high > 0.8


def test_rows_are_paired_by_user_and_target_whatever_their_order():
    """Values of both rankings vary, so a pair of other rows would give another difference."""
    rng = random.Random(3)
    pairs = [(f"u{n % 9}", rng.choice(ITEMS)) for n in range(40)]
    a = [row(user, target, rng.randrange(12)) for user, target in pairs]
    b = [row(user, target, rng.randrange(12)) for user, target in pairs]
    expected = statistics.compare(a, b, samples=200)
    by_user = sorted(range(40), key=lambda n: (pairs[n], n))
    reversed_users = sorted(by_user, key=lambda n: pairs[n], reverse=True)
    shuffled = sorted(range(40), key=lambda n: (rng.random(), pairs[n]))
    # A user's repeated target is paired by its order of appearance, which a stable order keeps.
    shuffled = sorted(shuffled, key=lambda n: n if pairs.count(pairs[n]) > 1 else -1)
    for order in (by_user, reversed_users, shuffled):
        assert statistics.compare(a, [b[n] for n in order], samples=200) == expected
    misses = sum(x["item_ids"][0] != x["target_item_id"] for x in a)
    hits = sum(y["item_ids"][0] == y["target_item_id"] for y in b)
    found = statistics.compare(a, b, keys=("HR@1",), samples=200)["HR@1"]
    assert found["difference"] == pytest.approx((hits - (40 - misses)) / 40)
