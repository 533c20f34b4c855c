"""Rankings side by side: the figures, what counts as seeds, and every refusal. Run: python -m pytest tests/commands/test_compare.py"""

import json
import random
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import compare
from minionerec.errors import UserError
from minionerec.evaluation import scoring
from minionerec.evaluation import statistics as tests_of_significance
from minionerec.evaluation.rankings import read_predictions
from minionerec.experiment.commit import committed as commit_directory
from minionerec.experiment.files import sha256_file, write_json
from minionerec.experiment.manifest import opened
from minionerec.experiment.stages import stage_path
from minionerec.pages.exports import tables
from tests.browser import parsed
from tests.worlds import tiny_run

ROOT = Path(__file__).resolve().parents[2]
ITEMS = [f"i{n}" for n in range(24)]


def rows_of(data, split="test"):
    """(user, target) of a data directory's rows, written without the code under test."""
    seen, rows = set(), []
    for row in pd.read_parquet(data / "interactions.parquet").to_dict("records"):
        if row["user_id"] in seen and row["split"] == split:
            rows.append((row["user_id"], row["item_id"]))
        seen.add(row["user_id"])
    return rows


def lists(pairs, seed, skill):
    """Random rankings of the whole catalogue in which the target is first with probability ``skill``."""
    rng = random.Random(seed)
    rows = []
    for user, target in pairs:
        items = rng.sample(ITEMS, len(ITEMS))
        if rng.random() < skill:
            items.insert(0, items.pop(items.index(target)))
        rows.append(
            {
                "user_id": user,
                "target_item_id": target,
                "item_ids": items,
                "scores": [-float(n) for n in range(len(items))],
            }
        )
    return rows


def write(folder, rows, split="test", **facts):
    """A directory with ``predictions.jsonl`` and the ``metrics.json`` that belongs to it."""
    folder.mkdir(parents=True, exist_ok=True)
    scored = scoring.score_predictions(rows, None, ITEMS, {}, bootstrap_samples=0)
    write_json(folder / "metrics.json", scored | {"split": split} | facts)
    (folder / "predictions.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return folder


def committed(experiment, name, rows, split="test", stage="baselines", **settings):
    """The same as a stage of the pipeline writes it: with a manifest, made from the experiment's data."""
    data = stage_path(experiment, "data")
    final = stage_path(experiment, "evaluate" if stage == "evaluate" else "baselines") / name
    facts = {"method": name}
    settings = {"seed": experiment.seed, **settings}
    if stage == "evaluate":
        facts = {}
        settings |= {
            "evaluate.checkpoint": name.removesuffix(f"-{split}"),
            "evaluate.split": split,
        }
    with commit_directory(final, stage, settings, [opened(data)], **facts) as staging:
        write(staging, rows, split)
    return final


def experiment(folder, name="a", seed=42):
    """``tiny_run`` under another name, with its data stage."""
    made = tiny_run(folder / "made")
    named = made.changed({"name": name, "output_dir": str(folder), "seed": seed})
    shutil.copytree(stage_path(made, "data"), stage_path(named, "data"))
    return named


def figures_of(tmp_path, *words):
    """What ``compare.py`` writes with ``--json``."""
    compare.main([*map(str, words), "--samples", "500", "--json", str(tmp_path / "out.json")])
    return json.loads((tmp_path / "out.json").read_text())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One experiment with three rankings of its test split and one of its validation split."""
    folder = tmp_path_factory.mktemp("world")
    made = experiment(folder)
    data = stage_path(made, "data")
    for name, seed, skill in (("bad", 0, 0.0), ("alike", 1, 0.0), ("good", 2, 0.7)):
        committed(made, name, lists(rows_of(data), seed, skill))
    committed(
        made, "sft-valid", lists(rows_of(data, "valid"), 3, 0.3), split="valid", stage="evaluate"
    )
    return folder / "a"


def test_figures_of_four_rows_worked_by_hand(tmp_path, capsys):
    """Ranks of the targets: a 1, 2, none of ten, 1; b 1, 1, 1, 1. HR@1 .5 against 1, HR@10 .75 against 1."""
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


@pytest.fixture
def three_seeds(tmp_path):
    """Experiments a, b, c that differ in their seed alone, and d, which was made with another setting, too."""
    made = {}
    for name, seed in (("a", 42), ("b", 43), ("c", 44), ("d", 45)):
        made[name] = experiment(tmp_path, name, seed)
        pairs = rows_of(stage_path(made[name], "data"))
        committed(made[name], "net", lists(pairs, seed, 0.4), width=64 if name == "d" else 32)
        committed(made[name], "rule", lists(pairs, 7, 0.2))
    return tmp_path


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


def change_line(number, change):
    """A mutation of one line of ``predictions.jsonl``; ``change`` takes and returns the row, or returns text."""

    def mutate(folder):
        file = folder / "predictions.jsonl"
        lines = file.read_text().splitlines()
        changed = change(json.loads(lines[number - 1]))
        lines[number - 1] = changed if isinstance(changed, str) else json.dumps(changed)
        file.write_text("".join(f"{line}\n" for line in lines if line))

    return mutate


def with_score(value):
    """A change of a row's last score."""
    return lambda row: row | {"scores": [*row["scores"][:-1], value]}


BAD_LINES = {
    "not JSON": (
        lambda row: "{",
        "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); make the "
        "ranking again",
    ),
    "no object": (
        lambda row: "[1]",
        "got [1], expected an object with user_id, target_item_id, item_ids, scores",
    ),
    "no user": (
        lambda row: {key: row[key] for key in row if key != "user_id"},
        "user_id: is missing, expected text",
    ),
    "user is a number": (lambda row: row | {"user_id": 7}, "user_id: got 7, expected text"),
    "items are text": (lambda row: row | {"item_ids": "i1"}, 'item_ids: got "i1", expected a list'),
    "items are numbers": (
        lambda row: row | {"item_ids": [1, 2]},
        "item_ids: holds something that is not text; expected item ids",
    ),
    "NaN": (
        with_score(float("nan")),
        "scores: holds NaN or infinity; whatever ranked this had no numbers to rank by",
    ),
    "infinity": (
        with_score(float("inf")),
        "scores: holds NaN or infinity; whatever ranked this had no numbers to rank by",
    ),
    "a score is text": (with_score("1"), "scores: holds something that is not a number"),
    "a score is true": (with_score(True), "scores: holds something that is not a number"),
    "a whole number of 400 digits": (
        with_score(10**400),
        "scores: holds NaN or infinity; whatever ranked this had no numbers to rank by",
    ),
    "a score too few": (
        lambda row: row | {"scores": row["scores"][1:]},
        "24 item_ids but 23 scores; expected one score per item",
    ),
    "an item twice": (
        lambda row: row | {"item_ids": [row["item_ids"][0], *row["item_ids"][:-1]]},
        "item_ids: item 'ITEM' is there 2 times; expected every item once",
    ),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_line_that_is_no_ranking_is_named(world, tmp_path, case):
    change, message = BAD_LINES[case]
    folder = write(tmp_path / "x", read_predictions(world / "baselines/good/predictions.jsonl"))
    first = json.loads((folder / "predictions.jsonl").read_text().splitlines()[2])["item_ids"][0]
    change_line(3, change)(folder)
    refused(
        f"{folder}/predictions.jsonl:3: {message.replace('ITEM', first)}",
        world / "baselines/bad",
        folder,
    )


def refused(message, *words):
    with pytest.raises(UserError) as caught:
        compare.main([str(word) for word in words])
    assert str(caught.value) == message


def test_rows_that_are_missing_or_there_twice_are_refused(world, tmp_path):
    rows = read_predictions(world / "baselines/good/predictions.jsonl")
    user, target = rows[5]["user_id"], rows[5]["target_item_id"]
    bad = world / "baselines/bad"
    short, double = (
        write(tmp_path / "short", rows[:5] + rows[6:]),
        write(tmp_path / "double", [*rows, rows[5]]),
    )
    refused(
        f"{short}/predictions.jsonl: user '{user}' with target '{target}' is missing; it has 39 of the 40 rows of {bad}",
        bad,
        short,
    )
    refused(
        f"{double}/predictions.jsonl: user '{user}' with target '{target}' is there 2 times, in {bad} 1 times (41 rows here, 40 there)",
        bad,
        double,
    )
    empty = write(tmp_path / "empty", rows)
    (empty / "predictions.jsonl").write_text("")
    refused(f"{empty}/predictions.jsonl: is empty; expected a line per test row", bad, empty)


def test_a_committed_ranking_must_have_the_rows_and_items_of_its_data(world, tmp_path):
    """Even if the other ranking lacks the same row."""
    made = experiment(tmp_path)
    data = stage_path(made, "data")
    rows = lists(rows_of(data), 0, 0.5)
    user, target = rows[0]["user_id"], rows[0]["target_item_id"]
    short = committed(made, "short", rows[1:])
    refused(
        f"{short}/predictions.jsonl: user '{user}' with target '{target}' is missing; it has 39 of the 40 rows of the test split of "
        f"{data}",
        short,
        committed(made, "also short", rows[1:]),
    )
    foreign = committed(made, "foreign", rows)
    manifest = foreign / "MANIFEST.json"
    change_line(2, lambda row: row | {"item_ids": ["b00k", *row["item_ids"][1:]]})(foreign)
    manifest.unlink()
    with commit_directory(
        foreign.with_name("again"), "baselines", {}, [opened(data)], method="again"
    ) as staging:
        for file in foreign.iterdir():
            shutil.copy(file, staging)
    again = foreign.with_name("again")
    refused(
        f"{again}/predictions.jsonl:2: item 'b00k' is not in the catalogue of 24 items; this ranking is of another catalogue",
        again,
        short,
    )


def test_another_split_is_refused(world):
    valid, good = world / "evaluate/sft-valid", world / "baselines/good"
    refused(
        f"{valid}: ranks the valid split, {good} the test split; compare rankings of the same split",
        good,
        valid,
    )


def test_other_data_is_refused_even_with_the_same_test_rows(world, tmp_path):
    """A train row was dropped: catalogue and test rows are the same, the models have seen other things."""
    made = experiment(tmp_path, "b")
    old, new = stage_path(made, "data"), stage_path(made, "other")
    frame = pd.read_parquet(old / "interactions.parquet")
    with commit_directory(new, "data", {}, []) as staging:
        shutil.copy(old / "items.parquet", staging)
        frame.drop(index=1).to_parquet(staging / "interactions.parquet")
    shutil.rmtree(old)
    new.rename(old)
    other, good = committed(made, "x", lists(rows_of(old), 0, 0.5)), world / "baselines/good"
    digests = [sha256_file(data / "interactions.parquet")[:12] for data in (old, world / "data")]
    refused(
        f"{other}: was made from other data than {good}: interactions.parquet of {old} has sha256 {digests[0]}, of {world / 'data'} "
        f"{digests[1]}",
        good,
        other,
    )


def test_a_damaged_ranking_or_one_whose_data_was_made_again_is_refused(tmp_path):
    made = experiment(tmp_path)
    data = stage_path(made, "data")
    path = committed(made, "x", lists(rows_of(data), 0, 0.5))
    content = (path / "predictions.jsonl").read_bytes()
    (path / "predictions.jsonl").write_bytes(content.replace(b"-3.0", b"-4.0", 1))
    other = committed(made, "y", lists(rows_of(data), 1, 0.5))
    refused(
        f"{path}/predictions.jsonl: is damaged (its sha256 is not the one in MANIFEST.json); delete {path} and make it again",
        path,
        other,
    )
    (path / "predictions.jsonl").write_bytes(content)
    shutil.rmtree(data)
    with commit_directory(data, "data", {}, []) as staging:
        (staging / "items.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=f"^{path}: was made from another {data} "):
        compare.main([str(path), str(other)])


def test_metrics_that_are_not_those_of_the_rows_are_refused(world, tmp_path):
    rows = read_predictions(world / "baselines/good/predictions.jsonl")
    folder, bad = write(tmp_path / "x", rows), world / "baselines/bad"
    true = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(true | {"HR@1": 0.999}))
    refused(
        f"{folder}: metrics.json says HR@1 0.999000, predictions.jsonl gives {true['HR@1']:.6f}; one of them is of another run, "
        "make the ranking again",
        bad,
        folder,
    )
    (folder / "metrics.json").write_text(json.dumps(true | {"HR@1": "high"}))
    refused(
        f'{folder}/metrics.json: HR@1: got "high", expected a number from 0 to 1; make the ranking again',
        bad,
        folder,
    )
    (folder / "metrics.json").write_text("{}")
    refused(
        f"{folder}/metrics.json: has no 'split'; expected the metrics.json of an evaluation or a baseline",
        bad,
        folder,
    )
    (folder / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=f"^{folder}/metrics.json: is not JSON"):
        compare.main([str(bad), str(folder)])
    (folder / "metrics.json").unlink()
    refused(f"{folder}: has no metrics.json; expected an evaluation or a baseline", bad, folder)


def test_items_that_share_a_sid_need_the_sids_they_were_ranked_with(world, tmp_path):
    """Without them the targets would count as if their place among equals were known."""
    folder = write(
        tmp_path / "x",
        read_predictions(world / "baselines/good/predictions.jsonl"),
        inflation={"HR@1": 0.01},
        sids_sha256="0123456789abcdef",
    )
    refused(
        f"{folder}: several of its items share a SID, and the SIDs it was made with (0123456789ab) are not where its manifest says; "
        "rank again",
        world / "baselines/bad",
        folder,
    )


def test_rankings_that_are_no_seeds_of_one_method_are_refused(three_seeds):
    a, b, d, rule = (
        three_seeds / name
        for name in ("a/baselines/net", "b/baselines/net", "d/baselines/net", "a/baselines/rule")
    )
    refused(
        f"{d}: is not another seed of {a}, it differs in baselines: width: 32 -> 64; name it by itself",
        f"{a},{d}",
        rule,
    )
    refused(f"{a}: has the same seed as {a}; expected every seed once", f"{a},{b},{a}", rule)
    refused(
        f"{three_seeds / 'a'}: is no evaluation and no baseline; of several seeds, each must be one",
        f"{three_seeds / 'a'},{b}",
        rule,
    )


def test_lists_too_short_for_a_metric_are_refused_and_shown_with_a_dash(world, tmp_path, capsys):
    rows = [
        row | {"item_ids": row["item_ids"][:5], "scores": row["scores"][:5]}
        for row in read_predictions(world / "baselines/good/predictions.jsonl")
    ]
    short, bad = write(tmp_path / "short", rows), world / "baselines/bad"
    refused(
        f"{short}: has no NDCG@10, its lists hold 5 items; rank again with a larger evaluate.num_beams, or pass another --metric",
        bad,
        short,
    )
    compare.main([str(bad), str(short), "--metric", "HR@5"])
    assert [
        line.split()[3:5]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("short")
    ][0] == ["-", "-"]


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["bad", "good", "--metric", "NDGC@10"],
            "--metric: got 'NDGC@10', expected some of .*; did you mean 'NDCG@10'\\?",
        ),
        (["bad", "good", "--to", "best"], "--to: got 'best', expected one of bad, good"),
        (["bad", "bad"], ".*/bad: is named twice, by itself or with its experiment; name it once"),
        (["bad"], ".*/bad: is one method only; name at least two to compare"),
        (["bad", "good", "--samples", "5"], "--samples: got 5, expected at least 100"),
        (
            ["bad", "good", "--beta", "5"],
            "compare.py: unrecognized arguments: --beta 5; --help says more",
        ),
        (
            ["bad", "nowhere"],
            ".*/nowhere: no such directory; expected an evaluation, a baseline, or an experiment's folder",
        ),
        (
            ["bad", "long"],
            ".*/x{300}: no such directory; expected an evaluation, a baseline, or an experiment's folder",
        ),
        (
            ["bad", "good", "--samples", "100", "--json", ".."],
            "--json .*: cannot be written: Is a directory",
        ),
        (
            [".."],
            ".*: is one method only; .*|.*evaluate/\\*-test; run `bash evaluate.sh` or `bash baselines/run.sh` first",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(world, tmp_path, words, message):
    paths = {name: str(world / "baselines" / name) for name in ("bad", "good", "nowhere")}
    paths |= {"..": str(tmp_path), "long": str(tmp_path / ("x" * 300))}
    words = [paths.get(word, word) for word in words]
    with pytest.raises(UserError, match=f"^{message}$"):
        compare.main(words)


def test_as_a_command_it_ends_with_2_and_one_line_and_loads_no_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "compare.py", str(tmp_path / "x")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"{tmp_path}/x: no such directory; expected an evaluation, a baseline, or an experiment's folder\n"
    )
    code = "import sys, compare; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


def test_a_copy_is_neither_a_method_nor_a_seed_and_a_swap_exchanges_no_rows(tmp_path):
    """Holm over copies would correct too much, swapped folders would name the wrong winner."""
    made = experiment(tmp_path)
    rows = rows_of(stage_path(made, "data"))
    one, other = (
        committed(made, name, lists(rows, seed, 0.5)) for seed, name in enumerate(("one", "other"))
    )
    copy = shutil.copytree(one, tmp_path / "copy")
    refused(f"{copy}: is a copy of {one}; name one of them", one, other, copy)
    inside = shutil.copytree(one, one.with_name("one (copy)"))
    message = "holds something else than its name says (MANIFEST.json: it was made as"
    advice = "rename it back, or delete it and make it again"
    refused(f"{inside}: {message} 'one'); {advice}", tmp_path / "a")
    shutil.rmtree(inside)
    one.rename(one.with_name("between"))
    other.rename(one)
    one.with_name("between").rename(other)
    refused(f"{one}: {message} 'other'); {advice}", tmp_path / "a")
