"""Stage 4: the same bytes however it is shared, cut or continued; nothing of another run; refusals.
A random model will do.
"""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import evaluate
from minionerec import summary
from minionerec.catalogue import inputs
from minionerec.catalogue.templates import TEMPLATES
from minionerec.errors import UserError
from minionerec.evaluation import run as evaluation_run
from minionerec.experiment import commit, parts
from minionerec.experiment.commit import committed
from minionerec.experiment.lineage import is_done
from minionerec.experiment.manifest import MANIFEST, opened, verify
from minionerec.experiment.run import run_stage
from minionerec.experiment.settings import EvaluateSettings
from minionerec.experiment.stages import evaluation_path, parts_path, settings_of, stage_path
from minionerec.model import backbone, ranking
from tests.worlds import tiny_run

ROOT = Path(__file__).resolve().parents[2]
USERS = 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a random model for the SIDs of ``tiny_run``, made by no stage."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoint")
    experiment = tiny_run(folder / "runs")
    sids_dir = stage_path(experiment, "sids")
    samples, sids = inputs.load_catalogue(experiment, stage_path(experiment, "data"), sids_dir)
    model, tokenizer = backbone.build(experiment.model, sids, inputs.texts(samples.items), seed=1)
    model.get_output_embeddings().weight.data.normal_(std=0.5)
    (folder / "model").mkdir()
    backbone.save(model, tokenizer, sids_dir / "sids.json", TEMPLATES["compact"], folder / "model")
    return folder / "model"


@pytest.fixture(autouse=True)
def small_forwards(monkeypatch):
    """Four users share a forward: 10 forwards, and with ``batch_size`` 8 five parts."""
    monkeypatch.setattr(ranking, "USERS_PER_FORWARD", 4)


def world(folder, checkpoint, normalize="vocab", **changes):
    """The experiment and the directory of its evaluation, not there yet."""
    experiment = tiny_run(folder)
    settings = {
        "checkpoint": str(checkpoint),
        "num_beams": 24,
        "bootstrap_samples": 20,
        "batch_size": 8,
    }
    experiment = experiment.changed(
        {"model.normalize": normalize, "evaluate": EvaluateSettings(**(settings | changes))}
    )
    return experiment, evaluation_path(experiment)


def run(folder, checkpoint, **changes):
    """Evaluate in this process; returns the bytes of the predictions and the metrics."""
    experiment, path = world(folder, checkpoint, **changes)
    run_stage("evaluate", evaluate.evaluate, experiment)
    verify(path)
    assert not parts_path(path).exists()
    return (path / "predictions.jsonl").read_bytes(), json.loads(
        (path / "metrics.json").read_text()
    )


def killed(folder, checkpoint, sabotage):
    """Evaluate in a child that ``sabotage`` has prepared to kill itself; returns the folder of its
    parts.
    """
    experiment, path = world(folder, checkpoint)
    child = os.fork()
    if not child:
        sabotage()
        run_stage("evaluate", evaluate.evaluate, experiment)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and not path.exists()
    return parts_path(path)


def dies_at(module, name, call, before=False):
    """A sabotage: kill -9 right after (or before) the so-many-th call of a function."""

    def sabotage():
        original, calls = getattr(module, name), []

        def function(*args, **kwargs):
            calls.append(name)
            if before and len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(module, name, function)

    return sabotage


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint):
    """Predictions and metrics of an evaluation that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "USERS_PER_FORWARD", 4)
        return run(tmp_path_factory.mktemp("whole"), checkpoint)


def test_predictions_are_one_line_per_row_in_the_order_of_the_rows(whole, tmp_path):
    rows = [json.loads(line) for line in whole[0].decode().splitlines()]
    experiment, _ = world(tmp_path, "none")
    samples, _ = inputs.load_catalogue(
        experiment, *(stage_path(experiment, stage) for stage in ("data", "sids"))
    )
    expected = [(row.user_id, samples.item_ids[row.target]) for row in samples.splits["test"]]
    assert [(row["user_id"], row["target_item_id"]) for row in rows] == expected and len(
        rows
    ) == USERS
    assert all(
        sorted(row["item_ids"]) == sorted(samples.item_ids)
        and row["scores"] == sorted(row["scores"], reverse=True)
        for row in rows
    )


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_any_batch_size_gives_the_same_bytes_and_metrics(whole, tmp_path, checkpoint, batch_size):
    predictions, metrics = run(tmp_path, checkpoint, batch_size=batch_size)
    assert predictions == whole[0]
    assert metrics | {"cost": None} == whole[1] | {"cost": None}


@pytest.mark.parametrize(
    "sabotage, kept",
    [
        (dies_at(parts, "write_part", 3), 3),
        (dies_at(os, "replace", 4, before=True), 2),  # the first name given is that of run.json
        (dies_at(evaluation_run, "joined", 1), 5),
        (dies_at(commit, "commit", 1, before=True), 5),
    ],
    ids=[
        "after a part",
        "before a part has its name",
        "after the last part",
        "before the results have their name",
    ],
)
def test_kill_9_loses_at_most_one_part_and_the_same_command_ends_in_the_same_bytes(
    whole, tmp_path, checkpoint, capsys, sabotage, kept
):
    folder = killed(tmp_path, checkpoint, sabotage)
    assert len(list(folder.glob("part-*"))) == kept
    predictions, metrics = run(tmp_path, checkpoint)
    assert f"continuing: {kept * 8} rows are ranked already, in {folder}" in capsys.readouterr().out
    assert predictions == whole[0]
    assert metrics["cost"]["users"] == USERS - kept * 8
    assert metrics | {"cost": None} == whole[1] | {"cost": None}


@pytest.mark.slow
def test_two_processes_one_of_them_killed_leave_parts_from_which_one_process_continues(
    whole, tmp_path, checkpoint
):
    """As accelerate starts them; the survivor is stopped by the launcher, whatever it has written
    counts.
    """
    experiment, path = world(tmp_path, checkpoint)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(experiment.model_dump()))
    command = [
        sys.executable,
        "-m",
        "minionerec.experiment.accelerated",
        "--config_file",
        str(ROOT / "configs/accelerate/cpu_processes.yaml"),
        str(ROOT / "tests/stages.py"),
        "--faults",
        "small_forwards,kill_second_process_after_two_parts",
        f"{tmp_path / 'tiny.yaml'}:evaluate",
    ]
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("ACCELERATE_") and key != "RANK"
    }
    done = subprocess.run(
        command,
        env=kept | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 128 + signal.SIGKILL, done.stdout + done.stderr
    assert not path.exists() and len(list(parts_path(path).glob("part-*"))) >= 2
    predictions, metrics = run(tmp_path, checkpoint)
    assert predictions == whole[0] and metrics["cost"]["users"] < USERS


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"num_beams": 10}, "evaluate.num_beams: 24 -> 10"),
        ({"normalize": "trie"}, "model.normalize: vocab -> trie"),
        ({"split": "valid"}, None),  # another directory
    ],
)
def test_parts_of_other_settings_are_deleted_and_it_is_said_why(
    tmp_path, checkpoint, capsys, changes, reason
):
    killed(tmp_path, checkpoint, dies_at(parts, "write_part", 2))
    predictions, metrics = run(tmp_path, checkpoint, **changes)
    assert predictions == run(tmp_path / "clean", checkpoint, **changes)[0]
    assert metrics["cost"]["users"] == USERS
    printed = capsys.readouterr().out
    assert (f"held parts of another evaluation ({reason}); deleted, beginning anew" in printed) == (
        reason is not None
    )


def test_parts_of_another_checkpoint_in_the_same_folder_are_not_used(
    whole, tmp_path, checkpoint, capsys
):
    """The folder keeps its name; one weight in it is another."""
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    model.mkdir()
    for file in checkpoint.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    killed(tmp_path, model, dies_at(parts, "write_part", 2))
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"] += 1.0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    predictions, metrics = run(tmp_path, model)
    assert "(checkpoint_sha256: " in capsys.readouterr().out
    assert metrics["cost"]["users"] == USERS and predictions != whole[0]


def test_a_damaged_part_is_ranked_again(whole, tmp_path, checkpoint):
    folder = killed(tmp_path, checkpoint, dies_at(parts, "write_part", 3))
    damaged = sorted(folder.glob("part-*"))[1]
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    predictions, metrics = run(tmp_path, checkpoint)
    assert (predictions, metrics["cost"]["users"]) == (whole[0], USERS - 2 * 8)


def test_a_full_disk_is_one_line_and_keeps_what_is_ranked(whole, tmp_path, checkpoint, monkeypatch):
    experiment, path = world(tmp_path, checkpoint)
    original, calls = os.replace, []

    def replace(*args):
        calls.append(args)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        original(*args)

    with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(os, "replace", replace)
        run_stage("evaluate", evaluate.evaluate, experiment)
    folder = parts_path(path)
    assert str(caught.value).startswith(f"{folder}/part-00002.")
    assert str(caught.value).endswith(
        ".jsonl: cannot be written: No space left on device; make room or pass another --output_dir, then "
        "run again (the parts that are finished are kept)"
    )
    assert len(list(folder.glob("*"))) == 3 and not list(folder.glob(".*"))
    predictions, metrics = run(tmp_path, checkpoint)
    assert (predictions, metrics["cost"]["users"]) == (whole[0], USERS - 2 * 8)


def test_cost_stands_beside_accuracy(whole):
    """1-layer model of width 16; prompts are the start token and two tokens per item of a history
    of 1 to 5.
    """
    spent = whole[1]["cost"]
    assert list(spent) == [
        "parameters",
        "train_seconds",
        "users",
        "seconds",
        "users_per_second",
        "prompt_tokens_per_user",
        "peak_memory_mb",
    ]
    assert (spent["users"], spent["train_seconds"]) == (USERS, None)
    # The seconds are written with three digits
    assert USERS / spent["users_per_second"] == pytest.approx(spent["seconds"], abs=6e-4)
    assert 3 <= spent["prompt_tokens_per_user"] <= 11 and spent["peak_memory_mb"] > 50
    assert 5_000 < spent["parameters"] < 50_000


def test_lists_of_five_say_nothing_of_ten_and_tables_show_a_dash(tmp_path, checkpoint, capsys):
    _, metrics = run(tmp_path, checkpoint, num_beams=5)
    assert "HR@5" in metrics and not {"HR@10", "NDCG@50", "MRR", "coverage@10"} & {
        *metrics,
        *metrics["sid_level"],
        *metrics["intervals"],
    }
    evaluation = capsys.readouterr().out
    summary.main(world(tmp_path, checkpoint)[0])
    names = ("model-", str(checkpoint))  # of the results, and of what was evaluated
    for table in (evaluation, capsys.readouterr().out):
        row = next(line.split() for line in table.splitlines() if line.startswith(names))
        assert row[1:] == [
            f"{metrics['HR@1']:.4f}",
            f"{metrics['HR@5']:.4f}",
            "-",
            "-",
            f"{metrics['NDCG@5']:.4f}",
            "-",
        ]


def test_a_model_that_is_not_finite_is_refused_instead_of_scored_zero(
    tmp_path, checkpoint, monkeypatch
):
    load = backbone.load

    def broken(*args):
        model, tokenizer = load(*args)
        model.get_input_embeddings().weight.data.fill_(float("nan"))
        return model, tokenizer

    monkeypatch.setattr(backbone, "load", broken)
    experiment, path = world(tmp_path, checkpoint)
    with pytest.raises(
        UserError,
        match="^the model's scores are not numbers: one of its weights is NaN or infinite",
    ):
        run_stage("evaluate", evaluate.evaluate, experiment)
    assert not path.exists()


def test_a_finished_evaluation_with_shorter_prompts_is_another_one(tmp_path, checkpoint):
    run(tmp_path, checkpoint)
    experiment, path = world(tmp_path, checkpoint)
    shorter = experiment.changed({"model.max_tokens": 20})
    with pytest.raises(
        UserError, match="was made with other settings \\(model.max_tokens: 512 -> 20\\)"
    ):
        is_done(shorter, "evaluate", path)


def test_parts_give_back_the_lines_that_were_written_whatever_is_in_them(tmp_path):
    lines = ['{"user_id": "a\u2028b"}', '{"user_id": "\x85"}']
    assert parts.open_parts(tmp_path / "p", {"a": 1}) == []
    parts.write_part(tmp_path / "p", 3, lines)
    assert list(parts.read_parts(tmp_path / "p", 5)) == [None, None, None, lines, None]
    assert parts.missing_parts(tmp_path / "p", 5) == [0, 1, 2, 4]


def test_a_folder_of_parts_is_listed_once_however_many_there_are(tmp_path, monkeypatch):
    parts.open_parts(tmp_path / "p", {"a": 1})
    for number in range(20):
        parts.write_part(tmp_path / "p", number, [str(number)])
    listed = []
    original = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *words: listed.append(words) or original(*words))
    assert list(parts.read_parts(tmp_path / "p", 20)) == [[str(number)] for number in range(20)]
    assert len(listed) == 1


def test_parts_without_a_word_on_their_run_are_not_used(tmp_path):
    parts.open_parts(tmp_path / "p", {"a": 1})
    parts.write_part(tmp_path / "p", 0, ["x"])
    (tmp_path / "p/run.json").write_text("{")
    assert parts.open_parts(tmp_path / "p", {"a": 1}) == ["run.json is missing or damaged"]
    assert parts.missing_parts(tmp_path / "p", 1) == [0]


def test_on_request_nothing_that_a_user_had_is_ranked_also_beyond_what_the_prompt_shows(
    tmp_path, checkpoint
):
    tiny_run(tmp_path, data={"max_history": 2})
    experiment, path = world(tmp_path, checkpoint, exclude_history=True)
    experiment = experiment.changed({"data.max_history": 2})
    run_stage("evaluate", evaluate.evaluate, experiment)
    rows = [json.loads(line) for line in (path / "predictions.jsonl").read_bytes().splitlines()]
    table = pd.read_parquet(stage_path(experiment, "data") / "interactions.parquet")
    had = table[table["split"] != "test"].groupby("user_id")["item_id"].agg(set)
    assert max(map(len, had)) > 2 and len(rows) == USERS
    assert all(
        set(row["item_ids"]) == {f"i{n}" for n in range(24)} - had[row["user_id"]] for row in rows
    )


def test_parts_left_by_a_kill_between_commit_and_end_are_forgotten_when_the_finished_evaluation_is_looked_at(
    tmp_path, checkpoint
):
    experiment, path = world(tmp_path, checkpoint)
    run_stage("evaluate", evaluate.evaluate, experiment)
    parts.open_parts(parts_path(path), {"a": 1})
    assert is_done(experiment, "evaluate", path)
    assert parts_path(path).exists()  # a question changes nothing
    run_stage("evaluate", evaluate.evaluate, experiment)
    assert not parts_path(path).exists()


def test_popularity_and_novelty_count_what_was_taken_in_train(whole, tmp_path):
    """Recomputed from the tables: valid and test interactions make nothing popular."""
    _, metrics = whole
    data = stage_path(world(tmp_path, "none")[0], "data")
    table = pd.read_parquet(data / "interactions.parquet")
    counts = table[table["split"] == "train"]["item_id"].value_counts().to_dict()
    rows = [json.loads(line) for line in whole[0].splitlines()]
    shown = [item for row in rows for item in row["item_ids"][:5]]
    popularity = sum(counts.get(item, 0) for item in shown) / len(shown)
    assert metrics["mean_popularity@5"] == pytest.approx(popularity)
    total = sum(counts.values()) + 24
    bits = [-math.log2((counts.get(item, 0) + 1) / total) for item in shown]
    assert metrics["novelty@5"] == pytest.approx(sum(bits) / len(bits))
    # Strictly more popular items have less than a third of all train interactions: head.
    above = {
        item: sum(count for count in counts.values() if count > counts[item]) for item in counts
    }
    head = {item for item in counts if 3 * above[item] < sum(counts.values())}
    targets = table[table["split"] == "test"]["item_id"]
    found = metrics["slices"]["target_popularity"]["head"]["count"]
    assert found == sum(target in head for target in targets)


def test_the_validation_split_is_sliced_by_its_own_histories(tmp_path, checkpoint):
    """A valid history ends before the valid target; the same user's test history is one longer."""
    _, metrics = run(tmp_path, checkpoint, split="valid")
    data = stage_path(world(tmp_path, "none")[0], "data")
    lengths = []
    repeats = 0
    for _, table in pd.read_parquet(data / "interactions.parquet").groupby("user_id"):
        items = table["item_id"].tolist()
        history = items[:-2][-5:]  # at most data.max_history
        lengths.append(len(history))
        repeats += items[-2] in history
    slices = metrics["slices"]
    expected = {"2-4": sum(2 <= n <= 4 for n in lengths), "5-9": sum(n >= 5 for n in lengths)}
    assert {name: row["count"] for name, row in slices["history_length"].items()} == expected
    assert slices["target_in_history"]["yes"]["count"] == repeats


def remade(experiment):
    """The data with another catalogue order of titles, and SIDs of it with the same codes."""
    data, sids = (stage_path(experiment, stage) for stage in ("data", "sids"))
    for stage, path, parent in (("data", data, None), ("sids", sids, data)):
        before = path.rename(path.with_name(f"{path.name}.before"))
        settings = settings_of(experiment, stage)
        parents = [opened(parent)] if parent else []
        with committed(path, stage, settings, parents) as staging:
            for file in before.iterdir():
                if file.name != MANIFEST:
                    (staging / file.name).write_bytes(file.read_bytes())
            if stage == "data":
                table = pd.read_parquet(staging / "interactions.parquet")
                first = table.groupby("user_id").cumcount() == 1
                table.loc[first, "item_id"] = "i7"  # every history holds another second item
                table.to_parquet(staging / "interactions.parquet")


def test_parts_are_not_reused_after_the_data_was_made_again(tmp_path, checkpoint, capsys):
    """Catalogue, SIDs, rows and checkpoint are the same; the histories are not."""
    killed(tmp_path / "a", checkpoint, dies_at(parts, "write_part", 3))
    for folder in ("a", "b"):
        remade(world(tmp_path / folder, checkpoint)[0])
    predictions, metrics = run(tmp_path / "a", checkpoint)
    assert "held parts of another evaluation (data: " in capsys.readouterr().out
    assert metrics["cost"]["users"] == USERS
    assert predictions == run(tmp_path / "b", checkpoint)[0]
