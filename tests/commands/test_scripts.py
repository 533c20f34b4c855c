"""The shell scripts: lint, set-up, and that a failure stops the chain where it happens.

    bash test.sh tests/commands/test_scripts.py

Where bash functions of minionerec/setup.sh are called one by one, the program around them (Python) are
small scripts that write down how they were called.
"""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minionerec.experiment.lacking import lacking

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["data/prepare.sh", "rqvae/rqvae.sh", "sft.sh", "rl.sh", "evaluate.sh", "baselines/run.sh"]
RUN_BY_USERS = [*STAGES, "quickstart.sh", "test.sh", ".ci/run"]
GOES_ON = "benchmarks/gpu.sh"  # a chain of measurements, of which a failing one stops no other
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


def in_setup_sh(root: Path, commands: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run bash commands after sourcing ``root``'s setup.sh, as the scripts do."""
    return bash(
        "-c",
        f'set -euo pipefail; source "$0/minionerec/setup.sh"; {commands}',
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
    """The repository's scripts and code, without an environment, in a folder with spaces in its
    name.
    """
    folder = tmp_path / "a copy with spaces"
    leave = shutil.ignore_patterns(".*", "runs", "tests", "__pycache__", "docs", "benchmarks")
    shutil.copytree(ROOT, folder, ignore=leave)
    return folder


# --------------------------------------------------------------------------------------------- lint


def test_shellcheck_finds_nothing():
    command = [
        Path(sys.prefix) / "bin" / "shellcheck",
        "-x",
        "-P",
        "SCRIPTDIR",
        *RUN_BY_USERS,
        "minionerec/setup.sh",
        GOES_ON,
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_no_script_is_forgotten_here():
    found = {
        str(path.relative_to(ROOT)) for pattern in ("*.sh", "*/*.sh") for path in ROOT.glob(pattern)
    }
    assert found == {*RUN_BY_USERS, "minionerec/setup.sh", GOES_ON} - {".ci/run"}


@pytest.mark.parametrize("name", RUN_BY_USERS)
def test_every_script_stops_at_the_first_error_and_is_executable(name):
    lines = (ROOT / name).read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert next(line for line in lines if not line.startswith("#")) == "set -euo pipefail"
    assert os.access(ROOT / name, os.X_OK)


# ------------------------------------------------------------------------------------------- set-up


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
    run = in_setup_sh(
        copy,
        'find_python; echo "$PYTHON"',
        **{name: copy / folder for name, folder in active.items()},
    )
    assert run.stdout == f"{copy / expected / 'bin' / 'python'}\n"


def system_python(folder: Path, lacks: str) -> str:
    """A PATH whose python3 is this one, but for what it says that it lacks."""
    text = f"""#!/usr/bin/env bash
    case "$*" in *lacking.py*) echo "{lacks}";; *) exec {sys.executable} "$@";; esac
    """
    executable(folder / "bin" / "python3", text)
    return f"{folder}/bin:{os.environ['PATH']}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_without_an_environment_says_in_one_line_how_to_get_one(copy, tmp_path, name):
    path = system_python(tmp_path, lacks="torch")
    run = bash(copy / name, "--config", "demo.yaml", cwd=tmp_path, PATH=path)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        f"no Python environment is active and {copy}/.venv does not exist; run `bash quickstart.sh` once, "
        "or `pip install -r requirements.txt` in an active environment\n"
    )


def test_a_systems_python_that_lacks_nothing_is_used_where_no_environment_is(copy, tmp_path):
    """By the stages and by set-up, which neither creates nor installs anything: a container."""
    path = system_python(tmp_path, lacks="")
    for command in ("need_python", "set_up user"):
        run = in_setup_sh(copy, f'{command}; echo "$PYTHON"', PATH=path)
        assert (run.stdout, run.stderr) == (f"{tmp_path}/bin/python3\n", "")
    assert not (copy / ".venv").exists()


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


def recording_python(folder: Path, pip_code: int = 0, lacks: str = "torch==2") -> Path:
    """An environment whose Python answers questions for real, but writes down ``-m`` calls instead of making them.

    ``lacks`` is what it says that is missing.
    """
    return executable(
        folder / "bin" / "python",
        f"""#!/usr/bin/env bash
if [[ "$1" == -m && "$3" == --version ]]; then exit 0; fi
if [[ "$1" == -m ]]; then printf '%s\\n' "$*" >>"{folder}/calls"; exit {pip_code}; fi
if [[ "$2" == *sys.prefix* ]]; then echo "{folder}"; exit 0; fi
if [[ "$1" == *lacking.py ]]; then echo "{lacks}"; exit 0; fi
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
    first, second = (in_setup_sh(copy, "set_up user", VIRTUAL_ENV=environment) for _ in range(2))
    assert first.stdout == (
        f"set-up: the active environment lacks torch==2 (deactivate it to have them in {copy}/.venv "
        f"instead)\nset-up: installing requirements.txt into {environment} (once, a minute or two)\n"
    )
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert (environment / "calls").read_text() == pip_calls(copy)
    with open(copy / changed, "a") as handle:
        handle.write("# changed\n")
    in_setup_sh(copy, "set_up user", VIRTUAL_ENV=environment)
    assert (environment / "calls").read_text() == 2 * pip_calls(copy)


def test_an_active_environment_that_lacks_nothing_is_left_as_it_is(copy, tmp_path):
    environment = tmp_path / "env"
    recording_python(environment, lacks="")
    run = in_setup_sh(copy, 'set_up user; echo "$PYTHON"', VIRTUAL_ENV=environment)
    assert (run.stdout, run.stderr) == (f"{environment}/bin/python\n", "")
    assert [path.name for path in environment.iterdir()] == ["bin"]


def test_what_an_environment_lacks_is_told_by_name_and_version():
    """pytest is here, in no version from the far future; the last is nowhere."""
    wanted = "# tests\npytest>=1  # why\npytest>=9999\n\nno-such-package-at-all==1\n-r other.txt\n"
    assert lacking(wanted) == ["pytest>=9999", "no-such-package-at-all==1"]


def test_an_extra_is_installed_on_top_and_is_no_reason_to_install_again_without_it(copy, tmp_path):
    environment = tmp_path / "env"
    recording_python(environment)
    in_setup_sh(copy, "set_up user", VIRTUAL_ENV=environment)
    run = in_setup_sh(
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
        run = in_setup_sh(copy, "set_up user; echo went on", VIRTUAL_ENV=tmp_path / "env")
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
    path = system_python(copy.parent, lacks="torch")
    run = in_setup_sh(copy, 'set_up user; "$PYTHON" -c "import sys; print(sys.prefix)"', PATH=path)
    assert (run.returncode, run.stdout, run.stderr) == (
        0,
        f"set-up: creating {copy}/.venv\n{copy}/.venv\n",
        "",
    )


def test_an_old_python_is_refused(copy, tmp_path):
    executable(tmp_path / "env" / "bin" / "python", "#!/usr/bin/env bash\nexit 1\n")
    run = in_setup_sh(copy, "set_up user", VIRTUAL_ENV=tmp_path / "env")
    assert (run.returncode, run.stderr) == (
        2,
        f"set-up: {tmp_path}/env/bin/python is older than Python 3.11; activate a newer environment or deactivate this one\n",
    )


# --------------------------------------------------------------------------------- starting a stage


def probe(copy: Path, text: str) -> None:
    """Put other code in the place of the first stage's script, which needs no earlier stage."""
    (copy / "data" / "prepare.py").write_text(f'"""A probe."""\n{text}')
    (copy / "demo.yaml").write_text("")


def test_the_exit_code_of_a_stage_is_that_of_its_script(copy):
    probe(copy, "import sys\nprint(sys.argv[1:])\nsys.exit(7)\n")
    words = ("--config", "demo.yaml", "--name", "other")
    run = bash(copy / "data" / "prepare.sh", *words, cwd=copy, VIRTUAL_ENV=sys.prefix)
    assert (run.returncode, run.stdout, run.stderr) == (7, f"{list(words)}\n", "")


def test_a_stage_told_to_stop_gets_the_signal_itself(copy):
    """It may finish its step and choose its exit code."""
    probe(
        copy,
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print('ready', flush=True)\ntime.sleep(60)\n",
    )
    command = ["bash", copy / "data" / "prepare.sh", "--config", "demo.yaml"]
    environment = clean_environment(VIRTUAL_ENV=sys.prefix)
    run = subprocess.Popen(command, cwd=copy, env=environment, stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=20) == 143
    run.stdout.close()


# ------------------------------------------------------------------------------- scripts as a whole


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
    """The embedded catalogue has no May 2092, so that the first stage refuses; the second must not
    even be announced.
    """
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
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = bash(
        copy / "data" / "prepare.sh", "--config", "shop.yaml", cwd=here, VIRTUAL_ENV=sys.prefix
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor, so that other work on the machine does not count
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == (
        "runs/shop/data is there already, made with these settings; --redo data makes it again. "
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
