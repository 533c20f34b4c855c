"""A stage's first look (minionerec/experiment/preflight.py).

bash test.sh tests/experiment/test_preflight.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minionerec.errors import UserError
from minionerec.experiment import preflight
from minionerec.experiment.baselines import BASELINES
from minionerec.experiment.commit import committed
from minionerec.experiment.config import read_experiment
from minionerec.experiment.files import write_json
from minionerec.experiment.manifest import opened
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import (
    COMMANDS,
    baseline_path,
    evaluation_path,
    settings_of,
    stage_path,
)

EARLIER = {
    "data": (),
    "sids": ("data",),
    "sft": ("data", "sids"),
    "rl": ("data", "sids", "sft"),
    "baselines": ("data", "sids"),
    "evaluate": ("data", "sids", "rl"),
}


@pytest.fixture
def experiment(tmp_path, monkeypatch) -> Experiment:
    """An experiment without any stage, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text("seed: 1\n")
    return read_experiment("demo.yaml")


def make(experiment: Experiment, stage: str, path: Path | None = None) -> Path:
    """Commit a stage made from the earlier ones that are there."""
    path = path or stage_path(experiment, stage)
    there = [stage_path(experiment, name) for name in EARLIER[stage]]
    parents = [opened(parent) for parent in there if parent.exists()]
    with committed(path, stage, settings_of(experiment, stage), parents) as staging:
        write_json(staging / "stage.json", stage)
    return path


def make_baseline(experiment: Experiment, method: str, metrics: object = None) -> None:
    """Commit one baseline."""
    stage, data = BASELINES[method].stage, stage_path(experiment, "data")
    with committed(
        baseline_path(experiment, method),
        stage,
        settings_of(experiment, stage),
        [opened(data)] if data.exists() else [],
        method=method,
    ) as staging:
        write_json(staging / "metrics.json", metrics)


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
        f"runs/demo/{name} not found; run `{COMMANDS[name]}` with the same --config first"
        for name in EARLIER[stage]
    ]


@pytest.mark.parametrize(
    "stage, upcoming",
    [
        ("data", "bash rqvae/rqvae.sh"),
        ("sids", "bash sft.sh"),
        ("sft", "bash rl.sh"),
        ("rl", "bash evaluate.sh"),
        ("baselines", "bash sft.sh"),
        ("evaluate", "python -m minionerec.summary"),
    ],
)
def test_a_finished_stage_says_so_and_what_comes_next(experiment, capsys, stage, upcoming):
    for name in EARLIER[stage]:
        make(experiment, name)
    assert look(stage) == 0
    path = evaluation_path(experiment) if stage == "evaluate" else stage_path(experiment, stage)
    if stage == "baselines":
        for method in experiment.baselines.methods:
            assert look(stage) == 0
            make_baseline(experiment, method)
    else:
        make(experiment, stage, path)
    assert look(stage) == preflight.NOTHING_TO_DO
    assert capsys.readouterr().out == (
        f"{path} is there already, made with these settings; --redo {stage} makes it again. "
        f"Next: `{upcoming}` with the same --config\n"
    )


def test_a_finished_stage_with_other_settings_is_refused(experiment):
    make(experiment, "data")
    with pytest.raises(UserError) as caught:
        look("data", "--data.k_core", "3")
    assert str(caught.value) == (
        "runs/demo/data: was made with other settings (data.k_core: 5 -> 3); restore them, "
        "or run again with --redo data (makes it and what follows again), or with --name NAME "
        "--from runs/demo (another experiment that shares what is the same)"
    )


def test_a_shortened_file_of_an_earlier_stage_is_found(experiment):
    path = make(experiment, "data")
    (path / "stage.json").write_text("")
    with pytest.raises(UserError, match="^runs/demo/data/stage.json: is damaged"):
        look("sids")


@pytest.mark.parametrize(
    "checkpoint, needed", [("sft", ["data", "sids", "sft"]), ("rl", ["data", "sids", "rl"])]
)
def test_an_evaluation_needs_the_checkpoint_that_it_names(experiment, checkpoint, needed):
    with pytest.raises(UserError) as caught:
        look("evaluate", "--evaluate.checkpoint", checkpoint)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        f"runs/demo/{name}" for name in needed
    ]


def test_an_evaluation_of_any_folder_needs_that_folder(experiment):
    for stage in ("data", "sids"):
        make(experiment, stage)
    with pytest.raises(UserError) as caught:
        look("evaluate", "--evaluate.checkpoint", "elsewhere/model")
    assert str(caught.value) == (
        "evaluate.checkpoint: got 'elsewhere/model', expected sft, rl or the folder of a checkpoint; "
        f"no such folder in {Path.cwd()}"
    )
    Path("elsewhere/model").mkdir(parents=True)
    assert look("evaluate", "--evaluate.checkpoint", "elsewhere/model") == 0


def test_unknown_flags_and_stages_are_refused(experiment):
    with pytest.raises(
        UserError, match="^command line: --sft: unknown key; it is a section, write sft.KEY$"
    ):
        look("sft", "--sft", "3")
    with pytest.raises(
        UserError,
        match="^preflight: got 'train', expected one of data, sids, baselines, sft, rl, evaluate, audit, add_items$",
    ):
        look("train")


def test_a_missing_package_of_the_quantiser_is_said_before_anything_is_embedded(
    experiment, monkeypatch
):
    make(experiment, "data")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"^sids.method: opq needs the package faiss-cpu; run `pip"):
        look("sids", "--sids.method", "opq")
    look("sids")


def test_nothing_heavy_is_imported(root):
    """A mistake must be told within a second or two, so torch stays out."""
    code = "import sys, minionerec.experiment.preflight; print(sorted({'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True) == "[]\n"
