"""The map of the items and the tree of semantic IDs.

python -m pytest tests/pages/test_sid_pictures.py
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from minionerec.evaluation.results import read_sids, results
from minionerec.experiment.stages import stage_path
from minionerec.pages import experiment_page
from minionerec.pages.html import sid_figures
from minionerec.pages.item_map import item_map, two_directions
from minionerec.pages.sid_tree import tree
from tests.browser import NASTY
from tests.pages.test_experiment_page import rank
from tests.worlds import tiny_run


def test_the_tree_has_the_largest_code_first_and_no_branch_for_a_single_item():
    sids = [[3, 1, 0], [3, 1, 1], [3, 2, 0], [5, 0, 0]]
    paths = [["all", "tents"], ["all", "tents"], ["all", "stoves"], []]
    three, five = tree(sids, ["a", "b", "c", "d"], paths)
    assert (three.codes, three.number, three.about) == ("3", "3 items", "tents (67%)")
    assert three.items == [("‹3·2·0›", "c")]  # alone under 3·2
    (inner,) = three.branches
    assert (inner.codes, inner.items) == ("3·1", [("‹3·1·0›", "a"), ("‹3·1·1›", "b")])
    assert (five.number, five.about, five.items) == ("1 item", "d", [("‹5·0·0›", "d")])
    assert three.more == inner.more == five.more == ""


def test_sids_of_one_level_and_of_four_have_a_tree_too():
    assert tree([[7]], ["a"], [[]])[0].items == [("‹7›", "a")]
    (branch,) = tree([[1, 2, 3, 4], [1, 2, 5, 6]], ["a", "b"], [[], []])
    assert branch.branches[0].items == [("‹1·2·3·4›", "a"), ("‹1·2·5·6›", "b")]


def test_what_a_large_tree_leaves_out_is_counted():
    sids = [[code, 0, item] for code in range(70) for item in range(30)]
    shown = tree(sids, ["t"] * len(sids), [[]] * len(sids))
    assert len(shown) == 65 and shown[-1].about == "and 6 further codes"
    (inner,) = shown[0].branches
    assert inner.more == f"and {30 - len(inner.items)} further items" and len(inner.items) < 30


def test_the_two_directions_are_the_principal_components():
    vectors = np.random.default_rng(0).normal(size=(30, 6)) * [5, 3, 1, 1, 1, 1]
    places, share = two_directions(vectors)
    u, s, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    for axis in (0, 1):
        expected = u[:, axis] * s[axis]
        assert np.allclose(np.abs(places[:, axis]), np.abs(expected))
        assert places[np.abs(places[:, axis]).argmax(), axis] > 0
    assert share == pytest.approx(np.square(s[:2]).sum() / np.square(s).sum())


def test_a_map_has_a_dot_per_item_and_a_colour_per_first_code():
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    sids = [[0, 0], [0, 1], [2, 0], [2, 1], [2, 2], [9, 0]]
    text = item_map(vectors, sids, [NASTY, *"bcdef"])
    groups = re.findall(r'<g fill="(#\w{6})"><title>first code (\d)</title>(.*?)</g>', text)
    assert [(code, dots.count("<circle")) for _, code, dots in groups] == [
        ("0", 2),
        ("2", 3),
        ("9", 1),
    ]
    assert len({colour for colour, _, _ in groups}) == 3
    assert "every item" in text and "<title>‹2·0›  c</title>" in text and "<script" not in text
    for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text):
        assert 0 < float(x) < 720 and 0 < float(y) < 480


def test_a_map_of_many_items_shows_a_sample_and_says_so_and_one_of_two_is_left_out():
    vectors = np.random.default_rng(0).normal(size=(1300, 4))
    text = item_map(vectors, [[n % 5] for n in range(1300)], ["t"] * 1300)
    assert text.count("<circle") == 1000 and "1,000 of 1,300 items" in text
    assert item_map(vectors[:2], [[0], [1]], ["a", "b"]) == ""
    assert item_map(np.ones((4, 3)), [[0], [1], [2], [3]], list("abcd")).count("<circle") == 4


def test_the_page_shows_tree_and_map(tmp_path):
    experiment = tiny_run(tmp_path)
    rank(experiment, "popularity", 3)
    ids = list(read_sids(experiment))
    sids = stage_path(experiment, "sids")
    (sids / "item_ids.json").write_text(json.dumps(ids[::-1]))  # rows in an order of their own
    text = experiment_page.write_page(experiment, results(experiment)).read_text(encoding="utf-8")
    assert text.count("<title>‹") == len(ids)
    assert "<summary>The tree of SIDs</summary>" in text
    shown = dict(re.findall(r"<title>(‹[\d·]+›)  (.*?)</title>", text))
    inside = dict(re.findall(r"<li><code>(‹[\d·]+›)</code> <bdi>(.*?)</bdi></li>", text))
    assert shown == inside and len(shown) == len(ids)


def test_the_share_of_unknown_tokens_is_among_the_figures_where_it_was_counted():
    collisions = {"collision_rate": 0.1, "distinct_sids": 9}
    report = {
        "items": 9,
        "collisions": {"before": collisions, "after": collisions},
        "levels": [{"perplexity": 3.0, "size": 4}],
        "reconstruction_error": [0.5],
    }
    assert "tokens unknown to the encoder" not in sid_figures(report)  # vectors of one's own
    shown = sid_figures(report | {"unknown_tokens": 0.294})
    assert shown["tokens unknown to the encoder"] == "29.4%"
