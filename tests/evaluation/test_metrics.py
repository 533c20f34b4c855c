"""Metrics and reports. Run: python -m pytest tests/evaluation/test_metrics.py"""

import json
import math
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from minionerec.errors import UserError
from minionerec.evaluation import metrics, statistics
from minionerec.evaluation import slices as slices_of_rows
from minionerec.evaluation.exposure import exposure
from minionerec.evaluation.metrics import KS, row_metrics
from minionerec.evaluation.row_places import find_targets, tie_groups
from minionerec.evaluation.rows import as_table, rows_of_records
from minionerec.evaluation.scoring import intervals_of, score_predictions
from minionerec.evaluation.statistics import compare
from minionerec.pages.plots import curves
from minionerec.pages.text import metrics_table
from minionerec.rankers.places import Place, find_target
from tests.reference import (
    exact_randomisation_p_value,
    expected_metrics,
    plain_exposure,
    plain_gini,
)

SIDS = {"a": (0, 0), "b": (0, 1), "c": (0, 1), "d": (0, 1), "e": (1, 0)}  # b, c, d share one SID


def prediction(user, target, items):
    return {
        "user_id": user,
        "target_item_id": target,
        "item_ids": list(items),
        "scores": [-float(i) for i in range(len(items))],
    }


def random_world(seed, users=40, items=30, rows=90, length=20):
    """Predictions of users with several rows each, with histories and train counts."""
    rng = random.Random(seed)
    catalogue = [f"i{n}" for n in range(items)]
    rows = [
        prediction(f"u{rng.randrange(users)}", rng.choice(catalogue), rng.sample(catalogue, length))
        for _ in range(rows)
    ]
    histories = [[rng.choice(catalogue) for _ in range(rng.randint(1, 12))] for _ in rows]
    return rows, histories, catalogue, {item: rng.randrange(20) for item in catalogue}


def test_a_hit_among_three_tied_items_counts_by_its_chance():
    """The list is a, then b c d tied at ranks 2 to 4: HR@3 is 2/3 and NDCG@3 the mean of 1/log2(3),
    1/log2(4) and 0.
    """
    place = find_target(["a", "b", "c", "d", "e"], "d", SIDS)
    assert place == Place(first=1, size=3, sid_rank=1)
    values = dict(zip(metrics.KEYS, metrics.place_metrics(place), strict=True))
    assert values["HR@1"] == 0.0
    assert values["HR@3"] == 2 / 3
    assert values["HR@5"] == 1.0
    assert values["NDCG@3"] == pytest.approx((0.6309297535714575 + 0.5) / 3)
    assert (values["MRR@1"], values["MRR@3"]) == (0.0, pytest.approx((1 / 2 + 1 / 3) / 3))
    assert values["MRR"] == values["MRR@5"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert [values[f"Recall@{k}"] for k in KS] == [values[f"HR@{k}"] for k in KS]


def test_item_level_and_sid_level_differ_by_the_inflation_worked_by_hand():
    """Two rows, both rank the shared SID first. Per string both hit at 1; per item each hits at 1
    with chance 1/3.
    """
    rows = [prediction("u", "b", "bcda"), prediction("v", "c", "bcda")]
    scored = score_predictions(rows, SIDS, list("abcde"), {}, bootstrap_samples=0)
    assert scored["HR@1"] == pytest.approx(1 / 3)
    assert scored["sid_level"]["HR@1"] == 1.0
    assert scored["inflation"]["HR@1"] == pytest.approx(2 / 3)
    assert scored["HR@3"] == scored["sid_level"]["HR@3"] == 1.0
    assert scored["inflation"]["HR@3"] == 0.0


def test_rank_of_a_sid_counts_strings_not_items():
    assert find_target(["b", "c", "d", "e"], "e", SIDS) == Place(first=3, size=1, sid_rank=1)


def test_a_target_whose_tied_items_are_listed_without_it_is_a_hit_of_the_sid_only():
    """c was left out on purpose (say, it is in the history): recommending b instead of it is no
    hit.
    """
    item_level, sid_level = row_metrics([prediction("u", "c", "ba")], SIDS)
    assert (item_level["HR@50"][0], sid_level["HR@1"][0]) == (0.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_expectations_equal_the_average_over_every_order_of_tied_items(sizes, data):
    names = iter("abcdefghijklmno")
    groups = [[next(names) for _ in range(size)] for size in sizes]
    sid_of = {item: (number,) for number, group in enumerate(groups) for item in group}
    flat = [item for group in groups for item in group]
    target = data.draw(st.sampled_from(flat))
    (item_level, _) = row_metrics([prediction("u", target, flat)], sid_of)
    found = {key: values[0] for key, values in item_level.items()}
    assert found == pytest.approx(expected_metrics(groups, target, KS))


@pytest.mark.parametrize("seed", range(20))
def test_ndcg_equals_scikit_learn_which_also_averages_over_ties(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, size=12).astype(float)
    names = [f"i{n}" for n in range(12)]
    order = sorted(range(12), key=lambda n: -scores[n])
    target = int(rng.integers(12))
    truth = np.eye(12)[[target]]
    sid_of = {names[n]: (int(scores[n]),) for n in range(12)}
    item_level, _ = row_metrics([prediction("u", names[target], [names[n] for n in order])], sid_of)
    for k in KS:
        assert item_level[f"NDCG@{k}"][0] == pytest.approx(ndcg_score(truth, scores[None], k=k))


@pytest.mark.parametrize("seed", range(30))
def test_places_of_all_rows_at_once_are_those_of_one_list_after_the_other(seed):
    """Lists of different lengths, items that repeat, SIDs that are shared also by items apart."""
    rng = random.Random(seed)
    catalogue = [f"i{n}" for n in range(12)]
    sid_of = {item: (rng.randrange(6),) for item in catalogue if rng.random() < 0.8}
    rows = []
    for _ in range(40):
        items = rng.choices([*catalogue, "elsewhere"], k=rng.randrange(9))
        rows.append(prediction("u", rng.choice(catalogue), items))
    table = rows_of_records(rows, catalogue)
    for sids in (None, sid_of):
        groups = None if sids is None else tie_groups(table.item_ids, sids)
        distinct, of_row = find_targets(table, groups)
        found = [distinct[number] for number in of_row]
        expected = [find_target(row["item_ids"], row["target_item_id"], sids) for row in rows]
        assert found == expected


def test_rows_of_one_user_with_one_target_are_ordered_by_what_they_show():
    """By ids, not by their place in the catalogue; a list comes before one that it begins."""
    rows = [
        prediction("v", "b", ["a"]),
        prediction("u", "b", ["a", "c"]),
        prediction("u", "b", ["a"]),
        prediction("u", "a", ["c"]),
        prediction("u", "b", ["a"]),
        prediction("u", "b", []),
    ]
    histories = [["a"], ["a"], ["c", "a"], ["a"], ["b"], ["a"]]
    table = rows_of_records(rows, ["c", "b", "a"], histories)
    keys = [
        (row["user_id"], row["target_item_id"], row["item_ids"], history)
        for row, history in zip(rows, histories, strict=True)
    ]
    assert table.canonical_order().tolist() == sorted(range(6), key=keys.__getitem__)


def test_results_do_not_depend_on_the_order_of_rows_to_the_last_bit():
    rows, histories, catalogue, counts = random_world(1)
    sid_of = {item: (n // 2,) for n, item in enumerate(catalogue)}
    first = score_predictions(rows, sid_of, catalogue, counts, histories, bootstrap_samples=50)
    for seed in range(5):
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        again = score_predictions(
            [rows[i] for i in order],
            sid_of,
            catalogue,
            counts,
            [histories[i] for i in order],
            bootstrap_samples=50,
        )
        assert again == first


def test_without_sids_both_levels_agree():
    rows, histories, catalogue, counts = random_world(2, length=30)
    scored = score_predictions(rows, None, catalogue, counts, histories, bootstrap_samples=0)
    assert {key: scored[key] for key in metrics.KEYS} == scored["sid_level"]
    assert set(scored["inflation"].values()) == {0.0}


def test_exposure_worked_by_hand():
    """Two top lists over four items: a is shown twice, b and c once, d never.

    Of 12 interactions a has 10 and b 2. With one added to each of four items p is 11/16, 3/16 and 1/16 for c.
    """
    spread = exposure(np.array([[0, 1, 3], [0, 2, 3]]), np.array([10, 2, 0, 0]), ks=(1, 2))
    assert (spread["coverage@1"], spread["coverage@2"]) == (0.25, 0.75)
    assert spread["gini@1"] == pytest.approx(plain_gini([2, 0, 0, 0])) == pytest.approx(0.75)
    assert spread["gini@2"] == pytest.approx(plain_gini([2, 1, 1, 0])) == pytest.approx(0.375)
    assert (spread["mean_popularity@1"], spread["mean_popularity@2"]) == (
        10.0,
        (10 + 10 + 2 + 0) / 4,
    )
    assert spread["novelty@1"] == pytest.approx(-math.log2(11 / 16))
    assert spread["novelty@2"] == pytest.approx(
        (-2 * math.log2(11 / 16) - math.log2(3 / 16) + 4) / 4
    )


@pytest.mark.parametrize("seed", range(3))
def test_exposure_equals_one_list_after_the_other(seed):
    rows, _, catalogue, counts = random_world(seed)
    lists = [[catalogue.index(item) for item in row["item_ids"]] for row in rows]
    spread = exposure(as_table(lists), np.array([counts[item] for item in catalogue]))
    assert spread == pytest.approx(
        {
            key: value
            for k in KS
            for key, value in plain_exposure(
                [row["item_ids"][:k] for row in rows], catalogue, counts, k
            ).items()
        }
    )


def test_nothing_is_said_about_more_places_than_the_lists_have():
    """Lists of 10 of 30 items: whether the target comes 11th to 50th is unknown, as is MRR over 50
    places.
    """
    rows, histories, catalogue, counts = random_world(8, length=10)
    scored = score_predictions(rows, None, catalogue, counts, histories, bootstrap_samples=20)
    ks = {int(key.partition("@")[2]) for key in scored if "@" in key}
    assert ks == {1, 3, 5, 10} and "MRR" not in scored
    assert {
        int(key.partition("@")[2])
        for part in ("sid_level", "inflation", "intervals")
        for key in scored[part]
    } == ks
    shorter = [
        prediction(row["user_id"], row["target_item_id"], row["item_ids"][:5]) for row in rows
    ]
    short = score_predictions(shorter, None, catalogue, counts, bootstrap_samples=0)
    assert all(set(row) == {"count"} for row in short["slices"]["target_popularity"].values())


def test_lists_of_the_whole_catalogue_answer_for_every_k():
    """Three items, all ranked: HR@50 is as true as HR@3."""
    scored = score_predictions(
        [prediction("u", "c", "abc")], None, list("abc"), {}, bootstrap_samples=0
    )
    assert (scored["HR@1"], scored["HR@3"], scored["HR@50"], scored["MRR"]) == (
        0.0,
        1.0,
        1.0,
        1 / 3,
    )


def test_lists_that_were_meant_to_be_longer_are_scored_as_far_as_was_asked():
    """Two of four items where ten were asked for, as when a history is excluded: what is not there
    is a miss.
    """
    scored = score_predictions(
        [prediction("u", "c", "ab")], None, list("abcd"), {}, bootstrap_samples=0, depth=10
    )
    assert (scored["HR@10"], scored["HR@50"]) == (0.0, 0.0)


def test_invalid_and_repeated_recommendations_are_counted_and_a_repeat_gains_nothing():
    rows = [prediction("u", "b", ["a", "a", "zzz", "b"]), prediction("v", "a", ["a", "b"])]
    scored = score_predictions(rows, None, ["a", "b"], {}, bootstrap_samples=0)
    assert (scored["invalid"], scored["duplicates"]) == (1, 1)
    assert scored["MRR"] == pytest.approx((1 / 3 + 1) / 2)


def test_slices_worked_by_hand():
    """Counts 6, 3, 1, 0: strictly more popular items hold 0, 6 and 9 of 10 interactions, so head,
    mid, tail and cold.
    """
    counts = {"a": 6, "b": 3, "c": 1, "d": 0}
    rows = [prediction("u", target, ["a", "b"]) for target in "abcd"]
    histories = [["b", "a"], ["b", "c"], list("abcdabcdab"), ["a"]]
    slices = score_predictions(
        rows, None, list("abcd"), counts, histories, bootstrap_samples=0, depth=10
    )["slices"]
    assert slices["target_popularity"]["head"] == {"HR@10": 1.0, "NDCG@10": 1.0, "count": 1}
    assert slices["target_popularity"]["mid"] == {
        "HR@10": 1.0,
        "NDCG@10": 1 / math.log2(3),
        "count": 1,
    }
    for name in ("tail", "cold"):
        assert slices["target_popularity"][name] == {"HR@10": 0.0, "NDCG@10": 0.0, "count": 1}
    assert {name: row["count"] for name, row in slices["history_length"].items()} == {
        "1": 1,
        "10+": 1,
        "2-4": 2,
    }
    assert {name: row["count"] for name, row in slices["target_in_history"].items()} == {
        "yes": 3,
        "no": 1,
    }
    assert slices["target_repeats_last"]["yes"] == {"HR@10": 1.0, "NDCG@10": 1.0, "count": 1}


def test_slices_of_every_kind_add_up_to_the_whole():
    rows, histories, catalogue, counts = random_world(3)
    scored = score_predictions(rows, None, catalogue, counts, histories, bootstrap_samples=0)
    for slices in scored["slices"].values():
        assert sum(row["count"] for row in slices.values()) == len(rows) == scored["num_rows"]
        assert sum(row["HR@10"] * row["count"] for row in slices.values()) / len(
            rows
        ) == pytest.approx(scored["HR@10"])


def test_intervals_agree_with_scipys_bootstrap_when_every_user_has_one_row():
    values = np.random.default_rng(0).random(200)
    found = statistics.bootstrap_intervals(
        {"x": values}, [f"u{n}" for n in range(200)], 4000, seed=0
    )["x"]
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    assert found == pytest.approx([reference.low, reference.high], abs=0.005)


def test_rows_of_one_user_are_resampled_together():
    """100 copies of each row carry no new information: the interval must not shrink by the factor
    10 that rows would give.
    """
    values, users = np.random.default_rng(0).random(30), [f"u{n}" for n in range(30)]
    once = statistics.bootstrap_intervals({"x": values}, users, 2000, seed=0)["x"]
    copies = statistics.bootstrap_intervals(
        {"x": np.repeat(values, 100)}, np.repeat(users, 100).tolist(), 2000, seed=0
    )["x"]
    assert copies == pytest.approx(once, abs=1e-9)


def test_intervals_are_the_same_for_any_chunk_size(monkeypatch):
    values, users = {"x": np.random.default_rng(0).random(50)}, [f"u{n % 20}" for n in range(50)]
    whole = statistics.bootstrap_intervals(values, users, 100, seed=3)
    monkeypatch.setattr(statistics, "BOOTSTRAP_CHUNK", 20 * 7)
    assert statistics.bootstrap_intervals(values, users, 100, seed=3)["x"] == pytest.approx(
        whole["x"], abs=1e-12
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_randomisation_test_agrees_with_all_sign_patterns(seed):
    differences = np.random.default_rng(seed).normal(0.3, 1.0, size=10).round(1)
    found = statistics.randomisation_p_value(differences, 20_000, seed=0)
    assert found == pytest.approx(exact_randomisation_p_value(differences.tolist()), abs=0.015)
    result = scipy.stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert found == pytest.approx(result.pvalue, abs=0.015)


def test_comparing_a_ranking_with_itself_finds_nothing():
    rows, *_ = random_world(4)
    for result in compare(rows, rows, samples=200).values():
        assert (result["difference"], result["interval"], result["p_value"]) == (
            0.0,
            [0.0, 0.0],
            1.0,
        )


def test_a_ranking_that_is_always_right_is_found_better_whatever_the_row_order():
    rows, *_ = random_world(5)
    perfect = [
        prediction(row["user_id"], row["target_item_id"], [row["target_item_id"]]) for row in rows
    ]
    result = compare(rows, perfect[::-1], samples=500)["HR@10"]
    assert result["b"] == 1.0
    assert result["difference"] == pytest.approx(1.0 - result["a"])
    assert result["interval"][0] > 0
    assert result["p_value"] == 1 / 501


def test_comparing_different_test_rows_is_refused():
    rows, *_ = random_world(6, rows=3)
    with pytest.raises(
        UserError,
        match=r"^compare: the two predictions hold different test rows \(3 and 2; user 'u\d+' with ",
    ):
        compare(rows, rows[:2])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"target_item_id": "zzz"},
            "predictions, row 2: target 'zzz' is not in the catalogue; these predictions belong to other "
            "data, make them again",
        ),
        (
            {"scores": [0.0]},
            "predictions, row 2: 2 item_ids but 1 scores; expected one score per item",
        ),
    ],
)
def test_rows_that_cannot_be_scored_are_named(change, message):
    rows = [prediction("u", "a", "ab"), prediction("v", "b", "ab") | change]
    with pytest.raises(UserError) as error:
        score_predictions(rows, None, ["a", "b"], {})
    assert str(error.value) == message


def test_a_row_without_a_key_is_named():
    row = prediction("u", "a", "ab")
    del row["scores"]
    with pytest.raises(
        UserError,
        match="^predictions, row 1: has no 'scores'; expected user_id, target_item_id, item_ids, ",
    ):
        score_predictions([row], None, ["a", "b"], {})


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="^predictions: there is no row to score"):
        score_predictions([], None, ["a"], {})


def test_everything_that_is_scored_can_be_written_as_json():
    rows, histories, catalogue, counts = random_world(7)
    scored = score_predictions(rows, None, catalogue, counts, histories, bootstrap_samples=20)
    assert json.loads(json.dumps(scored, allow_nan=False)) == scored


def test_the_table_is_aligned_and_marks_what_is_missing():
    table = metrics_table(
        {
            "popularity": {"HR@1": 0.01, "NDCG@10": 0.02, "intervals": {"NDCG@10": [0.015, 0.025]}},
            "new": {},
        },
        ks=(1,),
        ndcg_ks=(10,),
    )
    assert table.splitlines() == [
        "              HR@1  NDCG@10   NDCG@10 95 %",
        "popularity  0.0100   0.0200  0.0150-0.0250",
        "new              -        -              -",
    ]


def test_curves_are_a_picture_with_the_same_bytes_every_time(tmp_path):
    log = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "eval_NDCG@10": 0.1}, {"epochs": 1}]
    curves(log, tmp_path / "a.png")
    curves(log, tmp_path / "b.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content == (tmp_path / "b.png").read_bytes()


def test_curves_of_a_log_without_numbers_are_refused(tmp_path):
    with pytest.raises(
        UserError, match="cannot be drawn, the log has no row with 'step' and a loss or metric$"
    ):
        curves([{"epochs": 1}], tmp_path / "a.png")


def test_rows_are_parted_by_whether_train_goes_from_their_last_item_straight_to_the_target():
    """Train goes a -> b -> a and b -> c; the third row's target came after its last item, but not
    directly.
    """
    pairs = slices_of_rows.pairs_of([[0, 1, 0], [1, 2]], 4)
    rows = [prediction("u", target, ["a", "b"]) for target in "bcca"]
    histories = [["c", "a"], ["b"], ["a"], ["d"]]
    scored = score_predictions(
        rows, None, list("abcd"), {}, histories, bootstrap_samples=0, train_pairs=pairs
    )
    assert {name: row["count"] for name, row in scored["slices"]["pair_in_train"].items()} == {
        "yes": 2,
        "no": 2,
    }
    assert scored["slice_intervals"] == {}


def test_a_slices_interval_is_that_of_its_rows_alone_when_every_user_is_in_one_slice():
    """Users of one slice drawn among all users, against the plain bootstrap of this slice's users."""
    rng = np.random.default_rng(0)
    names = np.array(["yes"] * 150 + ["no"] * 250)
    users = [f"u{row // 2}" for row in range(400)]
    values = {"HR@10": rng.integers(0, 2, 400).astype(float), "NDCG@10": rng.random(400)}
    _, intervals = intervals_of(values, {"kind": names}, users, 4_000, 1)
    found = intervals["kind"]
    for name, rows in (("yes", slice(0, 150)), ("no", slice(150, 400))):
        part = {key: of_key[rows] for key, of_key in values.items()}
        expected = statistics.bootstrap_intervals(part, users[rows], 4_000, 2)
        for key in values:
            assert found[name][key] == pytest.approx(expected[key], abs=0.01)
