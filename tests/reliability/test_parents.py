"""What a stage was made from is what it read: other settings, other parents, swapped names, changed files are refused.

bash test.sh tests/reliability/test_parents.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import evaluate
import rl
import sft
from baselines import run as baselines
from data import prepare
from minionerec.catalogue.inputs import Catalogue
from minionerec.catalogue.samples import load_samples
from minionerec.errors import UserError
from minionerec.experiment import files, lineage, preflight
from minionerec.experiment.commit import committed
from minionerec.experiment.manifest import MANIFEST, opened, read_manifest
from minionerec.experiment.run import run_stage
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import (
    STAGES,
    evaluation_path,
    partial_path,
    settings_of,
    stage_path,
)
from minionerec.model.policy import POLICY_FILE, Policy
from minionerec_trainer import RankingTrainer
from tests import forks
from tests.reliability.test_lineage import digest, other_sids, refused, remake
from tests.worlds import tiny_run

SFT = {"tasks": {"sid_to_sid": 1.0}, "epochs": 1, "batch_size": 32, "eval_rows": 10}


def as_yaml(experiment: Experiment) -> Path:
    """A YAML file of an experiment, beside its output."""
    file = Path(experiment.output_dir) / "tiny.yaml"
    file.write_text(json.dumps(experiment.model_dump()))
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Experiment:
    """An experiment with data, SIDs and an SFT model that scores over the legal children."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("made")
    experiment = tiny_run(folder, sft=SFT, model={"normalize": "trie", "max_tokens": 40})
    run_stage("sft", sft.train, experiment)
    return experiment


def copied(made: Experiment, folder: Path, **changes) -> Experiment:
    """The same in a folder of its own, with other settings."""
    shutil.copytree(Path(made.output_dir) / "tiny", folder / "tiny")
    return made.changed({"output_dir": str(folder), **changes})


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "stage, key, value, maker",
    [
        ("sids", "data.k_core", 3, "data"),
        ("baselines", "data.max_history", 1, "data"),
        ("sft", "data.max_history", 2, "data"),
        ("sft", "sids.kmeans_iterations", 7, "sids"),
        ("rl", "model.max_tokens", 16, "sft"),
        ("rl", "sft.epochs", 7, "sft"),
        ("evaluate", "model.normalize", "vocab", "sft"),
        ("evaluate", "seed", 43, "data"),
        ("audit", "data.max_history", 3, "data"),
    ],
)
def test_a_setting_that_a_parent_was_made_with_is_refused_when_it_differs(
    made, tmp_path, stage, key, value, maker
):
    """By the first look as well as by the stage; the line names key, maker and its command."""
    experiment = copied(made, tmp_path, **{"evaluate.checkpoint": "sft"})
    before = read_manifest(stage_path(experiment, maker))["settings"][key]
    changed = experiment.changed({key: value})
    expected = (
        f"{stage_path(experiment, maker)}: was made with other settings ({key}: {before} -> {value}); "
        f"restore them, or run `{STAGES[maker].command}` first with --redo {maker} (makes it and "
        f"what follows again), or with --name NAME --from {stage_path(experiment, maker).parent} "
        "(another experiment that shares what is the same)"
    )
    argv = [stage, "--config", str(as_yaml(changed))]
    with pytest.raises(UserError) as caught:
        preflight.main(argv)
    assert str(caught.value).splitlines()[-1] == expected
    works = {"sft": sft.train, "evaluate": evaluate.evaluate, "baselines": baselines.rank_all}
    if stage in works:
        (shutil.rmtree(stage_path(experiment, "sft")) if stage == "sft" else None)
        assert refused(lambda: run_stage(stage, works[stage], changed)) == expected


def test_rl_is_made_from_the_model_of_its_collaborative_reward(made, tmp_path):
    """Which is trained on the way; with other settings it would be another."""
    small = {"hidden_size": [8], "layers": [1], "heads": 2, "dropout": [0.2], "epochs": 1}
    changes = {f"baselines.{key}": value for key, value in small.items()}
    changes |= {"rl.rewards": {"rule": 1.0, "collaborative": 0.5}, "rl.epochs": 0.3, "rl.evals": 1}
    experiment = copied(made, tmp_path, **changes)
    run_stage("rl", rl.train, experiment)
    parents = read_manifest(stage_path(experiment, "rl"))["parents"]
    assert set(parents) == {"../data", "../sids", "../sft", "../collaborative"}
    changed = experiment.changed({"baselines.epochs": 2})
    assert refused(lambda: lineage.is_done(changed, "rl")) == (
        f"{stage_path(experiment, 'collaborative')}: was made with other settings "
        "(baselines.epochs: 1 -> 2); restore them, or run `bash rl.sh` first with --redo "
        "collaborative (makes it and what follows again), or with --name NAME --from "
        f"{stage_path(experiment, 'rl').parent} (another experiment that shares what is the same)"
    )


@pytest.mark.parametrize(
    "key, value",
    [("model.dtype", "float32"), ("sft.report_to", "wandb"), ("sids.encoder_tokens", 99)],
)
def test_how_a_stage_computes_may_differ_from_its_parents(made, key, value):
    lineage.open_stage(made.changed({key: value}), "sft")


def test_a_checkpoint_given_by_its_path_is_asked_for_its_settings_too(made, tmp_path):
    """Its manifest is believed; a folder without one says only how it is asked."""
    experiment = copied(made, tmp_path / "own", **{"model.normalize": "vocab"})
    for stage in ("data", "sids"):  # another experiment, made with its own settings
        shutil.rmtree(stage_path(experiment, stage))
    shutil.copytree(tmp_path / "own/tiny", tmp_path / "other/tiny")
    tiny_run(tmp_path / "own", model={"normalize": "vocab", "max_tokens": 40}, sft=SFT)
    path = tmp_path / "other/tiny/sft"
    assert refused(lambda: lineage.open_checkpoint(experiment, str(path))) == (
        f"{path}: was made with other settings (model.normalize: trie -> vocab); it is of another "
        "experiment: give this command the settings it was made with, or use it with the --config "
        "and --name of that one"
    )
    (path / MANIFEST).unlink()
    assert lineage.open_checkpoint(experiment, str(path)).parents == []


def test_a_plain_copy_of_a_checkpoint_is_asked_as_it_was_trained(made, tmp_path):
    """Without its manifest, by an experiment with other settings: the same bytes as its own
    ranking.
    """
    own = copied(made, tmp_path / "own", **{"evaluate.checkpoint": "sft"})
    run_stage("evaluate", evaluate.evaluate, own)
    folder = tmp_path / "copy"
    shutil.copytree(stage_path(own, "sft"), folder, ignore=shutil.ignore_patterns(MANIFEST))
    asked = json.loads((folder / POLICY_FILE).read_text())
    assert (asked["normalize"], asked["max_tokens"]) == ("trie", 40)
    other = tiny_run(
        tmp_path / "other", sft=SFT, evaluate={"checkpoint": str(folder), "num_beams": 10}
    )
    assert (other.model.normalize, other.model.max_tokens) == ("vocab", 512)
    run_stage("evaluate", evaluate.evaluate, other)
    ranked = [evaluation_path(e) / "predictions.jsonl" for e in (own, other)]
    assert ranked[0].read_bytes() == ranked[1].read_bytes()
    metrics = json.loads((evaluation_path(other) / "metrics.json").read_text())
    assert metrics["normalize"] == "trie"
    (folder / POLICY_FILE).write_text('{"normalize": "softly", "max_tokens": 40}')
    said = refused(lambda: Policy.load(folder, Catalogue.open(other)))
    assert said.startswith(f"{folder / POLICY_FILE}: does not say how the model is asked")


# ---------------------------------------------------------------------- made again while it is read


def test_sids_made_again_while_sft_trains_stop_its_next_checkpoint(made, tmp_path, monkeypatch):
    """Nothing is committed that names SIDs it was not trained on."""
    experiment = copied(made, tmp_path)
    shutil.rmtree(stage_path(experiment, "sft"))
    sids = stage_path(experiment, "sids")
    before = digest(sids)
    original = RankingTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 0 and digest(sids) == before:
            remake(experiment, "sids", ("data",), other_sids)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RankingTrainer, "training_step", training_step)
    said = refused(lambda: run_stage("sft", sft.train, experiment))
    assert f"was not written: {sids} was made again meanwhile (manifest {before}, now " in said
    assert not stage_path(experiment, "sft").exists()
    assert not list(Path(experiment.output_dir).glob("tiny/sft.partial/checkpoint-*"))


def test_data_made_again_while_an_evaluation_ranks_leave_no_results(made, tmp_path, monkeypatch):
    experiment = copied(made, tmp_path, **{"evaluate.checkpoint": "sft"})
    original = evaluate.rank_in_parts

    def rank_in_parts(*args):
        found = original(*args)
        remake(experiment, "data", (), lambda folder: (folder / "stats.json").write_text("{}"))
        return found

    monkeypatch.setattr(evaluate, "rank_in_parts", rank_in_parts)
    said = refused(lambda: run_stage("evaluate", evaluate.evaluate, experiment))
    path = evaluation_path(experiment)
    assert said.startswith(
        f"{path}: was not written: {stage_path(experiment, 'data')} was made again"
    )
    assert not path.exists()


def test_a_checkpoint_carries_the_sids_that_were_read_whatever_is_on_the_disk_later(made, tmp_path):
    experiment = copied(made, tmp_path)
    catalogue = Catalogue.open(experiment)
    policy = Policy.load("sft", catalogue)
    file = stage_path(experiment, "sids") / "sids.json"
    read = file.read_bytes()
    file.write_text("{}")
    policy.save(policy.model, tmp_path)
    assert (tmp_path / "sids.json").read_bytes() == read


def test_a_parent_that_is_gone_at_the_commit_is_named(tmp_path):
    experiment = tiny_run(tmp_path)
    data = opened(stage_path(experiment, "data"))
    with (
        pytest.raises(UserError, match=f"^{tmp_path}/x: was not written: {data.path}, .* is gone;"),
        committed(tmp_path / "x", "sids", {}, [data]),
    ):
        shutil.rmtree(data.path)
    assert not (tmp_path / "x").exists()


# -------------------------------------------------------------------------------------------- names


def test_a_copy_of_sft_is_not_taken_for_rl(made, tmp_path):
    experiment = copied(made, tmp_path)
    shutil.copytree(stage_path(experiment, "sft"), stage_path(experiment, "rl"))
    expected = (
        f"{stage_path(experiment, 'rl')}: holds something else than its name says ({MANIFEST}: stage "
        "is 'sft', expected 'rl'); rename it back, or delete it and make it again"
    )
    assert refused(lambda: lineage.open_stage(experiment, "rl")) == expected
    assert refused(lambda: lineage.is_done(experiment, "rl")) == expected


def test_a_copied_baseline_is_not_taken_for_another(made, tmp_path):
    methods = {"baselines.methods": ["popularity"], "evaluate.bootstrap_samples": 0}
    experiment = copied(made, tmp_path, **methods)
    run_stage("baselines", baselines.rank_all, experiment)
    folder = stage_path(experiment, "baselines")
    shutil.copytree(folder / "popularity", folder / "markov")
    both = experiment.changed({"baselines.methods": ["popularity", "markov"]})
    said = refused(lambda: run_stage("baselines", baselines.rank_all, both))
    assert f"{folder / 'markov'}: holds something else than its name says" in said
    assert "method is 'popularity', expected 'markov'" in said
    for name in ("markov", "popularity (copy)"):
        path = folder / name
        if not path.exists():
            shutil.copytree(folder / "popularity", path)
        said = refused(lambda path=path: lineage.require_own_name(path, read_manifest(path)))
        assert "it was made as 'popularity'" in said


def test_swapped_evaluations_are_noticed(tmp_path):
    experiment = tiny_run(tmp_path)
    paths = {}
    for checkpoint in ("sft", "rl"):
        one = experiment.changed({"evaluate.checkpoint": checkpoint})
        paths[checkpoint] = evaluation_path(one)
        with committed(paths[checkpoint], "evaluate", settings_of(one, "evaluate"), []) as staging:
            (staging / "metrics.json").write_text("{}")
        lineage.require_own_name(paths[checkpoint], read_manifest(paths[checkpoint]))
    paths["sft"].rename(tmp_path / "x")
    paths["rl"].rename(paths["sft"])
    said = refused(lambda: lineage.require_own_name(paths["sft"], read_manifest(paths["sft"])))
    assert "it was made as 'rl-test'" in said


# ------------------------------------------------------------------------------- files of one's own


def test_another_checkpoint_at_the_same_path_is_not_taken_for_the_one_that_was_evaluated(
    made, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(stage_path(made, "sft"), folder, ignore=shutil.ignore_patterns(MANIFEST))
    experiment = copied(made, tmp_path, **{"evaluate.checkpoint": str(folder)})
    run_stage("evaluate", evaluate.evaluate, experiment)
    assert lineage.is_finished(experiment, "evaluate")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    said = refused(lambda: lineage.is_finished(experiment, "evaluate"))
    path = evaluation_path(experiment)
    assert said.startswith(f"{path}: {folder} has changed since it was read; run `bash")


def test_rows_appended_to_a_table_after_stage_0_are_noticed(tmp_path, monkeypatch, capsys):
    config = forks.shop(tmp_path)
    monkeypatch.setattr("sys.argv", ["prepare.py", "--config", str(config)])
    prepare.main()
    prepare.main()
    assert "is finished" in capsys.readouterr().out
    with open(tmp_path / "interactions.csv", "a") as handle:
        handle.write("u00,05,99999\n")
    said = refused(prepare.main)
    data = tmp_path / "runs/shop/data"
    assert said == (
        f"{data}: {tmp_path / 'interactions.csv'} has changed since it was read; run "
        "`bash data/prepare.sh` again with --redo data, or give this experiment another name with --name NAME"
    )


def test_a_table_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    config = forks.shop(tmp_path)
    monkeypatch.setattr("sys.argv", ["prepare.py", "--config", str(config)])
    original = prepare.prepared.load_source

    def load_source(experiment):
        source = original(experiment)
        with open(tmp_path / "interactions.csv", "a") as handle:
            handle.write("u00,05,99999\n")
        return source

    monkeypatch.setattr(prepare.prepared, "load_source", load_source)
    assert "interactions.csv: changed while it was read" in refused(prepare.main)


def test_a_large_file_is_told_by_its_size_its_time_and_its_two_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 100)
    monkeypatch.setattr(files, "END", 10)
    file = tmp_path / "large"
    file.write_bytes(bytes(200))
    before = files.fingerprint(file)
    assert (before["size"], set(before)) == (200, {"size", "changed_ns", "ends_sha256"})
    status = file.stat()
    for place in (0, 9, 190, 199):
        changed = bytearray(200)
        changed[place] = 1
        file.write_bytes(changed)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert files.fingerprint(file) != before
    file.write_bytes(bytes(200))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.fingerprint(file) == before
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert files.fingerprint(file) != before


# --------------------------------------------------------------------------------- order, questions


def test_a_commit_syncs_files_then_the_manifest_then_folders_renames_and_syncs_the_parent(
    tmp_path, monkeypatch
):
    """The order of the calls of the operating system; a rename before its syncs could survive a
    crash that they do not.
    """
    calls = []
    numbers: dict[int, str] = {}
    original_open, original_fsync, original_rename = os.open, os.fsync, os.rename

    def recording_open(path, *args, **kwargs):
        number = original_open(path, *args, **kwargs)
        numbers[number] = os.fspath(path)
        return number

    def recording_fsync(number):
        calls.append(("fsync", Path(numbers[number]).name))
        original_fsync(number)

    def recording_rename(source, target):
        calls.append(("rename", Path(target).name))
        original_rename(source, target)

    monkeypatch.setattr(os, "open", recording_open)
    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording_rename)
    with committed(tmp_path / "run" / "data", "data", {}, []) as staging:
        (staging / "b.txt").write_text("b")
        (staging / "a.txt").write_text("a")
        (staging / "nested").mkdir()
        (staging / "nested/c.txt").write_text("c")
    assert calls == [
        ("fsync", "a.txt"),
        ("fsync", "b.txt"),
        ("fsync", "c.txt"),
        ("fsync", MANIFEST),
        ("fsync", "nested"),
        ("fsync", ".data.staging"),
        ("rename", "data"),
        ("fsync", "run"),
    ]


def test_a_question_changes_nothing_on_the_disk(made, tmp_path):
    """Leftovers of a killed run are there, and stay when one only asks."""
    experiment = copied(made, tmp_path, **{"evaluate.checkpoint": "sft"})
    partial = partial_path(experiment, "sft")
    partial.mkdir()
    (partial / "x").write_text("x")
    (tmp_path / "tiny/.sft.parts").mkdir()

    def listing():
        found = sorted(tmp_path.rglob("*"))
        return [(path, path.stat().st_mtime_ns) for path in found]

    before = listing()
    assert lineage.is_done(experiment, "sft") and lineage.is_finished(experiment, "sft")
    assert not lineage.is_finished(experiment, "rl")
    lineage.open_stage(experiment, "sft")
    preflight.require_inputs(experiment, "evaluate")
    assert listing() == before


def test_a_finished_stage_forgets_what_a_killed_run_left_when_its_command_is_given_again(
    made, tmp_path, capsys
):
    experiment = copied(made, tmp_path)
    partial = partial_path(experiment, "sft")
    partial.mkdir()
    assert preflight.main(["sft", "--config", str(as_yaml(experiment))]) == preflight.NOTHING_TO_DO
    assert not partial.exists()


# ---------------------------------------------------------------------------------------- notebooks


def test_recommendations_are_that_users_line_in_the_predictions(made, tmp_path):
    """Histories of any length, whole, cut at the right end; then without what the user had."""
    for exclude in (False, True):
        name = "exclude" if exclude else "all"
        experiment = copied(
            made,
            tmp_path / name,
            **{"evaluate.checkpoint": "sft", "evaluate.exclude_history": exclude},
        )
        run_stage("evaluate", evaluate.evaluate, experiment)
        lines = (evaluation_path(experiment) / "predictions.jsonl").read_bytes().splitlines()
        rows = [json.loads(line) for line in lines]
        table = pd.read_parquet(stage_path(experiment, "data") / "interactions.parquet")
        table = table[table["split"] != "test"]
        whole = table.groupby("user_id")["item_id"].agg(list)
        histories = [whole[row["user_id"]] for row in rows]
        assert max(map(len, histories)) > experiment.data.max_history
        policy = Policy.load("sft", Catalogue.open(experiment))
        found = policy.recommend(histories, 10, exclude=histories if exclude else None)
        for row, recommended in zip(rows, found, strict=True):
            assert [item.item_id for item in recommended] == row["item_ids"][:10]
            scores = [item.score for item in recommended]
            assert scores == pytest.approx(row["scores"][:10], abs=2e-5)
        titles = load_samples(stage_path(experiment, "data"), 5).items.set_index("item_id")["title"]
        assert all(item.title == titles[item.item_id] for item in found[0])


def test_recommendations_keep_to_what_is_allowed_and_an_unknown_id_is_named(made):
    policy = Policy.load("sft", Catalogue.open(made))
    allowed = ["i3", "i7", "i11"]
    everything = policy.recommend([["i1", "i2"]], 24)[0]
    order = [item.item_id for item in everything if item.item_id in allowed]
    assert [item.item_id for item in policy.recommend([["i1", "i2"]], 5, allow=allowed)[0]] == order
    kept = policy.recommend([["i1"], ["i2"]], 5, exclude=[["i3"], []], allow=allowed)
    assert [sorted(item.item_id for item in row) for row in kept] == [
        ["i11", "i7"],
        ["i11", "i3", "i7"],
    ]
    assert policy.recommend([], 5) == []
    with pytest.raises(
        UserError, match="^1 of 2 ids are not in .*items.parquet: i24; did you mean"
    ):
        policy.recommend([["i1", "i24"]], 3)


def test_every_field_of_a_stage_row_is_a_file_or_a_row_of_the_table(root):
    for stage in STAGES.values():
        assert dataclasses.is_dataclass(stage)
        assert (root / stage.script).is_file()
        assert (root / stage.command.split()[-1]).is_file()
        assert all(need in STAGES or need == "evaluate.checkpoint" for need in stage.needs)
        assert not stage.part_of or stage.part_of in STAGES
