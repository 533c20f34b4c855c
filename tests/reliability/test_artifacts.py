"""The disk layer: directories are whole or absent, damage is named, two processes or two lineages never mix.

bash test.sh tests/reliability/test_artifacts.py
bash test.sh tests/reliability/test_artifacts.py -m slow         1,000 flips, 200 cuts, 200 kills
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minionerec.errors import UserError
from minionerec.experiment import stages
from minionerec.experiment.commit import committed
from minionerec.experiment.files import append_log, remove, write_json
from minionerec.experiment.lineage import is_done, require_stage
from minionerec.experiment.lock import locked
from minionerec.experiment.manifest import MANIFEST, opened, verify
from minionerec.experiment.settings import EvaluateSettings, Experiment, SFTSettings
from minionerec.experiment.stages import evaluation_path, settings_of, stage_path

ROOT = Path(__file__).resolve().parents[2]


def demo(folder: Path, **settings: object) -> Experiment:
    return Experiment(name="demo", output_dir=str(folder / "runs"), **settings)


def write_files(folder: Path, seed: int = 0) -> None:
    """Five files as stages write them: rows of numbers, JSON, a log, an empty file and a nested
    one.
    """
    numbers = np.random.default_rng(seed)
    np.save(folder / "embeddings.npy", numbers.normal(size=(40, 8)).astype(np.float32))
    write_json(
        folder / "sids.json",
        {"sids": {f"item-{i}": numbers.integers(0, 8, 3).tolist() for i in range(40)}},
    )
    append_log(folder / "log.jsonl", {"step": 1, "loss": 0.1 + 0.2})
    (folder / "empty.txt").write_text("")
    (folder / "nested").mkdir()
    (folder / "nested" / MANIFEST).write_text('{"a manifest": "of a copied checkpoint"}')


def make(
    experiment: Experiment, stage: str, *parents: str, seed: int = 0, path: Path | None = None
) -> Path:
    """Commit a stage of ``experiment`` made from the named earlier stages."""
    path = path or stage_path(experiment, stage)
    folders = [opened(stage_path(experiment, parent)) for parent in parents]
    with committed(path, stage, settings_of(experiment, stage), folders) as staging:
        write_files(staging, seed)
    return path


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


# ---------------------------------------------------------------------------------- what is written


def test_the_manifest_says_what_the_directory_holds_and_where_it_comes_from(tmp_path):
    """Sizes and digests are taken from the bytes here, not from the code under test."""
    experiment = demo(tmp_path)
    data = make(experiment, "data")
    with committed(
        stage_path(experiment, "sids"),
        "sids",
        {"seed": 42},
        [opened(data)],
        sids_sha256="abc",
    ) as staging:
        write_files(staging)
    path = stage_path(experiment, "sids")
    manifest = json.loads((path / MANIFEST).read_text())
    contents = {
        str(file.relative_to(path)): file.read_bytes()
        for file in files_of(path)
        if file != path / MANIFEST
    }
    assert manifest["files"] == {
        name: {"size": len(b), "sha256": hashlib.sha256(b).hexdigest()}
        for name, b in contents.items()
    }
    assert len(contents) == 5
    assert (manifest["stage"], manifest["settings"], manifest["sids_sha256"]) == (
        "sids",
        {"seed": 42},
        "abc",
    )
    assert manifest["parents"] == {
        "../data": json.loads((data / MANIFEST).read_text())["manifest_sha256"]
    }
    assert manifest["versions"]["numpy"] == np.__version__
    assert verify(path) == manifest


def test_an_error_while_writing_leaves_nothing(tmp_path):
    final = stage_path(demo(tmp_path), "sids")
    with pytest.raises(ZeroDivisionError), committed(final, "sids", {}, []) as staging:
        write_files(staging)
        raise ZeroDivisionError
    assert os.listdir(final.parent) == []


def test_a_finished_directory_is_never_written_over(tmp_path):
    path = make(demo(tmp_path), "data")
    with pytest.raises(UserError) as caught, committed(path, "data", {}, []):
        pytest.fail("the block must not start")
    assert str(caught.value) == f"{path}: exists already; delete it to make it again"
    verify(path)


# --------------------------------------------------------------------------------------- corruption


def refused_naming(path: Path, damaged: Path) -> bool:
    """Whether the directory is refused in one line that begins with the damaged file."""
    try:
        verify(path)
    except UserError as error:
        return str(error).startswith(f"{damaged}: is damaged") and "\n" not in str(error)
    return False


@pytest.mark.parametrize("flips", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_refused_and_the_file_named(tmp_path, flips):
    path, rng = make(demo(tmp_path), "data"), random.Random(flips)
    files = [file for file in files_of(path) if file.stat().st_size]
    assert path / MANIFEST in files
    for _ in range(flips):
        file = rng.choice(files)
        intact = file.read_bytes()
        damaged = bytearray(intact)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        assert refused_naming(path, file)
        file.write_bytes(intact)
    verify(path)


@pytest.mark.parametrize("cuts", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_every_truncation_is_refused_and_the_file_named(tmp_path, cuts):
    path, rng = make(demo(tmp_path), "data"), random.Random(cuts)
    files = [file for file in files_of(path) if file.stat().st_size]
    for _ in range(cuts):
        file = rng.choice(files)
        intact = file.read_bytes()
        file.write_bytes(intact[: rng.randrange(len(intact))])
        assert refused_naming(path, file)
        file.write_bytes(intact)
    verify(path)


def test_a_manifest_written_in_another_way_is_refused(tmp_path):
    """The same JSON in other bytes (1e-05 as 1E-05, other spaces) is a change that a digest of the
    values would miss.
    """
    path = make(demo(tmp_path, sft=SFTSettings(learning_rate=1e-5)), "sft")
    text = (path / MANIFEST).read_text()
    for other in (text.replace("1e-05", "1E-05"), text.rstrip(), json.dumps(json.loads(text))):
        assert other != text and json.loads(other) == json.loads(text)
        (path / MANIFEST).write_text(other)
        assert refused_naming(path, path / MANIFEST)


def test_sizes_alone_find_a_truncation_but_not_a_flip(tmp_path):
    """The quick look of preflight: what it does not see, the stage sees when it reads."""
    path = make(demo(tmp_path), "data")
    file = path / "embeddings.npy"
    intact = file.read_bytes()
    file.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    verify(path, digests=False)
    assert refused_naming(path, file)
    file.write_bytes(intact[:-1])
    with pytest.raises(
        UserError, match=f"is damaged \\({len(intact) - 1} bytes, {MANIFEST} lists {len(intact)}\\)"
    ):
        verify(path, digests=False)


def test_a_file_or_a_manifest_that_is_gone_is_named(tmp_path):
    path = make(demo(tmp_path), "data")
    (path / "sids.json").unlink()
    with pytest.raises(UserError) as caught:
        verify(path)
    assert (
        str(caught.value)
        == f"{path / 'sids.json'}: is missing though {MANIFEST} lists it; delete {path} and make it again"
    )
    (path / MANIFEST).unlink()
    with pytest.raises(UserError) as caught:
        verify(path)
    assert (
        str(caught.value)
        == f"{path}: has no {MANIFEST}; it was not written by this pipeline or was only partly copied"
    )


# ----------------------------------------------------------------------- killed and unable to write


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path):
    experiment = demo(tmp_path)
    (tmp_path / "runs").write_text("a file where a folder should be")
    final = stage_path(experiment, "data")
    with pytest.raises(UserError) as caught, locked(final):
        pytest.fail("the block must not start")
    assert (
        str(caught.value)
        == f"{final.parent}: cannot be written: Not a directory; pass another --output_dir"
    )


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment_of_a_save_leaves_it_whole_or_absent(tmp_path, kills):
    """Also: what the killed process left is cleared away by the next save."""
    experiment, rng = demo(tmp_path), random.Random(kills)
    data = make(experiment, "data")
    final = stage_path(experiment, "sids")
    started = time.perf_counter()
    make(experiment, "sids", "data")
    seconds = time.perf_counter() - started
    outcomes = {"absent": 0, "whole": 0}
    for _ in range(kills):
        if final.exists():
            final.rename(tmp_path / f"old-{time.monotonic_ns()}")
        child = os.fork()
        if child == 0:
            make(experiment, "sids", "data")
            os._exit(0)
        time.sleep(rng.uniform(0, 1.5 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        outcomes["whole" if final.exists() else "absent"] += 1
        verify(final if final.exists() else make(experiment, "sids", "data"))
    verify(data)
    assert outcomes["absent"] > 0, outcomes  # else the kills came too late to test anything


# ------------------------------------------------------------------------------------ running twice


HOLD_LOCK = """
import sys, time
from pathlib import Path
from minionerec.experiment.lock import locked
with locked(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_kill_9_releases_the_lock(tmp_path):
    final = stage_path(demo(tmp_path), "sft")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(final)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(UserError) as caught, locked(final):
            pytest.fail("the block must not start")
        assert str(caught.value) == (
            f"{final}: is being written by another process "
            f"(pid {holder.pid} on {socket.gethostname()}); wait for it or stop it"
        )
        with locked(final.with_name("rl")):
            pass  # another directory's lock is another lock
    finally:
        holder.kill()
        holder.communicate()
    with locked(final):
        pass


def test_the_lock_is_released_when_the_block_ends_also_by_an_error(tmp_path):
    final = stage_path(demo(tmp_path), "sft")
    with pytest.raises(ZeroDivisionError), locked(final):
        raise ZeroDivisionError
    with locked(final), pytest.raises(UserError), locked(final):
        pytest.fail("the inner block must not start")


def test_a_stage_is_done_when_its_directory_was_made_with_these_settings(tmp_path):
    experiment = demo(tmp_path)
    assert not is_done(experiment, "data")
    make(experiment, "data")
    assert is_done(experiment, "data")
    assert is_done(experiment.changed({"sft.epochs": 1}), "data")  # not a setting of this stage


def test_a_stage_made_with_other_settings_lists_them(tmp_path):
    experiment = demo(tmp_path)
    path = make(experiment, "sft")
    changed = experiment.changed({"seed": 43, "sft.epochs": 3, "sft.tasks": {"sid_to_sid": 1.0}})
    with pytest.raises(UserError) as caught:
        is_done(changed, "sft")
    tasks = "{'sid_to_sid': 1.0, 'sid_to_title': 1.0, 'title_to_sid': 1.0, 'sids_to_title': 1.0, 'titles_to_sid': 1.0}"
    assert str(caught.value) == (
        f"{path}: was made with other settings (seed: 42 -> 43; sft.epochs: 10 -> 3; "
        f"sft.tasks: {tasks} -> {{'sid_to_sid': 1.0}}); restore them, or run again with --redo sft "
        f"(makes it and what follows again), or with --name NAME --from {path.parent} (another experiment that shares what is the same)"
    )


def test_settings_that_never_change_a_result_may_change(tmp_path):
    experiment = demo(tmp_path)
    path = make(experiment, "evaluate", path=evaluation_path(experiment))
    assert is_done(experiment.changed({"evaluate.batch_size": 7}), "evaluate", path)
    with pytest.raises(UserError, match="evaluate.num_beams: 50 -> 7"):
        is_done(
            experiment.changed({"evaluate.num_beams": 7}),
            "evaluate",
            path,
        )


def test_settings_that_the_stage_table_names_exist(tmp_path):
    experiment = demo(tmp_path)
    declared = set(stages.flat_settings(experiment))
    sections = {key.partition(".")[0] for key in declared}
    assert declared >= stages.WITHOUT_EFFECT | stages.OF_EACH_STAGE
    for stage in stages.STAGES.values():
        assert set(stage.settings) <= declared | sections
        assert not stages.WITHOUT_EFFECT & set(stages.settings_of(experiment, stage.name))


@pytest.mark.parametrize(
    "checkpoint, folder",
    [
        ("rl", "rl-test"),
        ("runs/other/sft", "sft-67f225-test"),
        ("a/checkpoint-8/", "checkpoint-8-9bc490-test"),
        ("b/checkpoint-8", "checkpoint-8-d93677-test"),
    ],
)
def test_an_evaluation_is_named_after_its_checkpoint_and_split(tmp_path, checkpoint, folder):
    experiment = demo(tmp_path, evaluate=EvaluateSettings(checkpoint=checkpoint))
    assert evaluation_path(experiment) == tmp_path / "runs" / "demo" / "evaluate" / folder


# -------------------------------------------------------------------------------- lineage of stages


@pytest.mark.parametrize(
    "stage, command",
    [
        ("data", "bash data/prepare.sh"),
        ("embeddings", "bash rqvae/rqvae.sh"),
        ("sids", "bash rqvae/rqvae.sh"),
        ("sft", "bash sft.sh"),
        ("rl", "bash rl.sh"),
        ("evaluate", "bash evaluate.sh"),
        ("baselines", "bash baselines/run.sh"),
    ],
)
def test_a_missing_stage_names_the_command_that_makes_it(tmp_path, root, stage, command):
    experiment = demo(tmp_path)
    with pytest.raises(UserError) as caught:
        require_stage(experiment, stage)
    assert (
        str(caught.value)
        == f"{stage_path(experiment, stage)} not found; run `{command}` with the same --config first"
    )
    assert (root / command.removeprefix("bash ")).is_file()


def pipeline(folder: Path) -> Experiment:
    """data, sids, sft, rl and an evaluation of rl, each made from the ones before."""
    experiment = demo(folder)
    make(experiment, "data", seed=1)
    make(experiment, "sids", "data", seed=2)
    make(experiment, "sft", "data", "sids", seed=3)
    make(experiment, "rl", "data", "sids", "sft", seed=4)
    make(experiment, "evaluate", "data", "sids", "rl", path=evaluation_path(experiment))
    return experiment


def digest_of(path: Path) -> str:
    return json.loads((path / MANIFEST).read_text())["manifest_sha256"][:12]


@pytest.mark.parametrize(
    "remade, parents, child, command",
    [
        ("data", (), "sids", "bash rqvae/rqvae.sh"),
        ("data", (), "sft", "bash sft.sh"),
        ("data", (), "rl", "bash rl.sh"),
        ("sids", ("data",), "sft", "bash sft.sh"),
        ("sids", ("data",), "rl", "bash rl.sh"),
        ("sft", ("data", "sids"), "rl", "bash rl.sh"),
    ],
)
def test_a_stage_made_from_another_parent_is_refused(tmp_path, remade, parents, child, command):
    """Six mix-ups: an earlier stage was made again after the later one; the later one must not be
    read with it.
    """
    experiment = pipeline(tmp_path)
    parent, path = stage_path(experiment, remade), stage_path(experiment, child)
    require_stage(experiment, child)
    before = digest_of(parent)
    parent.rename(tmp_path / "before")
    make(experiment, remade, *parents, seed=99)
    for look in (require_stage, is_done):
        with pytest.raises(UserError) as caught:
            look(experiment, child)
        assert str(caught.value) == (
            f"{path}: was made from another {parent} (manifest {before}, now {digest_of(parent)}); "
            f"delete {path} and run `{command}` again"
        )


def test_an_evaluation_of_another_checkpoint_is_refused(tmp_path):
    """Its parents lie two folders up."""
    experiment = pipeline(tmp_path)
    path = evaluation_path(experiment)
    assert is_done(experiment, "evaluate", path)
    stage_path(experiment, "rl").rename(tmp_path / "before")
    make(experiment, "rl", "data", "sids", "sft", seed=99)
    with pytest.raises(UserError, match="was made from another .*/demo/rl "):
        is_done(experiment, "evaluate", path)


def test_a_stage_made_again_with_the_same_bytes_is_the_same_stage(tmp_path):
    """Manifests hold no time of day, so a repeated stage does not invalidate what was made from it."""
    experiment = pipeline(tmp_path)
    stage_path(experiment, "sids").rename(tmp_path / "before")
    make(experiment, "sids", "data", seed=2)
    require_stage(experiment, "sft")


def test_a_damaged_parent_is_named_when_its_child_is_read(tmp_path):
    experiment = pipeline(tmp_path)
    (stage_path(experiment, "sids") / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match=r"/demo/sids/MANIFEST.json: is damaged"):
        require_stage(experiment, "sft")


def test_an_experiment_folder_can_be_moved(tmp_path):
    """Parents are recorded relative to the child."""
    pipeline(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = demo(tmp_path / "there")
    for stage in ("data", "sids", "sft", "rl"):
        assert is_done(moved, stage)
    assert is_done(moved, "evaluate", evaluation_path(moved))


def test_a_directory_loses_its_name_before_its_first_file_is_deleted(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "file").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed before anything is deleted
        remove(tmp_path / "checkpoint-1")
    assert not (tmp_path / "checkpoint-1").exists() and [
        path.name for path in tmp_path.iterdir()
    ] == [".checkpoint-1.gone"]
    remove(tmp_path / "checkpoint-1")
    assert not list(tmp_path.iterdir())
