"""What an experiment has measured, as a table and as a page; and what the page looks like in a browser.

python -m pytest tests/pages/test_experiment_page.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest

from minionerec import summary
from minionerec.catalogue.samples import load_samples
from minionerec.errors import UserError
from minionerec.evaluation.results import Result, comparisons, results
from minionerec.evaluation.scoring import score_predictions
from minionerec.evaluation.slices import pairs_of
from minionerec.evaluation.statistics import compare
from minionerec.experiment.baselines import BASELINES
from minionerec.experiment.commit import committed
from minionerec.experiment.files import write_json
from minionerec.experiment.manifest import opened as opened_directory
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import baseline_path, result_name, settings_of, stage_path
from minionerec.pages import (
    examples,
    experiment_page,
    exports,
    number_sections,
    stage_sections,
)
from minionerec.pages.charts import Dot, dot_chart
from tests.browser import NASTY, browse, parsed, widths
from tests.worlds import tiny_run

SECTIONS = (
    "Results",
    "Paired differences",
    "Slices",
    "Examples",
    "Training",
    "Semantic IDs",
    "Data",
    "Cost",
    "Pipeline",
)
COST = {
    "parameters": 1234567,
    "train_seconds": None,
    "seconds": 2.0,
    "users_per_second": 20.0,
    "peak_memory_mb": 512.4,
}
LOG = [
    {"step": 1, "loss": 2.0},
    {"step": 2, "eval_NDCG@10": 0.25, "eval_HR@10": 0.5},
    {"step": 3, "loss": 1.0},
    {"step": 4, "eval_NDCG@10": 0.125, "eval_HR@10": 0.5},
]

START = {"eval_NDCG@10": 0.2, "eval_HR@1": 0.1, "eval_HR@10": 0.5, "eval_HR@50": 0.75}
RL_ROW = {"reward": 0.5, "kl": 0.01, "groups_with_signal": 0.25}


def rank(
    experiment: Experiment, name: str, place: int | None, checkpoint: str | None = None
) -> Path:
    """Commit rankings of the test rows with every target at ``place`` (None: in none of them), as a stage would.

    Args:
        name: "sft", "rl" or another checkpoint is evaluated, anything else is a baseline.
    """
    data, sids, rng = (
        stage_path(experiment, "data"),
        stage_path(experiment, "sids"),
        random.Random(name),
    )
    samples = load_samples(data, experiment.data.max_history)
    ids, rows = samples.item_ids, samples.splits["test"]
    predictions = []
    for row in rows:
        others = rng.sample([item for item in ids if item != ids[row.target]], 12)
        ranked = others if place is None else [*others[:place], ids[row.target], *others[place:]]
        predictions.append(
            {
                "user_id": row.user_id,
                "target_item_id": ids[row.target],
                "item_ids": ranked,
                "scores": [-float(n) for n in range(len(ranked))],
            }
        )
    histories = [[ids[item] for item in row.history] for row in rows]
    pairs = pairs_of(samples.train_sequences, len(ids))
    metrics = score_predictions(
        predictions, None, ids, {}, histories, bootstrap_samples=20, train_pairs=pairs
    )
    is_model = name in ("sft", "rl") or name.startswith("checkpoint")
    final = (
        stage_path(experiment, "evaluate") / f"{name}-test"
        if is_model
        else baseline_path(experiment, name)
    )
    stage, parents = ("evaluate", [data, sids]) if is_model else (BASELINES[name].stage, [data])
    settings = settings_of(experiment, stage)
    facts = {} if is_model else {"method": name}
    if is_model:
        settings |= {"evaluate.checkpoint": checkpoint or name}
    opened = [opened_directory(parent) for parent in parents]
    with committed(final, stage, settings, opened, **facts) as staging:
        write_json(
            staging / "metrics.json",
            metrics | ({"cost": COST, "sids_sha256": "one"} if is_model else {}),
        )
        (staging / "predictions.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in predictions)
        )
    return final


def train(experiment: Experiment, stage: str, log: list[dict]) -> None:
    """Commit a training stage of which there is nothing but its log."""
    parents = [opened_directory(stage_path(experiment, name)) for name in ("data", "sids")]
    with committed(
        stage_path(experiment, stage), stage, settings_of(experiment, stage), parents
    ) as staging:
        (staging / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))


def finished(folder: Path, **run) -> Experiment:
    """Two baselines, SFT and RL, trained and ranked: targets at 6 (popularity), 3 (Markov), 2 (SFT)
    and 1 (RL).
    """
    experiment = tiny_run(folder, **run)
    train(experiment, "sft", LOG)
    train(experiment, "rl", [{"step": 0, **START}, *({**row, **RL_ROW} for row in LOG)])
    for name, place in (("popularity", 5), ("markov", 2), ("sft", 1), ("rl", 0)):
        rank(experiment, name, place)
    return experiment


@pytest.fixture(autouse=True)
def no_pdfs(monkeypatch):
    """Drawing them is what takes long; ``test_exports.py`` looks at them."""
    monkeypatch.setattr(exports, "write_pdf", lambda drawing, path: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Experiment:
    """A finished experiment that no test changes."""
    return finished(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(whole) -> str:
    """Its page's text."""
    return written(whole)


def written(experiment: Experiment) -> str:
    """The page's text."""
    return experiment_page.write_page(experiment, results(experiment)).read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------------
# The table


def table_of(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    capsys.readouterr()
    summary.main(experiment)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_summary_shows_baselines_then_sft_then_rl_then_other_checkpoints_and_names_the_page(
    tmp_path, capsys
):
    experiment = finished(tmp_path)
    rank(experiment, "item_knn", None)
    rank(experiment, "checkpoint-8", None)
    lines = table_of(experiment, capsys)
    assert " ".join(lines[0]) == "tiny: full-catalogue ranking of the test split, 40 users"
    assert lines[1][:6] == ["HR@1", "HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10"]
    assert [(line[0], line[1], line[2]) for line in lines[2:8]] == [
        ("popularity", "0.0000", "0.0000"),
        ("markov", "0.0000", "1.0000"),
        ("item_knn", "0.0000", "0.0000"),
        ("SFT", "0.0000", "1.0000"),
        ("RL", "1.0000", "1.0000"),
        ("checkpoint-8", "0.0000", "0.0000"),
    ]
    assert (
        lines[-1] == ["page:", str(stage_path(experiment, "report.html"))]
        and stage_path(experiment, "report.html").is_file()
    )


def test_the_summary_says_what_is_not_evaluated_yet(tmp_path, capsys):
    experiment = tiny_run(tmp_path)
    with pytest.raises(UserError) as caught:
        summary.main(experiment)
    assert str(caught.value) == (
        f"{tmp_path}/tiny: nothing is measured yet; run `bash baselines/run.sh` or `bash evaluate.sh` "
        "with the same --config first"
    )
    rank(experiment, "popularity", 3)
    assert [" ".join(line) for line in table_of(experiment, capsys)[-3:-1]] == [
        "SFT: not evaluated; run `bash evaluate.sh --evaluate.checkpoint sft` with the same --config",
        "RL: not evaluated; run `bash evaluate.sh --evaluate.checkpoint rl` with the same --config",
    ]


def test_damaged_stale_and_foreign_results_are_refused_in_one_line(tmp_path):
    experiment = finished(tmp_path)
    metrics = stage_path(experiment, "evaluate") / "rl-test" / "metrics.json"
    text = metrics.read_text()
    metrics.write_text(text.replace("1.0", "0.9", 1))
    with pytest.raises(
        UserError, match=f"^{metrics}: is damaged .*; delete {metrics.parent} and make it again$"
    ):
        summary.main(experiment)
    metrics.write_text(text)
    shutil.rmtree(stage_path(experiment, "sids"))
    tiny_sids = stage_path(experiment, "sids")
    with committed(
        tiny_sids,
        "sids",
        settings_of(experiment, "sids"),
        [opened_directory(stage_path(experiment, "data"))],
    ) as staging:
        write_json(staging / "sids.json", {"sids": {}})
    with pytest.raises(
        UserError, match=rf"^{metrics.parent.parent}/rl-test: was made from another {tiny_sids} "
    ):
        summary.main(experiment)


def swapped(one: Path, other: Path) -> None:
    """Two directories exchange their names."""
    one.rename(one.with_name("between"))
    other.rename(one)
    one.with_name("between").rename(other)


@pytest.mark.parametrize(
    "change, place, name",
    [
        (
            lambda runs: swapped(runs / "evaluate/sft-test", runs / "evaluate/rl-test"),
            "evaluate/rl-test",
            "sft-test",
        ),
        (
            lambda runs: shutil.copytree(runs / "baselines/markov", runs / "baselines/item_knn"),
            "baselines/item_knn",
            "markov",
        ),
        (
            lambda runs: shutil.copytree(
                runs / "baselines/markov", runs / "baselines/markov (copy)"
            ),
            "baselines/markov (copy)",
            "markov",
        ),
        (
            lambda runs: swapped(runs / "baselines/markov", runs / "baselines/popularity"),
            "baselines/markov",
            "popularity",
        ),
    ],
    ids=["swapped checkpoints", "a copied baseline", "a sync tool's copy", "swapped baselines"],
)
def test_a_ranking_under_the_name_of_another_is_refused(tmp_path, change, place, name):
    """Tables would carry exchanged rows, or a copy as a method of its own."""
    experiment = finished(tmp_path)
    runs = tmp_path / "tiny"
    change(runs)
    with pytest.raises(UserError) as caught:
        summary.main(experiment)
    assert str(caught.value) == (
        f"{runs / place}: holds something else than its name says (MANIFEST.json: it was made as "
        f"'{name}'); rename it back, or delete it and make it again"
    )


def test_another_experiments_sft_is_not_called_by_this_ones_name(tmp_path):
    """``--evaluate.checkpoint runs/other/sft`` ended in a directory sft-test as well."""
    experiment = finished(tmp_path)
    shutil.rmtree(tmp_path / "tiny/evaluate/sft-test")
    final = rank(experiment, "sft", 4, checkpoint="runs/other/sft")
    assert final.name == "sft-test"
    names = ["popularity", "markov", "RL", "runs/other/sft"]
    assert [result.name for result in results(experiment)] == names
    final.rename(final.with_name(f"{result_name('runs/other/sft')}-test"))  # as it is called now
    assert [result.name for result in results(experiment)] == names


def test_a_fusion_stands_beside_the_model_that_it_was_made_of(tmp_path):
    """Under its own name: two rows called SFT would be one in every table."""
    experiment = finished(tmp_path)
    own = stage_path(experiment, "evaluate") / "sft-test"
    settings = settings_of(experiment, "fusion") | {"evaluate.checkpoint": "sft"}
    parents = [opened_directory(stage_path(experiment, "data")), opened_directory(own)]
    final = own.with_name("sft-fusion-test")
    with committed(final, "fusion", settings, parents) as staging:
        for name in ("metrics.json", "predictions.jsonl"):
            shutil.copy(own / name, staging / name)
    names = ["popularity", "markov", "SFT", "RL", "SFT, fused"]
    assert [result.name for result in results(experiment)] == names


def test_what_a_killed_run_left_behind_is_no_result(tmp_path):
    experiment = finished(tmp_path)
    for stage, name in (("baselines", ".item_knn.staging"), ("evaluate", ".checkpoint-8-test")):
        shutil.copytree(
            next(stage_path(experiment, stage).glob("[!.]*")), stage_path(experiment, stage) / name
        )
    assert [result.name for result in results(experiment)] == ["popularity", "markov", "SFT", "RL"]


def test_curves_of_rl_start_from_sft_as_a_line_and_name_the_step_that_the_guard_let_pass():
    log = [{"step": 0, **START}]
    for step, (ndcg, hits) in enumerate([(0.3, 0.5), (0.25, 0.75)], start=1):
        guarded = {"eval_guarded_NDCG@10": ndcg if hits == 0.75 else 0.0}
        log.append({"step": step, "eval_NDCG@10": ndcg, "eval_HR@50": hits, **guarded})
    picture = stage_sections.curve_against_start("RL", "HR@50", log)
    assert "RL: HR@50" in picture and "SFT" in picture and picture.count('class="line ') == 2
    # Half a percent apart: the axis begins at the lower one, where 0 would make one line of both
    near = [{"step": step, "eval_HR@50": hits} for step, hits in ((0, 0.671), (9, 0.668))]
    picture = stage_sections.curve_against_start("RL", "HR@50", near)
    ticks = re.findall(r'text-anchor="end">([0-9.]+)<', picture)
    assert ticks == ["0.668", "0.669", "0.67", "0.671"] and "does not begin at 0" in picture
    assert stage_sections.curve_against_start("SFT", "HR@50", log[1:]) == ""
    assert stage_sections.best_step("RL", log) == (
        "RL: best validation NDCG@10 0.2500 at step 2 of 2."
    )
    # Where the checkpoint that is handed on is SFT's, the line may not read as if it were the step's
    better_before = [{"step": 0, "eval_NDCG@10": 0.25}, *log[1:]]
    assert stage_sections.best_step("RL", better_before) == (
        "RL: best validation NDCG@10 0.2500 at step 2 of 2, SFT 0.2500: the SFT weights are handed "
        "on."
    )
    refused = [log[0]] + [{**row, "eval_guarded_NDCG@10": 0.0} for row in log[1:]]
    assert stage_sections.best_step("RL", refused) == (
        "RL: no step of 2 kept as many hits as rl.guard demands; the SFT weights are handed on."
    )


# --------------------------------------------------------------------------------------------------
# The page


def test_the_page_has_every_section_stands_alone_and_escapes_titles(tmp_path):
    experiment = finished(tmp_path, title=NASTY)
    path = experiment_page.write_page(experiment, results(experiment))
    text, links = parsed(path)
    assert links.fetched == [] and links.scripts == 0 and links.open == []
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert any(found.startswith(NASTY) for found in links.texts)
    assert tuple(re.findall("<h2>(.*?)</h2>", text)) == (
        *SECTIONS,
        "Not there yet",
    )  # the audit was not made
    assert (
        text.count("<svg") == 3 + 5 + 2 + 5 + 4
    )  # NDCG, HR and HR over K; five slices; SFT: loss, validation; RL: reward, signal and KL as well, and four
    # metrics against SFT's line
    assert not list(path.parent.glob(".report*"))


def test_the_page_shows_only_what_is_there_and_names_the_commands_of_the_rest(tmp_path):
    experiment = tiny_run(tmp_path)
    rank(experiment, "popularity", 3)
    shutil.rmtree(stage_path(experiment, "sids"))
    text = written(experiment)
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "Results",
        "Slices",
        "Examples",
        "Data",
        "Cost",
        "Pipeline",
        "Not there yet",
    ]
    assert "Nothing to judge: no checkpoint is evaluated yet" in text
    missing = text[text.index("Not there yet") :]
    assert re.findall("<code>(.*?)</code>", missing) == [
        "bash rqvae/rqvae.sh",
        "bash sft.sh",
        "bash rl.sh",
        "python data/audit.py",
        "bash evaluate.sh --evaluate.checkpoint sft",
        "bash evaluate.sh --evaluate.checkpoint rl",
    ]


@pytest.mark.parametrize(
    "model, words, state",
    [(0, "better", "good"), (2, "no difference shown", "caution"), (7, "worse", "bad")],
)
def test_the_first_line_says_whether_the_best_baseline_is_beaten(tmp_path, model, words, state):
    """Every target at 3 with the baseline: NDCG@10 is 1/2 then, and with the model at the same
    place there is no difference at all.
    """
    experiment = tiny_run(tmp_path)
    rank(experiment, "markov", 2)
    rank(experiment, "popularity", None)
    rank(experiment, "sft", model)
    line = re.search(r'<p class="verdict (\w+)">(.*?)</p>', written(experiment))
    assert line.group(1) == state and line.group(2).startswith(
        f"SFT against markov, the best baseline: {words} (NDCG@10 "
    )
    assert "against 0.5000" in line.group(2) and "one seed" in line.group(2)


def test_the_page_gives_the_paired_difference_its_interval_and_p_value(whole, page):
    found = results(whole)
    compared = comparisons(found, whole)
    assert [(c.name, c.against) for c in compared] == [
        ("SFT", "markov"),
        ("RL", "markov"),
        ("RL", "SFT"),
    ]
    expected = compare(
        found[1].predictions, found[3].predictions, None, found[3].sid_of, ("NDCG@10",)
    )["NDCG@10"]
    assert compared[1].figures["NDCG@10"] == expected and expected["difference"] == pytest.approx(
        0.5
    )
    low, high = expected["interval"]
    cells = [
        "RL against markov",
        "NDCG@10",
        "better",
        "+0.5000",
        f"{low:+.4f} to {high:+.4f}",
        f"{expected['p_value']:.4f}",
    ]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page


def test_costs_are_shown_and_a_dash_where_nothing_was_measured(page):
    cost = page[page.index("<h2>Cost</h2>") : page.index("<h2>Pipeline</h2>")]
    assert (
        "<td>RL</td><td>1,234,567</td><td>-</td><td>2.0</td><td>20.0</td><td>-</td><td>512</td>"
        in cost
    )
    assert "<td>markov</td>" + 6 * "<td>-</td>" in cost


def test_slices_are_in_their_own_order_with_the_number_of_rows(whole, page):
    figure = page[page.index("<figcaption>Items in the history") :].partition("</figure>")[0]
    rows = load_samples(stage_path(whole, "data"), 5).splits["test"]
    lengths = [len(row.history) for row in rows]
    assert re.findall(r"<title>(.*?)</title>", figure) == [
        f"{name} ({count})"
        for name, count in (
            ("2-4", sum(2 <= n <= 4 for n in lengths)),
            ("5-9", sum(n >= 5 for n in lengths)),
        )
    ]
    assert sorted(
        ["10+", "2-4", "no", "cold", "1", "yes", "head"], key=number_sections.slice_order
    ) == ["head", "1", "2-4", "cold", "yes", "no", "10+"]


def test_training_names_the_best_step_and_the_pipeline_its_settings(page):
    assert "SFT: best validation NDCG@10 0.2500 at step 2 of 4." in page
    pipeline = page[page.index("<h2>Pipeline</h2>") :]
    assert re.findall("<summary>(.*?)</summary>", pipeline) == [
        "data",
        "sids",
        "baselines/markov",
        "baselines/popularity",
        "sft",
        "rl",
        "evaluate/rl-test",
        "evaluate/sft-test",
    ]
    assert '<code>sft.learning_rate</code></td><td class="wide">0.01</td>' in pipeline
    assert "made from: data, sids" in pipeline and "torch " in pipeline


def test_a_page_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    experiment = finished(tmp_path)
    before = written(experiment)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        UserError,
        match=r"report\.html: cannot be written: No space left on device; make room there, then run again$",
    ):
        written(experiment)
    path = stage_path(experiment, "report.html")
    assert path.read_text() == before and not list(path.parent.glob(".report*"))


# --------------------------------------------------------------------------------------------------
# Examples


def mixed(experiment: Experiment) -> Result:
    """The RL result with the targets of the first 3 rows first, of the next 30 at 4, and of the
    last 7 nowhere.
    """
    result = next(result for result in results(experiment) if result.name == "RL")
    predictions = [dict(row) for row in result.predictions]
    for number, row in enumerate(predictions[3:]):
        others = [item for item in row["item_ids"] if item != row["target_item_id"]]
        row["item_ids"] = (
            [*others[:3], row["target_item_id"], *others[3:]] if number < 30 else others
        )
    changed = dataclasses.replace(result, sid_of=None)
    changed.__dict__["predictions"] = predictions
    return changed


def test_examples_are_a_mix_of_hits_and_misses_whose_ranks_are_those_of_the_predictions(whole):
    data, result = stage_path(whole, "data"), mixed(whole)
    how, drawn = examples.draw_examples(result, data, 5, seed=1)
    assert how == (
        f"{len(drawn)} rows of RL with as many different targets, drawn at random (seed 1) in equal parts from the 3 "
        "with the target first, 30 with it at 2 to 10, 7 with it further down or not at all."
    )
    targets = {row["target_item_id"] for row in result.predictions}
    assert len(drawn) == len({example.target for example in drawn}) == min(20, len(targets))
    ranks = [example.rank for example in drawn]
    order = ["rank 1", "rank 4", "not in the first 12"]
    assert list(dict.fromkeys(ranks)) == order and ranks == sorted(ranks, key=order.index)
    samples = load_samples(data, 5)
    titles = dict(zip(samples.item_ids, samples.items["title"], strict=True))
    of_user = {
        row["user_id"]: (row, sample)
        for row, sample in zip(result.predictions, samples.splits["test"], strict=True)
    }
    for example in drawn:
        row, sample = of_user[example.user_id]
        assert (
            example.first_titles == [titles[item] for item in row["item_ids"][:10]]
            and example.target == titles[row["target_item_id"]]
        )
        assert example.history == [titles[samples.item_ids[item]] for item in sample.history]
        assert example.shown_at == {"rank 1": 0, "rank 4": 3}.get(example.rank)
    assert (
        examples.draw_examples(result, data, 5, seed=1)[1]
        == drawn
        != examples.draw_examples(result, data, 5, seed=2)[1]
    )


def test_a_target_that_shares_its_sid_has_a_span_of_ranks_in_its_example(whole):
    result = mixed(whole)
    first = result.predictions[0]
    shared = dataclasses.replace(
        result, sid_of={item: [n // 2] for n, item in enumerate(first["item_ids"])}
    )
    shared.__dict__["predictions"] = [first, *result.predictions[1:]]
    _, drawn = examples.draw_examples(shared, stage_path(whole, "data"), 5, seed=1)
    assert (
        next(e for e in drawn if e.user_id == first["user_id"]).rank
        == "rank 1 to 2 (they share a SID)"
    )


def test_the_target_is_marked_in_the_examples_of_the_page(page):
    assert (
        page.count('<details class="example"') == 20 == page.count('<li class="target">')
    )  # RL has every target first
    assert "<b>rank 1</b>: <bdi>thing " in page


def test_predictions_of_other_test_rows_are_refused(whole):
    result = mixed(whole)
    result.predictions[0]["target_item_id"] = (
        "i0" if result.predictions[0]["target_item_id"] != "i0" else "i1"
    )
    with pytest.raises(
        UserError,
        match=r"rl-test: predictions.jsonl holds other test rows than .*data, or in another order; ",
    ):
        examples.draw_examples(result, stage_path(whole, "data"), 5, seed=1)


# --------------------------------------------------------------------------------------------------
# Charts of dots


def test_a_dot_and_its_whisker_lie_where_the_axis_says():
    """The axis runs from 0 at x = 112 to 1.05 times the largest number, .21, at x = 318."""
    text = dot_chart("NDCG@10", [("a", [Dot(0.1, (0.05, 0.2))])], "caption")
    at = {value: 112 + 206 * value / 0.21 for value in (0.05, 0.1, 0.2)}
    assert (
        f'd="M{at[0.05]:.1f} 24.0H{at[0.2]:.1f}"' in text
        and f'cx="{at[0.1]:.1f}" cy="24.0"' in text
        and ">0.1000</text>" in text
    )
    assert dot_chart("nothing", [("a", [])], "caption") == ""


def test_a_legend_names_only_what_is_drawn():
    text = dot_chart("HR@K", [("1", [Dot(0.1, colour=2)])], "caption", [("a", 2), ("b", 3)])
    assert re.findall(r'<li class="(\w+)"><bdi>(.*?)</bdi>', text) == [("c2", "a")]


def test_without_a_baseline_no_best_one_is_spoken_of(tmp_path):
    experiment = tiny_run(tmp_path)
    rank(experiment, "sft", 1)
    rank(experiment, "rl", 0)
    text = written(experiment)
    assert "RL against SFT" in text and "The best baseline" not in text


def test_long_and_hostile_names_stay_beside_their_row():
    text = dot_chart("NDCG@10", [(NASTY, [Dot(0.1)])], "caption")
    assert "<script" not in text and "&lt;/td&gt;&lt;script&gt;ale…" in text


# --------------------------------------------------------------------------------------------------
# In a browser


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [pytest.param(1200, marks=pytest.mark.slow), 390])
def test_the_page_fits_a_screen_and_a_phone(whole, tmp_path, width):
    page = experiment_page.write_page(whole, results(whole))
    picture = tmp_path / f"{width}.png"
    browse(page, tmp_path, width, f"--screenshot={picture}")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and picture.stat().st_size > 20_000
    needed, there = widths(page, tmp_path, width)
    assert needed <= there
