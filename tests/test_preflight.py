"""A stage's first look (minionerec/preflight.py) and the table at the end (minionerec/summary.py).

    bash test.sh tests/test_preflight.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minionerec import artifacts, preflight, summary
from minionerec.artifacts import COMMANDS, committed, relevant_settings, stage_path
from minionerec.config import UserError, read_experiment
from minionerec.settings import BASELINES, Experiment

EARLIER = {"data": (), "sids": ("data",), "sft": ("data", "sids"), "rl": ("data", "sids", "sft"), "baselines": ("data", "sids"),
           "evaluate": ("data", "sids", "rl")}


@pytest.fixture
def experiment(tmp_path, monkeypatch) -> Experiment:
    """An experiment without any stage, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text("seed: 1\n")
    return read_experiment("demo.yaml")


def make(experiment: Experiment, stage: str, path: Path | None = None) -> Path:
    """Commit a stage made from the earlier ones that are there."""
    path = path or stage_path(experiment, stage)
    parents = [parent for parent in (stage_path(experiment, name) for name in EARLIER[stage]) if parent.exists()]
    with committed(path, stage, relevant_settings(experiment, stage), parents) as staging:
        artifacts.write_json(staging / "stage.json", stage)
    return path


def make_baseline(experiment: Experiment, method: str, metrics: object = None) -> None:
    """Commit one baseline."""
    stage, parents = artifacts.baseline_stage(method), [stage_path(experiment, "data")]
    with committed(artifacts.baseline_path(experiment, method), stage, relevant_settings(experiment, stage),
                   [parent for parent in parents if parent.exists()]) as staging:
        artifacts.write_json(staging / "metrics.json", metrics)


def look(*words: str) -> int:
    return preflight.main([*words, "--config", "demo.yaml"])


@pytest.mark.parametrize("stage", EARLIER)
def test_every_missing_stage_gets_a_line_with_its_command(experiment, stage):
    if not EARLIER[stage]:
        assert look(stage) == 0
        return
    with pytest.raises(UserError) as caught:
        look(stage)
    assert str(caught.value).splitlines() == [
        f"runs/demo/{name} not found; run `{COMMANDS[name]}` with the same --config first" for name in EARLIER[stage]]


@pytest.mark.parametrize("stage, upcoming", [
    ("data", "bash rqvae/rqvae.sh"), ("sids", "bash sft.sh"), ("sft", "bash rl.sh"), ("rl", "bash evaluate.sh"),
    ("baselines", "bash sft.sh"), ("evaluate", "python -m minionerec.summary")])
def test_a_finished_stage_says_so_and_what_comes_next(experiment, capsys, stage, upcoming):
    for name in EARLIER[stage]:
        make(experiment, name)
    assert look(stage) == 0
    path = artifacts.evaluation_path(experiment) if stage == "evaluate" else stage_path(experiment, stage)
    if stage == "baselines":
        for method in BASELINES:
            assert look(stage) == 0
            make_baseline(experiment, method)
    else:
        make(experiment, stage, path)
    assert look(stage) == preflight.NOTHING_TO_DO
    assert capsys.readouterr().out == (f"{path} is there already, made with these settings; delete it to make it again. "
                                       f"Next: `{upcoming}` with the same --config\n")


def test_a_finished_stage_with_other_settings_is_refused(experiment):
    make(experiment, "data")
    with pytest.raises(UserError) as caught:
        look("data", "--data.k_core", "3")
    assert str(caught.value) == ("runs/demo/data: was made with other settings (data.k_core: 5 -> 3); delete it, "
                                 "or give this experiment another name with --name NAME")


def test_a_shortened_file_of_an_earlier_stage_is_found(experiment):
    path = make(experiment, "data")
    (path / "stage.json").write_text("")
    with pytest.raises(UserError, match="^runs/demo/data/stage.json: is damaged"):
        look("sids")


@pytest.mark.parametrize("checkpoint, needed", [("sft", ["data", "sids", "sft"]), ("rl", ["data", "sids", "rl"])])
def test_an_evaluation_needs_the_checkpoint_that_it_names(experiment, checkpoint, needed):
    with pytest.raises(UserError) as caught:
        look("evaluate", "--evaluate.checkpoint", checkpoint)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [f"runs/demo/{name}" for name in needed]


def test_an_evaluation_of_any_folder_needs_that_folder(experiment):
    for stage in ("data", "sids"):
        make(experiment, stage)
    with pytest.raises(UserError) as caught:
        look("evaluate", "--evaluate.checkpoint", "elsewhere/model")
    assert str(caught.value) == "evaluate.checkpoint: got 'elsewhere/model', expected sft, rl or the folder of a checkpoint"
    Path("elsewhere/model").mkdir(parents=True)
    assert look("evaluate", "--evaluate.checkpoint", "elsewhere/model") == 0


def test_unknown_flags_and_stages_are_refused(experiment):
    with pytest.raises(UserError, match="^command line: --sft: unknown key; it is a section, write sft.KEY$"):
        look("sft", "--sft", "3")
    with pytest.raises(UserError, match="^preflight: got 'train', expected one of data, sids, sft, rl, evaluate, baselines$"):
        look("train")


def test_nothing_heavy_is_imported(root):
    """A mistake must be told within a second or two, so torch stays out."""
    code = "import sys, minionerec.preflight; print(sorted({'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True) == "[]\n"


def metrics(number: float) -> dict[str, object]:
    """A ``metrics.json`` whose numbers can be told apart in the table."""
    keys = [f"{metric}@{k}" for metric in ("HR", "NDCG") for k in (1, 3, 5, 10, 20, 50)]
    return {**dict.fromkeys(keys, number), "num_users": 7, "intervals": {"NDCG@10": [number / 2, 1.0]}}


def table_of(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    summary.main(experiment)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_summary_shows_baselines_then_sft_then_rl_then_other_checkpoints(experiment, capsys):
    make(experiment, "data")
    for method, value in (("markov", 0.25), ("popularity", 0.125), ("item_knn", 0.375)):
        make_baseline(experiment, method, metrics(value))
    evaluate = stage_path(experiment, "evaluate")
    for name, number in (("rl-test", 0.5), ("sft-test", 0.4375), ("checkpoint-8-test", 0.0625), ("rl-valid", 0.75)):
        (evaluate / name).mkdir(parents=True)
        (evaluate / name / "metrics.json").write_text(json.dumps(metrics(number)))
    lines = table_of(experiment, capsys)
    assert " ".join(lines[0]) == "demo: full-catalogue ranking of the test split, 7 users"
    assert lines[1][:6] == ["HR@1", "HR@5", "HR@10", "HR@50", "NDCG@5", "NDCG@10"]
    assert [(line[0], line[1]) for line in lines[2:] if len(line) > 2] == [
        ("popularity", "0.1250"), ("markov", "0.2500"), ("item_knn", "0.3750"), ("SFT", "0.4375"), ("RL", "0.5000"),
        ("checkpoint-8", "0.0625")]
    assert lines[-2][-1] == "0.2500-1.0000"         # RL's interval


def test_the_summary_says_what_is_not_evaluated_yet(experiment, capsys):
    with pytest.raises(UserError) as caught:
        summary.main(experiment)
    assert str(caught.value) == ("runs/demo: nothing is measured yet; run `bash baselines/run.sh` or `bash evaluate.sh` "
                                 "with the same --config first")
    make_baseline(experiment, "popularity", metrics(0.125))
    assert [" ".join(line) for line in table_of(experiment, capsys)[-2:]] == [
        "SFT: not evaluated; run `bash evaluate.sh --evaluate.checkpoint sft` with the same --config",
        "RL: not evaluated; run `bash evaluate.sh --evaluate.checkpoint rl` with the same --config"]


def test_the_summary_names_a_damaged_file(experiment):
    path = stage_path(experiment, "evaluate") / "rl-test" / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UserError, match=rf"^{path}: is damaged \(.*\); delete {path.parent} and make it again$"):
        summary.main(experiment)
