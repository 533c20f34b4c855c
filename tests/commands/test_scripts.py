"""The shell scripts: lint, set-up, how a stage is started, and that a failure stops the chain where it happens.

    bash test.sh tests/test_scripts.py

Where bash functions of minionerec/launch.sh are called one by one, the programs around them (Python, nvidia-smi) are
small scripts that write down how they were called.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["data/prepare.sh", "rqvae/rqvae.sh", "sft.sh", "rl.sh", "evaluate.sh", "baselines/run.sh"]
RUN_BY_USERS = [*STAGES, "quickstart.sh", "test.sh", ".ci/run"]
ENVIRONMENT = (
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYTHONPATH",
    "ACCELERATE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "MACHINE_RANK",
    "MAIN_PROCESS_IP",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_MIXED_PRECISION",
)


def clean_environment(**variables: object) -> dict[str, str]:
    """This process's environment without what the scripts react to, and with ``variables``."""
    kept = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    return {**kept, **{name: str(value) for name, value in variables.items()}}


def bash(*words: object, cwd: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *map(str, words)],
        cwd=cwd,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )


def in_launch_sh(
    root: Path, commands: str, **variables: object
) -> subprocess.CompletedProcess[str]:
    """Run bash commands after sourcing ``root``'s launch.sh, as the scripts do."""
    return bash(
        "-c",
        f'set -euo pipefail; source "$0/minionerec/launch.sh"; {commands}',
        root,
        cwd=root,
        **variables,
    )


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository's scripts and code, without an environment, in a folder with spaces in its name."""
    folder = tmp_path / "a copy with spaces"
    leave = shutil.ignore_patterns(".*", "runs", "tests", "__pycache__", "docs", "benchmarks")
    shutil.copytree(ROOT, folder, ignore=leave)
    return folder


# ---------------------------------------------------------------------------------------------------------------- lint


def test_shellcheck_finds_nothing():
    command = [
        Path(sys.prefix) / "bin" / "shellcheck",
        "-x",
        "-P",
        "SCRIPTDIR",
        *RUN_BY_USERS,
        "minionerec/launch.sh",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_no_script_is_forgotten_here():
    found = {
        str(path.relative_to(ROOT)) for pattern in ("*.sh", "*/*.sh") for path in ROOT.glob(pattern)
    }
    assert found == {*RUN_BY_USERS, "minionerec/launch.sh"} - {".ci/run"}


@pytest.mark.parametrize("name", RUN_BY_USERS)
def test_every_script_stops_at_the_first_error_and_is_executable(name):
    lines = (ROOT / name).read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert next(line for line in lines if not line.startswith("#")) == "set -euo pipefail"
    assert os.access(ROOT / name, os.X_OK)


# -------------------------------------------------------------------------------------------------------------- set-up


@pytest.mark.parametrize(
    "active, expected",
    [
        ({"VIRTUAL_ENV": "venv", "CONDA_PREFIX": "conda"}, "venv"),
        ({"CONDA_PREFIX": "conda"}, "conda"),
        ({}, ".venv"),
        ({"VIRTUAL_ENV": "deleted"}, ".venv"),
    ],
)
def test_the_active_environment_is_used_else_the_repositorys_own(copy, active, expected):
    for name in ("venv", "conda", ".venv"):
        executable(copy / name / "bin" / "python", "")
    run = in_launch_sh(
        copy,
        'find_python; echo "$PYTHON"',
        **{name: copy / folder for name, folder in active.items()},
    )
    assert run.stdout == f"{copy / expected / 'bin' / 'python'}\n"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_without_an_environment_says_in_one_line_how_to_get_one(copy, tmp_path, name):
    run = bash(copy / name, "--config", "demo.yaml", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        f"no Python environment is active and {copy}/.venv does not exist; run `bash quickstart.sh` once, "
        "or `pip install -r requirements.txt` in an active environment\n"
    )


def test_a_stage_in_an_environment_without_the_packages_says_so_in_one_line(copy, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    run = bash(
        copy / "sft.sh", "--config", "demo.yaml", cwd=tmp_path, VIRTUAL_ENV=tmp_path / "empty"
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        f"{tmp_path}/empty/bin/python lacks packages of requirements.txt; run `bash quickstart.sh` once, "
        "or `pip install -r requirements.txt` in an active environment\n"
    )


def recording_python(folder: Path, pip_code: int = 0) -> Path:
    """An environment whose Python answers questions for real, but writes down ``-m`` calls instead of making them."""
    return executable(
        folder / "bin" / "python",
        f"""#!/usr/bin/env bash
if [[ "$1" == -m && "$3" == --version ]]; then exit 0; fi
if [[ "$1" == -m ]]; then printf '%s\\n' "$*" >>"{folder}/calls"; exit {pip_code}; fi
if [[ "$2" == *sys.prefix* ]]; then echo "{folder}"; exit 0; fi
exec "{sys.executable}" "$@"
""",
    )


def pip_calls(copy: Path, extra: str = "") -> str:
    pip = f"-m pip install -qq --disable-pip-version-check -c {copy}/constraints.txt"
    return f"{pip} -r {copy}/requirements.txt\n{pip} -e {copy}{extra}\n"


@pytest.mark.parametrize("changed", ["requirements.txt", "constraints.txt", "pyproject.toml"])
def test_requirements_are_installed_once_and_again_when_they_change(copy, tmp_path, changed):
    environment = tmp_path / "env"
    recording_python(environment)
    first, second = (in_launch_sh(copy, "set_up user", VIRTUAL_ENV=environment) for _ in range(2))
    assert (
        first.stdout
        == f"set-up: installing requirements.txt into {environment} (once, a minute or two)\n"
    )
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert (environment / "calls").read_text() == pip_calls(copy)
    with open(copy / changed, "a") as handle:
        handle.write("# changed\n")
    in_launch_sh(copy, "set_up user", VIRTUAL_ENV=environment)
    assert (environment / "calls").read_text() == 2 * pip_calls(copy)


def test_an_extra_is_installed_on_top_and_is_no_reason_to_install_again_without_it(copy, tmp_path):
    environment = tmp_path / "env"
    recording_python(environment)
    in_launch_sh(copy, "set_up user", VIRTUAL_ENV=environment)
    run = in_launch_sh(
        copy, "set_up developer; set_up developer; set_up user", VIRTUAL_ENV=environment
    )
    assert (
        run.stdout == f"set-up: installing requirements.txt and the extra dev into {environment} "
        "(once, a minute or two)\n"
    )
    calls = pip_calls(copy) + pip_calls(copy, "[dev]")
    assert (environment / "calls").read_text() == calls


def test_users_need_no_packages_of_developers():
    called = {
        name: re.findall(r"^set_up.*$", (ROOT / name).read_text(), re.MULTILINE)
        for name in ("quickstart.sh", "test.sh")
    }
    assert called == {"quickstart.sh": ["set_up user"], "test.sh": ["set_up developer"]}


def test_a_failed_installation_stops_and_is_tried_again_next_time(copy, tmp_path):
    recording_python(tmp_path / "env", pip_code=1)
    for attempt in (1, 2):
        run = in_launch_sh(copy, "set_up user; echo went on", VIRTUAL_ENV=tmp_path / "env")
        assert run.returncode == 2
        assert (
            run.stderr
            == f"set-up: pip could not install {copy}/requirements.txt; its message is above\n"
        )
        assert "went on" not in run.stdout
        assert len((tmp_path / "env" / "calls").read_text().splitlines()) == attempt


@pytest.mark.slow
def test_an_environment_is_created_in_the_repository_when_none_is_active(copy):
    """The real venv module; the stamp written beforehand keeps pip from downloading."""
    files = ("requirements.txt", "constraints.txt", "pyproject.toml")
    digest = hashlib.sha256(b"".join((copy / file).read_bytes() for file in files)).hexdigest()
    (copy / ".venv").mkdir()
    (copy / ".venv" / ".minionerec-requirements.sha256").write_text(f"{digest} {copy}\n")
    run = in_launch_sh(copy, 'set_up user; "$PYTHON" -c "import sys; print(sys.prefix)"')
    assert (run.returncode, run.stdout, run.stderr) == (
        0,
        f"set-up: creating {copy}/.venv\n{copy}/.venv\n",
        "",
    )


def test_an_old_python_is_refused(copy, tmp_path):
    executable(tmp_path / "env" / "bin" / "python", "#!/usr/bin/env bash\nexit 1\n")
    run = in_launch_sh(copy, "set_up user", VIRTUAL_ENV=tmp_path / "env")
    assert (run.returncode, run.stderr) == (
        2,
        f"set-up: {tmp_path}/env/bin/python is older than Python 3.11; activate a newer environment or deactivate this one\n",
    )


# ----------------------------------------------------------------------------------------------------- starting a stage


def with_gpus(folder: Path, count: int) -> str:
    """A PATH on which nvidia-smi lists so many GPUs (-1: its driver does not answer)."""
    gpu = "echo 'GPU {0}: H200 (UUID: GPU-{0})'; echo '  MIG 1g.18gb Device 0: (UUID: MIG-{0})'\n"
    lines = "".join(map(gpu.format, range(count)))
    executable(
        folder / "bin" / "nvidia-smi",
        "#!/usr/bin/env bash\n" + (lines or f"exit {9 if count < 0 else 0}\n"),
    )
    return f"{folder / 'bin'}:{os.environ['PATH']}"


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
def test_visible_gpus_are_those_that_a_process_would_see(tmp_path, count, visible, expected):
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    run = in_launch_sh(ROOT, "visible_gpus", PATH=with_gpus(tmp_path, count), **variables)
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{expected}\n", "")


ECHO_PYTHON = """#!/usr/bin/env bash
echo "cpu=${ACCELERATE_USE_CPU:-} gpus=${CUDA_VISIBLE_DEVICES-all} threads=${OMP_NUM_THREADS:-}"
printf '%s\\n' "$@"
"""


def launched(tmp_path: Path, gpus: int, **variables: object) -> tuple[str, list[str]]:
    """Settings and words with which ``launch sft.py --a 'b c'`` starts Python on a machine with so many GPUs and 8 cores."""
    echo = executable(tmp_path / "bin" / "echo-python", ECHO_PYTHON)
    executable(tmp_path / "bin" / "getconf", "#!/usr/bin/env bash\necho 8\n")
    variables = {"OMP_NUM_THREADS": "", "PATH": with_gpus(tmp_path, gpus), **variables}
    run = in_launch_sh(ROOT, f'PYTHON="{echo}"; launch sft.py --a "b c"', **variables)
    assert (run.returncode, run.stderr) == (0, "")
    first, *words = run.stdout.splitlines()
    return first, words


@pytest.mark.parametrize(
    "gpus, settings", [(0, "cpu=true gpus=all threads="), (1, "cpu= gpus=all threads=")]
)
def test_one_process_is_started_directly_and_may_use_every_core(tmp_path, gpus, settings):
    assert launched(tmp_path, gpus) == (settings, [f"{ROOT}/sft.py", "--a", "b c"])


def test_several_gpus_get_a_process_each_and_share_the_cores(tmp_path):
    settings, words = launched(tmp_path, 4)
    assert settings == "cpu= gpus=all threads=2"
    assert " ".join(words[:-3]) == (
        "-P -m minionerec.experiment.launch --multi_gpu --num_machines 1 --mixed_precision no "
        "--dynamo_backend no --main_process_port 0 --num_processes 4"
    )
    assert words[-3:] == [f"{ROOT}/sft.py", "--a", "b c"]


@pytest.mark.parametrize(
    "name, gpus, variables, settings, options",
    [
        ("cpu", 4, {}, "cpu=true gpus= threads=8", "--num_processes 1"),
        ("ddp", 4, {}, "cpu= gpus=all threads=2", "--num_processes 4"),
        ("ddp", 4, {"CUDA_VISIBLE_DEVICES": "0,1"}, "cpu= gpus=0,1 threads=4", "--num_processes 2"),
        ("fsdp", 8, {"OMP_NUM_THREADS": 3}, "cpu= gpus=all threads=3", "--num_processes 8"),
        (
            "multi_node",
            8,
            {"MACHINE_RANK": 1, "MAIN_PROCESS_IP": "10.0.0.1"},
            "cpu= gpus=all threads=1",
            "--machine_rank 1 --main_process_ip 10.0.0.1 --num_processes 16",
        ),
    ],
)
def test_an_accelerate_file_decides_and_visible_gpus_fill_in_the_rest(
    tmp_path, name, gpus, variables, settings, options
):
    file = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    found, words = launched(tmp_path, gpus, ACCELERATE_CONFIG=file, **variables)
    assert found == settings
    assert (
        " ".join(words[:-3]) == f"-P -m minionerec.experiment.launch --config_file {file} {options}"
    )
    assert words[-3:] == [f"{ROOT}/sft.py", "--a", "b c"]


@pytest.mark.parametrize(
    "file, message",
    [
        (
            "none.yaml",
            f"ACCELERATE_CONFIG: none.yaml: no such file; {ROOT}/configs/accelerate holds some to start from\n",
        ),
        (
            "configs/accelerate/deepspeed_zero2.yaml",
            "ACCELERATE_CONFIG: configs/accelerate/deepspeed_zero2.yaml: needs the package "
            "deepspeed; run `false -m pip install deepspeed`\n",
        ),
    ],
)
def test_an_accelerate_file_that_cannot_work_is_refused_in_one_line(file, message):
    """``false`` stands for a Python without any package."""
    run = in_launch_sh(ROOT, "PYTHON=false; launch sft.py", ACCELERATE_CONFIG=file)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", message)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("cpu", "NO"),
        ("ddp", "MULTI_GPU"),
        ("fsdp", "FSDP"),
        ("deepspeed_zero2", "DEEPSPEED"),
        ("multi_node", "MULTI_GPU"),
    ],
)
def test_accelerate_reads_every_shipped_file(name, kind):
    from accelerate.commands.config.config_args import load_config_from_file

    assert (
        load_config_from_file(
            str(ROOT / "configs" / "accelerate" / f"{name}.yaml")
        ).distributed_type.value
        == kind
    )


def test_the_exit_code_of_a_stage_is_that_of_its_script(copy, tmp_path):
    (copy / "probe.py").write_text("import sys; print(sys.argv[1:]); sys.exit(7)\n")
    run = in_launch_sh(
        copy, f'PYTHON="{sys.executable}"; launch probe.py "a b" c', PATH=with_gpus(tmp_path, 0)
    )
    assert (run.returncode, run.stdout, run.stderr) == (7, "['a b', 'c']\n", "")


def test_a_stage_told_to_stop_gets_the_signal_itself(copy, tmp_path):
    """SIGTERM to the script's process reaches the Python script, which may finish its step and choose its exit code."""
    (copy / "probe.py").write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    script = executable(
        copy / "stage.sh",
        f'source "{copy}/minionerec/launch.sh"\nPYTHON="{sys.executable}"\nlaunch probe.py\n',
    )
    environment = clean_environment(PATH=with_gpus(tmp_path, 0))
    run = subprocess.Popen(["bash", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=20) == 143
    run.stdout.close()


@pytest.mark.slow
def test_two_processes_on_the_cpu_find_each_other(copy, tmp_path):
    """The real accelerate launcher and gloo, with the changes to cpu.yaml that its comment names."""
    settings = yaml.safe_load((copy / "configs" / "accelerate" / "cpu.yaml").read_text())
    two = tmp_path / "two.yaml"
    two.write_text(
        yaml.safe_dump({**settings, "distributed_type": "MULTI_GPU", "num_processes": 2})
    )
    (copy / "probe.py").write_text(
        "import torch\nfrom accelerate import Accelerator\nstate = Accelerator()\n"
        "ranks = state.gather(torch.tensor([state.process_index]))\n"
        "state.print(state.num_processes, ranks.tolist(), state.device.type)\n"
        "state.end_training()\n"
    )
    run = in_launch_sh(copy, f'PYTHON="{sys.executable}"; launch probe.py', ACCELERATE_CONFIG=two)
    assert (run.returncode, run.stdout) == (0, "2 [0, 1] cpu\n"), run.stderr


# --------------------------------------------------------------------------------------------------- scripts as a whole


@pytest.mark.parametrize("name", STAGES)
def test_help_of_a_stage_shows_its_usage_and_every_key(tmp_path, name):
    run = bash(ROOT / name, "--help", cwd=tmp_path, VIRTUAL_ENV=sys.prefix)
    assert (run.returncode, run.stderr) == (0, "")
    assert "--config" in run.stdout.partition("Settings (YAML keys")[0]
    assert "  evaluate.bootstrap_samples = 1000\n" in run.stdout


@pytest.mark.parametrize("name", ["quickstart.sh", "test.sh"])
def test_help_of_the_other_scripts_shows_their_head(tmp_path, name):
    run = bash(ROOT / name, "--help", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert (
        f"  bash {name} " in run.stdout and "#" not in run.stdout and "pipefail" not in run.stdout
    )


def test_a_failing_stage_stops_the_chain_with_its_exit_code(copy, tmp_path):
    """The embedded catalogue has no May 2092, so that the first stage refuses; the second must not even be announced."""
    recording_python(tmp_path / "env")
    run = bash(
        copy / "quickstart.sh",
        "--data.start",
        "2092-05-01",
        cwd=tmp_path,
        VIRTUAL_ENV=tmp_path / "env",
    )
    assert run.returncode == 2
    assert (
        run.stdout.count("\n== ") == 1
        and "\n== data/prepare.sh --data.start 2092-05-01\n" in run.stdout
    )
    assert run.stderr.count("\n") == 1 and "Traceback" not in run.stderr


def test_a_stage_runs_in_folders_with_spaces_and_paths_are_relative_to_the_caller(copy, tmp_path):
    """A real first stage; run again it says so at once; the third stage names what is missing."""
    here = tmp_path / "my shop"
    (here / "raw data").mkdir(parents=True)
    (here / "raw data" / "items.csv").write_text(
        "item_id,title\n" + "".join(f"i{n},lamp {n}\n" for n in range(6))
    )
    (here / "raw data" / "interactions.csv").write_text(
        "user_id,item_id,timestamp\n"
        + "".join(
            f"u{user},i{(user + step) % 6},{1000 * step + user}\n"
            for user in range(4)
            for step in range(5)
        )
    )
    (here / "shop.yaml").write_text(
        "data: {source: tables, path: raw data, split: leave_one_out, k_core: 0}\n"
    )
    run = bash(
        copy / "data" / "prepare.sh", "--config", "shop.yaml", cwd=here, VIRTUAL_ENV=sys.prefix
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert (here / "runs" / "shop" / "data" / "interactions.parquet").is_file()
    started = time.perf_counter()
    again = bash(
        copy / "data" / "prepare.sh", "--config", "shop.yaml", cwd=here, VIRTUAL_ENV=sys.prefix
    )
    assert time.perf_counter() - started < 2
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == (
        "runs/shop/data is there already, made with these settings; delete it to make it again. "
        "Next: `bash rqvae/rqvae.sh` with the same --config\n"
    )
    early = bash(copy / "sft.sh", "--config", "shop.yaml", cwd=here, VIRTUAL_ENV=sys.prefix)
    assert (early.returncode, early.stdout) == (2, "")
    assert (
        early.stderr
        == "runs/shop/sids not found; run `bash rqvae/rqvae.sh` with the same --config first\n"
    )


def test_ci_hands_the_real_data_beside_the_checkout_to_the_tests(tmp_path):
    checkout = tmp_path / "a checkout"
    executable(checkout / ".ci" / "run", (ROOT / ".ci" / "run").read_text())
    (checkout / "test.sh").write_text('echo "${MINIONEREC_REAL_DATA-unset}" "$@"\n')
    kept = {
        name: value for name, value in clean_environment().items() if name != "MINIONEREC_REAL_DATA"
    }
    run = [checkout / ".ci" / "run", "-q"]
    assert subprocess.check_output(run, cwd=tmp_path, env=kept, text=True) == "unset -q\n"
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert (
        subprocess.check_output(run, cwd="/", env=kept, text=True) == f"{tmp_path}/shared/data -q\n"
    )
