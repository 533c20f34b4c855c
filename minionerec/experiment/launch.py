"""Starts a stage on the hardware that is there, after a first look at its settings and inputs.

    python -m minionerec.experiment.launch sft --config configs/quickstart.yaml [--section.key ...]

As many processes as there are visible GPUs, or as the file ACCELERATE_CONFIG says; of several
machines each starts its own (docs/SCALE.md). One process is started without ``accelerate launch``,
which would only add the variables set here; several are started through
``minionerec/experiment/accelerated.py``. The last script of a stage takes the place of this
process, so that signals reach the stage itself and its exit code is the command's.
"""

from __future__ import annotations

if __name__ == "__main__":
    from minionerec.errors import while_importing

    while_importing()

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from minionerec.errors import SET_UP, UserError, one_line_errors, stopped_by

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("yaml", "pydantic", "torch", "transformers", "accelerate")
# Settings of an accelerate file that a variable of the same name, in capitals, replaces
OF_THE_MACHINE = ("num_machines", "machine_rank", "main_process_ip", "main_process_port")
# Of every stage, unless the caller has set them
DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


@dataclass(frozen=True)
class Command:
    """How a script is started: the words after ``python``, and variables of the environment."""

    words: list[str]
    variables: dict[str, str] = field(default_factory=dict)


def main(argv: list[str]) -> int:
    """Look, then start the stage ``argv[0]``; returns only if that is not the end of it.

    Raises:
        UserError: a package, a setting or an earlier stage is missing or wrong.
    """
    if not all(map(has_package, PACKAGES)):
        raise UserError(f"{sys.executable} lacks packages of requirements.txt; {SET_UP}")
    # Only now: these import the packages
    from minionerec.experiment import preflight, reuse, stages
    from minionerec.experiment.config import read_command_line

    words, flags, yes = reuse.split_words(argv)
    if flags or yes:
        stage = preflight.check_stage(words)
        experiment, _ = read_command_line(__doc__, words[1:], own=("dry_run",))
        preflight.check_stage_reporters(experiment, stage)  # before anything is removed
        reuse.apply(experiment, flags, yes)
    if preflight.main(words) == preflight.NOTHING_TO_DO:
        return 0
    stage, *arguments = words
    rows = stages.scripts_of(stage)
    commands = [command_of(row.script, arguments, row.parallel) for row in rows]
    for name, default in DEFAULTS.items():
        os.environ.setdefault(name, default)
    for command in commands[:-1]:
        code = run(command)
        if code:
            return code
    become(commands[-1])


def command_of(script: str, arguments: list[str], is_shared: bool) -> Command:
    """The command that runs a script on this machine.

    Of several machines each runs one process of a script whose work is not shared: the first does
    the work, the others wait for it (``run.run_stage``).

    Args:
        script: relative to the repository.
        arguments: of the script.
        is_shared: whether several processes may share its work.

    Raises:
        UserError: the file ACCELERATE_CONFIG cannot work.
    """
    words = [str(ROOT / script), *arguments]
    file = os.environ.get("ACCELERATE_CONFIG")
    settings = read_accelerate_config(file) if file else {}
    machines = num_machines(settings)
    if not is_shared and machines == 1:
        return Command(words)
    here = visible_gpus()  # processes of this machine
    variables = {}
    if here == 0:
        variables["ACCELERATE_USE_CPU"] = "true"
        here = 1
    if not file and here == 1:
        variables["ACCELERATE_MIXED_PRECISION"] = "no"
        return Command(words, variables)
    processes = here * machines
    if file:
        options = ["--config_file", file]
        given = settings.get("num_processes")
        if isinstance(given, int):
            processes = given
            here = max(1, given // machines)
        for name in OF_THE_MACHINE:
            value = os.environ.get(name.upper())
            options += [f"--{name}", value] if value else []
        if settings.get("use_cpu"):
            variables["CUDA_VISIBLE_DEVICES"] = ""  # hidden from everything that the stage starts
    else:
        options = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
        options += ["--dynamo_backend", "no", "--main_process_port", "0"]
    if not is_shared:
        here = 1
        processes = machines
    if not os.environ.get("OMP_NUM_THREADS"):
        cores = os.cpu_count() or 1
        variables["OMP_NUM_THREADS"] = str(max(1, cores // here))
    launcher = ["-P", "-m", "minionerec.experiment.accelerated"]
    return Command([*launcher, *options, "--num_processes", str(processes), *words], variables)


def num_machines(settings: dict[str, Any]) -> int:
    """How many machines share the work: ``NUM_MACHINES``, else what the file says.

    Raises:
        UserError: ``NUM_MACHINES`` is no number from 1, or there is no file to go with it.
    """
    given = os.environ.get("NUM_MACHINES")
    if not given:
        return int(settings.get("num_machines", 1))
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"NUM_MACHINES: got '{given}', expected a whole number from 1")
    if int(given) > 1 and not settings:
        shipped = "configs/accelerate/multi_node.yaml"
        raise UserError(f"NUM_MACHINES: got {given} without ACCELERATE_CONFIG, e.g. {shipped}")
    return int(given)


def visible_gpus() -> int:
    """GPUs that a process started now would see.

    Those that nvidia-smi lists, or as many of them as CUDA_VISIBLE_DEVICES names.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    found = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if found == 0 or visible is None:
        return found
    named = 0
    for device in visible.split(","):
        # CUDA ignores an index that is not valid, and everything after it
        if not device or device.startswith("-"):
            break
        named += 1
    return named


def read_accelerate_config(file: str) -> dict[str, Any]:
    """The top level of a settings file of accelerate.

    Raises:
        UserError: it is not there, no such file, or for packages that are not installed.
    """
    import yaml

    shown = f"ACCELERATE_CONFIG: {file}"
    if not Path(file).is_file():
        shipped = ROOT / "configs" / "accelerate"
        raise UserError(f"{shown}: no such file; {shipped} holds some to start from")
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{shown}: YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{shown}: got no 'key: value' lines, expected those of accelerate config")
    if settings.get("distributed_type") == "DEEPSPEED" and not has_package("deepspeed"):
        install = f"{sys.executable} -m pip install deepspeed"
        raise UserError(f"{shown}: needs the package deepspeed; run `{install}`")
    return settings


def has_package(name: str) -> bool:
    """Whether a package is installed; it is not imported."""
    return importlib.util.find_spec(name) is not None


def run(command: Command) -> int:
    """Run a command to its end and return its exit code; a SIGTERM is passed on to it."""
    environment = {**os.environ, **command.variables}
    early: list[int] = []  # signals that come before there is a process to pass them on to
    signal.signal(signal.SIGTERM, lambda number, frame: early.append(number))
    hold_back_interrupts()
    with subprocess.Popen([sys.executable, *command.words], env=environment) as process:
        signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        # A terminal sends an interrupt to both processes; this one waits for the other
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for number in early:
            process.send_signal(number)
        code = process.wait()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return code if code >= 0 else stopped_by(-code)


def become(command: Command) -> NoReturn:
    """Let the command take this process's place."""
    sys.stdout.flush()
    sys.stderr.flush()
    environment = {**os.environ, **command.variables}
    hold_back_interrupts()
    words = [sys.executable, *command.words]
    os.execve(sys.executable, words, environment)  # noqa: S606 (no shell is wanted)


def hold_back_interrupts() -> None:
    """Let a SIGINT wait for ``errors.while_importing``; what is started inherits that."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
