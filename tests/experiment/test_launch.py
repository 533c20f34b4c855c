"""How a stage is started on the hardware that is there (minionerec/experiment/launch.py).

bash test.sh tests/experiment/test_launch.py

nvidia-smi is a small script that lists as many GPUs as a test wants.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from torch.distributed.elastic.multiprocessing import SignalException

from minionerec.errors import LAUNCHER, UserError
from minionerec.experiment import accelerated, launch, preflight
from minionerec.experiment.launch import Command, command_of, visible_gpus
from minionerec.experiment.stages import scripts_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [f"{ROOT}/sft.py", "--a", "b c"]
# How every command begins (test_imports.py)
FIRST = "from minionerec.errors import one_line_errors, while_importing\nwhile_importing()\n"
REACTS_TO = (
    "ACCELERATE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "MACHINE_RANK",
    "MAIN_PROCESS_IP",
    "MAIN_PROCESS_PORT",
    "NUM_MACHINES",
    "OMP_NUM_THREADS",
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a machine with 8 cores, so many GPUs (-1: the driver does not answer) and variables."""

    def make(gpus: int, **variables: object) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        lines = ""
        for gpu in range(gpus):
            lines += f"echo 'GPU {gpu}: H200 (UUID: GPU-{gpu})'\n"
            lines += f"echo '  MIG 1g.18gb Device 0: (UUID: MIG-{gpu})'\n"
        program.write_text("#!/usr/bin/env bash\n" + (lines or f"exit {9 if gpus < 0 else 0}\n"))
        program.chmod(0o755)
        for name in REACTS_TO:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.setattr(os, "cpu_count", lambda: 8)

    return make


@pytest.mark.parametrize(
    "count, visible, expected",
    [
        (8, None, 8),
        (0, None, 0),
        (-1, None, 0),
        (8, "", 0),
        (8, "-1", 0),
        (8, "3", 1),
        (8, "0,1,5", 3),
        (8, "0,1,-1,2", 2),
        (8, "GPU-8a-1f,GPU-9b", 2),
        (0, "0,1", 0),
    ],
)
def test_visible_gpus_are_those_that_a_process_would_see(machine, count, visible, expected):
    machine(count, **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}))
    assert visible_gpus() == expected


@pytest.mark.parametrize(
    "gpus, variables",
    [
        (0, {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}),
        (1, {"ACCELERATE_MIXED_PRECISION": "no"}),
    ],
)
def test_one_process_is_started_directly_and_may_use_every_core(machine, gpus, variables):
    machine(gpus)
    assert command_of("sft.py", ["--a", "b c"], is_shared=True) == Command(SCRIPT, variables)


def test_work_that_cannot_be_shared_is_one_process_whatever_there_is(machine):
    machine(8, ACCELERATE_CONFIG=ROOT / "configs" / "accelerate" / "ddp.yaml")
    assert command_of("sft.py", ["--a", "b c"], is_shared=False) == Command(SCRIPT, {})


def test_several_gpus_get_a_process_each_and_share_the_cores(machine):
    machine(4)
    command = command_of("sft.py", ["--a", "b c"], is_shared=True)
    assert command.variables == {"OMP_NUM_THREADS": "2"}
    assert " ".join(command.words[:-3]) == (
        "-P -m minionerec.experiment.accelerated --multi_gpu --num_machines 1 "
        "--mixed_precision no --dynamo_backend no --main_process_port 0 --num_processes 4"
    )
    assert command.words[-3:] == SCRIPT


@pytest.mark.parametrize(
    "name, gpus, variables, settings, options",
    [
        (
            "cpu",
            4,
            {},
            {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "8"},
            "--num_processes 1",
        ),
        ("ddp", 4, {}, {"OMP_NUM_THREADS": "2"}, "--num_processes 4"),
        (
            "ddp",
            4,
            {"CUDA_VISIBLE_DEVICES": "0,1"},
            {"OMP_NUM_THREADS": "4"},
            "--num_processes 2",
        ),
        ("fsdp", 8, {"OMP_NUM_THREADS": 3}, {}, "--num_processes 8"),
        (
            "multi_node",
            8,
            {"MACHINE_RANK": 1, "MAIN_PROCESS_IP": "10.0.0.1"},
            {"OMP_NUM_THREADS": "1"},
            "--machine_rank 1 --main_process_ip 10.0.0.1 --num_processes 16",
        ),
        (
            "multi_node",  # four machines with two GPUs each: this one's cores are for its two
            2,
            {"NUM_MACHINES": 4, "MACHINE_RANK": 3, "MAIN_PROCESS_PORT": 29501},
            {"OMP_NUM_THREADS": "4"},
            "--num_machines 4 --machine_rank 3 --main_process_port 29501 --num_processes 8",
        ),
    ],
)
def test_an_accelerate_file_decides_and_visible_gpus_fill_in_the_rest(
    machine, name, gpus, variables, settings, options
):
    file = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    machine(gpus, ACCELERATE_CONFIG=file, **variables)
    command = command_of("sft.py", ["--a", "b c"], is_shared=True)
    assert command.variables == settings
    assert " ".join(command.words[:-3]) == (
        f"-P -m minionerec.experiment.accelerated --config_file {file} {options}"
    )
    assert command.words[-3:] == SCRIPT


def test_of_work_that_cannot_be_shared_every_machine_starts_one_process_with_all_its_cores(machine):
    """The first machine's does the work, the others wait for it."""
    file = ROOT / "configs" / "accelerate" / "multi_node.yaml"
    machine(8, ACCELERATE_CONFIG=file, MACHINE_RANK=1)
    command = command_of("sft.py", ["--a", "b c"], is_shared=False)
    assert command.variables == {"OMP_NUM_THREADS": "8"}
    assert " ".join(command.words[:-3]) == (
        f"-P -m minionerec.experiment.accelerated --config_file {file} --machine_rank 1 "
        "--num_processes 2"
    )
    assert command.words[-3:] == SCRIPT


@pytest.mark.parametrize(
    "file, given, message",
    [
        ("multi_node", "four", "NUM_MACHINES: got 'four', expected a whole number from 1"),
        (
            None,
            "4",
            "NUM_MACHINES: got 4 without ACCELERATE_CONFIG, e.g. configs/accelerate/multi_node.yaml",
        ),
    ],
)
def test_a_number_of_machines_that_cannot_be_is_refused_in_one_line(machine, file, given, message):
    shipped = {"ACCELERATE_CONFIG": ROOT / "configs" / "accelerate" / f"{file}.yaml"}
    machine(1, NUM_MACHINES=given, **(shipped if file else {}))
    with pytest.raises(UserError) as caught:
        command_of("sft.py", [], is_shared=True)
    assert str(caught.value) == message


def test_without_any_gpu_a_file_starts_processes_on_the_cpu(machine):
    machine(0, ACCELERATE_CONFIG=ROOT / "configs" / "accelerate" / "cpu_processes.yaml")
    command = command_of("sft.py", [], is_shared=True)
    assert command.words[-3:-1] == ["--num_processes", "2"]
    assert command.variables == {
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "4",
    }


@pytest.mark.parametrize(
    "text, message",
    [
        (None, f"no such file; {ROOT}/configs/accelerate holds some to start from"),
        ("a: [1", "YAML: while parsing a flow sequence"),
        ("- a", "got no 'key: value' lines, expected those of accelerate config"),
        (
            "distributed_type: DEEPSPEED",
            f"needs the package deepspeed; run `{sys.executable} -m pip install deepspeed`",
        ),
    ],
)
def test_an_accelerate_file_that_cannot_work_is_refused_in_one_line(
    machine, tmp_path, monkeypatch, text, message
):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    machine(2, ACCELERATE_CONFIG=file)
    monkeypatch.setattr(launch, "has_package", lambda name: name != "deepspeed")
    with pytest.raises(UserError) as caught:
        command_of("sft.py", [], is_shared=True)
    assert str(caught.value) == f"ACCELERATE_CONFIG: {file}: {message}"


@pytest.mark.parametrize(
    "name, kind",
    [
        ("cpu", "NO"),
        ("ddp", "MULTI_GPU"),
        ("fsdp", "FSDP"),
        ("deepspeed_zero2", "DEEPSPEED"),
        ("multi_node", "MULTI_GPU"),
        ("multi_node_fsdp", "FSDP"),
    ],
)
def test_accelerate_reads_every_shipped_file(name, kind):
    settings = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{name}.yaml"))
    assert settings.distributed_type.value == kind


def test_a_command_runs_the_scripts_of_its_parts_first_and_only_some_are_shared():
    found = {}
    for stage in ("data", "sids", "baselines", "sft", "rl", "evaluate"):
        found[stage] = [(row.script, row.parallel) for row in scripts_of(stage)]
    assert found == {
        "data": [("data/prepare.py", False)],
        "sids": [("rqvae/embed_items.py", True), ("rqvae/build_sids.py", False)],
        "baselines": [("baselines/run.py", False)],
        "sft": [("sft.py", True)],
        "rl": [("rl.py", True)],
        "evaluate": [("evaluate.py", True)],
    }


@pytest.mark.parametrize(
    "text, code",
    [("", 0), ("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_the_first_script_of_two_ends_the_stage_when_it_fails(tmp_path, text, code):
    (tmp_path / "probe.py").write_text(text)
    assert launch.run(Command([str(tmp_path / "probe.py")])) == code


def test_an_interrupt_while_a_script_imports_is_one_line(tmp_path, capfd):
    """Its own ``one_line_errors`` comes after seconds of imports."""
    (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (tmp_path / "probe.py").write_text(
        f"{FIRST}import sys\nprint(__name__, sys.argv[1:], flush=True)\nimport slow\nprint('never')\n"
    )
    assert launch.run(Command([str(tmp_path / "probe.py"), "--a", "b c"])) == 130
    out, err = capfd.readouterr()
    assert out == "__main__ ['--a', 'b c']\n"
    assert (
        err == "interrupted; what is finished stays, and the same command goes on or begins again\n"
    )


def test_an_interrupt_while_python_starts_waits_until_it_can_be_one_line(tmp_path):
    """It comes just before the script takes the launcher's place."""
    (tmp_path / "probe.py").write_text(f"{FIRST}print('never')\n")
    code = (
        "import os, signal\nfrom minionerec.experiment import launch\nexecve = os.execve\n"
        "def interrupted(*words):\n    os.kill(os.getpid(), signal.SIGINT)\n    execve(*words)\n"
        "os.execve = interrupted\nlaunch.become(launch.Command(['probe.py']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("interrupted; ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "number, code, said",
    [
        (signal.SIGINT, 130, "interrupted; what is finished stays, and the same command goes on "),
        (signal.SIGTERM, 143, ""),
    ],
)
def test_ctrl_c_to_several_processes_is_one_line_too(monkeypatch, capsys, number, code, said):
    """Torchrun has passed it on and waited; the processes themselves say nothing."""

    def stopped(arguments):
        raise SignalException("stopped", signal.Signals(number))

    monkeypatch.setenv(LAUNCHER, "")
    monkeypatch.setattr(accelerated, "launch_command", stopped)
    try:
        assert accelerated.main(["probe.py"]) == code
    finally:
        logging.disable(logging.NOTSET)
    shown = capsys.readouterr().err
    assert shown.startswith(said) and shown.count("\n") == bool(said)


@pytest.mark.parametrize("code, goes_on", [(0, True), (7, False)])
def test_the_second_script_of_a_command_starts_only_after_the_first_succeeded(
    monkeypatch, code, goes_on
):
    started = []
    monkeypatch.setattr(preflight, "main", lambda words: 0)
    monkeypatch.setattr(launch, "run", lambda command: code)
    monkeypatch.setattr(launch, "become", started.append)
    assert launch.main(["sids", "--config", "x.yaml"]) == (None if goes_on else code)
    scripts = [Path(command.words[0]).name for command in started]
    assert scripts == (["build_sids.py"] if goes_on else [])


def test_the_first_script_of_two_gets_the_signal_that_stops_the_stage(tmp_path):
    (tmp_path / "probe.py").write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    code = (
        "import sys\nfrom minionerec.experiment.launch import Command, run\n"
        "sys.exit(run(Command(['probe.py'])))"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout.readline() == "ready\n"
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=20) == 5
    started.stdout.close()


@pytest.mark.slow
def test_two_processes_on_the_cpu_find_each_other(machine, tmp_path, capfd):
    """The real accelerate launcher and gloo, with the changes to cpu.yaml that its comment names."""
    settings = yaml.safe_load((ROOT / "configs" / "accelerate" / "cpu.yaml").read_text())
    two = tmp_path / "two.yaml"
    two.write_text(
        yaml.safe_dump({**settings, "distributed_type": "MULTI_GPU", "num_processes": 2})
    )
    (tmp_path / "probe.py").write_text(
        "import torch\nfrom accelerate import Accelerator\nstate = Accelerator()\n"
        "ranks = state.gather(torch.tensor([state.process_index]))\n"
        "state.print(state.num_processes, ranks.tolist(), state.device.type)\n"
        "state.end_training()\n"
    )
    machine(0, ACCELERATE_CONFIG=two, PYTHONPATH=ROOT)
    assert launch.run(command_of(str(tmp_path / "probe.py"), [], is_shared=True)) == 0
    assert capfd.readouterr().out == "2 [0, 1] cpu\n"
