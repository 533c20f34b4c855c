"""Rankings side by side: the figures, the page, and what counts as seeds.

python -m pytest tests/commands/test_compare.py
"""

import json
import re
import statistics
from pathlib import Path

import pandas as pd
import pytest

import compare
from minionerec.errors import UserError
from minionerec.evaluation import statistics as tests_of_significance
from minionerec.evaluation.rankings import read_predictions
from minionerec.pages.exports import tables
from tests.browser import parsed
from tests.rankings import ITEMS, seeds_of, world_of, write

ROOT = Path(__file__).resolve().parents[2]


def figures_of(tmp_path, *words):
    """What ``compare.py`` writes with ``--json``."""
    compare.main([*map(str, words), "--samples", "500", "--json", str(tmp_path / "out.json")])
    return json.loads((tmp_path / "out.json").read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return world_of(tmp_path_factory.mktemp("world"))


@pytest.fixture
def three_seeds(tmp_path):
    return seeds_of(tmp_path)


def test_figures_of_four_rows_worked_by_hand(tmp_path, capsys):
    """Ranks of the targets: a 1, 2, none of ten, 1; b 1, 1, 1, 1. HR@1 .5 against 1, HR@10 .75
    against 1.
    """
    pairs = [("u", "i0"), ("u", "i1"), ("v", "i2"), ("w", "i3")]
    rows = [
        {
            "user_id": u,
            "target_item_id": t,
            "item_ids": [t, *(i for i in ITEMS if i != t)],
            "scores": [0.0] * 24,
        }
        for u, t in pairs
    ]
    b = write(tmp_path / "b", rows)
    rows = json.loads(json.dumps(rows))
    rows[1]["item_ids"][:2] = reversed(rows[1]["item_ids"][:2])
    rows[2]["item_ids"].append(rows[2]["item_ids"].pop(0))
    figures = figures_of(tmp_path, write(tmp_path / "a", rows), b, "--metric", "HR@1,HR@10")
    assert (figures["rows"], figures["users"], figures["reference"]) == (4, 3, "a")
    assert [figures["methods"][name]["HR@1"] for name in "ab"] == [0.5, 1.0]
    assert [(row["metric"], row["difference"]) for row in figures["differences"]] == [
        ("HR@1", 0.5),
        ("HR@10", 0.25),
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "test split: 4 rows of 3 users"
    assert printed[3].split()[:5] == [
        "a",
        "0.5000",
        "0.7500",
        "0.7500",
        "1.0000",
    ]  # HR@1, @5, @10, @50
    assert printed[-2:] == [
        "* p < 0.05 two-sided, after Holm's correction over these 2 comparisons. Paired randomisation",
        "test and bootstrap over users, 500 draws each; of several seeds a row counts by its mean.",
    ]


def test_an_experiments_folder_stands_for_its_test_rankings_and_only_real_differences_are_marked(
    world, tmp_path, capsys
):
    figures = figures_of(tmp_path, world, "--to", "bad")
    assert list(figures["methods"]) == ["alike", "bad", "good"]  # sft-valid is of another split
    assert {row["method"]: row["significant"] for row in figures["differences"]} == {
        "alike": False,
        "good": True,
    }
    printed = capsys.readouterr().out
    assert (
        re.search(r"^good +NDCG@10 +\+0\.\d{4} .* better \*$", printed, re.M)
        and "worse" not in printed
    )
    assert re.search(
        rf"^alike +HR@10 .* {figures['differences'][1]['holm_p_value']:.4f}$", printed, re.M
    )


def test_the_page_has_the_figures_that_are_written_and_lies_beside_its_pictures(world, tmp_path):
    page = tmp_path / "talk.html"
    made = figures_of(tmp_path, world, "--to", "alike", "--page", page)
    text, links = parsed(page)
    assert links.fetched == [] and links.scripts == 0 and links.open == []
    shown = tables(text)
    assert [row[:3] for row in shown["differences"][1:]] == [
        [row["method"], row["metric"], f"{row['difference']:+.4f}"] for row in made["differences"]
    ]
    starred = [row[0] for row in shown["differences"] if row[-1] == "better *"]
    assert starred == ["good", "good"]
    assert [row[0] for row in shown["methods"][1:]] == list(made["methods"])
    assert len(shown["slices"]) == 1 + len(made["slices"]) and "deviations" not in shown
    folder = tmp_path / "talk-figures"
    # Two metrics: a picture of the means and one of the differences each
    assert len(list(folder.glob("*.svg"))) == len(list(folder.glob("*.pdf"))) == 4
    assert (folder / "differences.tex").read_text().count("better *") == 2
    with pytest.raises(
        UserError, match="^--page .*: cannot be written: No such file or directory$"
    ):
        figures_of(tmp_path, world, "--page", tmp_path / "nowhere" / "page.html")


def test_the_difference_is_the_paired_comparison_of_the_metrics(world, tmp_path):
    found = {
        row["metric"]: row
        for row in figures_of(tmp_path, world / "baselines/bad", world / "baselines/good")[
            "differences"
        ]
    }
    rows = [
        read_predictions(world / "baselines" / name / "predictions.jsonl")
        for name in ("bad", "good")
    ]
    expected = tests_of_significance.compare(*rows, keys=("NDCG@10", "HR@10"), samples=500)
    for key, values in expected.items():
        assert {name: found[key][name] for name in values} == values
    p_values = [found[key]["p_value"] for key in ("NDCG@10", "HR@10")]
    assert [
        found[key]["holm_p_value"] for key in ("NDCG@10", "HR@10")
    ] == tests_of_significance.holm(p_values)


def test_differences_stand_apart_for_rows_that_can_be_answered_from_memory(world, tmp_path, capsys):
    """A row can where train goes from the row's last item straight to its target, by a slow count."""
    sequences, known, remembered = {}, set(), {True: [], False: []}
    rows = pd.read_parquet(world / "data/interactions.parquet").to_dict("records")
    for row in rows:
        sequences.setdefault(row["user_id"], []).append((row["item_id"], row["split"]))
    for sequence in sequences.values():
        for (before, _), (after, split) in zip(sequence, sequence[1:], strict=False):
            if split == "train":
                known.add((before, after))
    for user, sequence in sequences.items():
        for (before, _), (after, split) in zip(sequence, sequence[1:], strict=False):
            if split == "test":
                remembered[(before, after) in known].append((user, after))
    assert remembered[True] and remembered[False]
    found = figures_of(tmp_path, world, "--to", "bad")["slices"]
    of_user = {
        name: {
            (row["user_id"], row["target_item_id"]): float(
                row["item_ids"].index(row["target_item_id"]) < 10
            )
            for row in read_predictions(world / "baselines" / name / "predictions.jsonl")
        }
        for name in ("bad", "good")
    }
    for name, inside in (("yes", True), ("no", False)):
        row = next(
            row
            for row in found
            if (row["pair_in_train"], row["method"], row["metric"]) == (name, "good", "HR@10")
        )
        pairs = remembered[inside]
        good, bad = (sum(of_user[method][pair] for pair in pairs) for method in ("good", "bad"))
        assert row["rows"] == len(pairs)
        assert row["mean"] == pytest.approx(good / len(pairs))
        assert row["difference"] == pytest.approx((good - bad) / len(pairs))
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    assert re.search(r"^no: good +\d+ +HR@10 ", capsys.readouterr().out, re.M)


def test_any_ranking_is_scored_by_sid_string_under_any_sids(world, tmp_path, capsys):
    """Under SIDs of which three items share each, a target counts where the first of them stands."""
    strings = {item: [n // 3] for n, item in enumerate(ITEMS)}
    file = tmp_path / "index.json"
    file.write_text(json.dumps(strings))
    found = figures_of(tmp_path, world, "--to", "bad", "--strings", str(file))["strings"]
    hits = 0
    rows = read_predictions(world / "baselines/good/predictions.jsonl")
    for row in rows:
        seen = list(dict.fromkeys(strings[item][0] for item in row["item_ids"]))
        hits += seen.index(strings[row["target_item_id"]][0]) < 5
    assert found["good"]["string"]["HR@5"] == pytest.approx(hits / len(rows))
    assert found["good"]["difference"]["HR@5"] == pytest.approx(
        hits / len(rows) - found["good"]["item"]["HR@5"]
    )
    assert re.search(r"^good +difference +\+0", capsys.readouterr().out, re.M)
    del strings["i7"]
    file.write_text(json.dumps({"sids": strings}))
    with pytest.raises(UserError, match=r"index.json: has no SID for item 'i7' of .*another cata"):
        compare.main([str(world), "--strings", str(file)])
    with pytest.raises(UserError, match=r"--strings nowhere: cannot be read"):
        compare.main([str(world), "--strings", "nowhere"])


def test_the_order_of_rows_changes_nothing(world, tmp_path):
    rows = read_predictions(world / "baselines/good/predictions.jsonl")
    one, other = write(tmp_path / "one/x", rows), write(tmp_path / "other/x", rows[::-1])
    first, second = (figures_of(tmp_path, world / "baselines/bad", path) for path in (one, other))
    assert first["differences"] == second["differences"]


def test_experiments_that_differ_in_their_seed_are_seeds_of_the_same_methods(
    three_seeds, tmp_path, capsys
):
    figures = figures_of(tmp_path, *(three_seeds / name for name in "abc"))
    assert {name: method["seeds"] for name, method in figures["methods"].items()} == {
        "net": 3,
        "rule": 3,
    }
    single = [
        json.loads((three_seeds / name / "baselines/net/metrics.json").read_text())["HR@10"]
        for name in "abc"
    ]
    net = figures["methods"]["net"]
    assert net["HR@10"] == pytest.approx(statistics.mean(single)) and net["deviations"][
        "HR@10"
    ] == pytest.approx(statistics.stdev(single))
    assert figures["methods"]["rule"]["deviations"]["HR@10"] == 0.0
    printed = capsys.readouterr().out
    assert re.search(rf"^net +3( +0\.\d{{4}}){{2}} +{statistics.stdev(single):.4f} ", printed, re.M)


def test_an_experiment_with_another_setting_is_another_method_and_the_setting_is_named(
    three_seeds, tmp_path, capsys
):
    figures = figures_of(tmp_path, three_seeds / "a", three_seeds / "b", three_seeds / "d")
    assert {name: method["seeds"] for name, method in figures["methods"].items()} == {
        "a/net": 2,
        "rule": 3,
        "d/net": 1,
    }
    assert figures["notes"] == ["a/net -> d/net: baselines: width: 32 -> 64"]
    assert capsys.readouterr().out.splitlines()[-1] == figures["notes"][0]


def test_a_pattern_or_commas_name_the_seeds_of_one_method(three_seeds, tmp_path):
    words = (
        f"{three_seeds}/[abc]/baselines/net",
        f"{three_seeds}/a/baselines/rule,{three_seeds}/b/baselines/rule",
    )
    figures = figures_of(tmp_path, *words)
    assert {name: method["seeds"] for name, method in figures["methods"].items()} == {
        "net": 3,
        "rule": 2,
    }
