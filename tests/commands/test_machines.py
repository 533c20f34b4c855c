"""Several machines: two launches of two CPU processes each play two that share one folder of runs.

bash test.sh -m slow tests/commands/test_machines.py
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks.encoder import save_encoder
from minionerec.experiment import processes, run
from minionerec.experiment.manifest import verify
from minionerec.experiment.settings import Experiment
from minionerec.experiment.stages import stage_path
from tests.worlds import tiny_run

ROOT = Path(__file__).resolve().parents[2]
TWO = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "use_cpu": True,
    "num_machines": 2,
    "num_processes": 4,
    "main_process_ip": "127.0.0.1",
    "same_network": True,
    "rdzv_backend": "static",
    "mixed_precision": "no",
}


class Launch:
    """Stands for the processes of a launch; notes when they wait for each other."""

    def __init__(self, events: list[str]):
        self.events = events

    def wait_for_everyone(self) -> None:
        self.events.append("wait")


@pytest.mark.parametrize(
    "rank, stage, expected",
    [
        ("0", "sids", ["wait", "work", "wait"]),
        ("1", "sids", ["wait", "wait"]),
        ("0", "sft", ["work"]),  # shared: the work itself says where they wait
        ("1", "sft", ["work"]),
    ],
)
def test_work_that_is_not_shared_is_the_first_process_s_alone(
    tmp_path, monkeypatch, rank, stage, expected
):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    events: list[str] = []
    monkeypatch.setattr(processes, "processes", lambda: Launch(events))
    experiment = Experiment(name="x", output_dir=str(tmp_path))
    run.run_stage(stage, lambda *_: events.append("work"), experiment)
    assert events == expected


def test_who_waits_is_not_given_up_after_the_ten_minutes_of_nccl(monkeypatch):
    """A million rows measured, or a SASRec trained, by the first process alone may take longer."""
    asked = {}
    monkeypatch.setattr(processes, "PartialState", lambda **words: asked.update(words))
    processes.processes()
    assert asked["timeout"].total_seconds() >= 6 * 3600


def world(folder: Path, encoder: Path) -> Path:
    """Items and interactions; stage 1 is still to be made."""
    # Each process draws a dropout of its own
    experiment = tiny_run(folder, sids={"encoder": str(encoder)}, sft={"dropout": 0.0})
    shutil.rmtree(stage_path(experiment, "sids"))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment.model_dump()))
    return folder / "tiny.yaml"


def machines(folder: Path, count: int, script: str, config: Path, *flags: str) -> list[str]:
    """What each machine printed of one stage; all of them must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix}
    if count > 1:
        file = folder / "two.yaml"
        file.write_text(yaml.safe_dump(TWO | {"main_process_port": port}))
        variables["ACCELERATE_CONFIG"] = str(file)
    running = []
    for rank in range(count):
        temporary = folder / f"machine-{rank}"
        temporary.mkdir(exist_ok=True)
        own = {"MACHINE_RANK": str(rank), "TMPDIR": str(temporary)}
        command = ["bash", str(ROOT / script), "--config", str(config), *flags]
        running.append(
            subprocess.Popen(
                command,
                env={**os.environ, **variables, **own},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    printed = [process.communicate(timeout=400)[0] for process in running]
    codes = [process.returncode for process in running]
    assert codes == [0] * count, "\n".join(printed)[-4000:]
    return printed


def digests(folder: Path) -> dict[str, str]:
    """Of every file of a stage but those that hold seconds."""
    files = verify(folder)["files"]
    timed = ("metrics.json", "report.json", "report.html")
    return {name: file["sha256"] for name, file in files.items() if name not in timed}


@pytest.mark.slow
def test_two_machines_end_with_what_one_process_makes(tmp_path):
    """Stages 1, 2 and 4. Sums over processes round otherwise: weights agree, bits need not."""
    torch.manual_seed(0)
    encoder = save_encoder(tmp_path / "encoder", ["thing", "of", "kind", "made", "place"])
    configs = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        configs[count] = world(folder, encoder)
        machines(folder, count, "rqvae/rqvae.sh", configs[count])
        machines(folder, count, "sft.sh", configs[count])
    one, two = tmp_path / "1/tiny", tmp_path / "2/tiny"
    assert digests(one / "embeddings") == digests(two / "embeddings")
    assert digests(one / "sids") == digests(two / "sids")

    logs = []
    for run_folder in (one, two):
        lines = (run_folder / "sft/log.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose([*a.values()], [*b.values()], atol=1e-5)

    # Evaluation from the very same weights
    shutil.rmtree(two)
    shutil.copytree(one, two)
    flags = ("--evaluate.checkpoint", "sft", "--evaluate.batch_size", "32")
    machines(tmp_path / "1", 1, "evaluate.sh", configs[1], *flags)
    printed = machines(tmp_path / "2", 2, "evaluate.sh", configs[2], *flags)
    assert digests(one / "evaluate/sft-test") == digests(two / "evaluate/sft-test")
    assert "HR@10" in printed[0] and "HR@10" not in printed[1]
