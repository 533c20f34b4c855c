# shellcheck shell=bash
# What the shell scripts share; sourced, never run. It finds the repository and a Python environment, checks a stage's
# arguments before anything heavy starts, and starts the stage on the hardware that is there.
#
# The working directory stays the caller's, so that relative paths in flags and YAML files mean what they say.

ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON=""
ALREADY_DONE=10     # exit code of minionerec/experiment/preflight.py for "nothing to do": the script then ends with 0

export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export HF_HUB_DISABLE_PROGRESS_BARS="${HF_HUB_DISABLE_PROGRESS_BARS:-1}"
export HF_HUB_DISABLE_TELEMETRY="${HF_HUB_DISABLE_TELEMETRY:-1}"
export TRANSFORMERS_NO_ADVISORY_WARNINGS="${TRANSFORMERS_NO_ADVISORY_WARNINGS:-1}"

# Print one line to stderr and stop as for any mistake that the user can mend.
refuse() {
    printf '%s\n' "$1" >&2
    exit 2
}

# Print the comment at the head of the calling script when --help is the first argument.
help_if_asked() {
    if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
        sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0
    fi
}

# ---------------------------------------------------------------------------------------------------- environment

# Set PYTHON to the active virtualenv's or conda environment's, else to that of .venv; fail when there is none.
find_python() {
    local folder
    for folder in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}" "$ROOT/.venv"; do
        if [[ -n "$folder" && -x "$folder/bin/python" ]]; then
            PYTHON="$folder/bin/python"
            return 0
        fi
    done
    return 1
}

is_recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# set_up user (quickstart.sh) or set_up developer (test.sh). Create .venv unless an environment is active, and install
# requirements.txt and this project into the environment, for a developer with the extra dev of pyproject.toml, in the
# versions of constraints.txt, unless the stamp in it says that this very set was installed before.
set_up() {
    local candidate stamp wanted extra=""
    if [[ "$1" == developer ]]; then extra="[dev]"; fi
    if ! find_python; then
        for candidate in python3 python3.11 python3.12 python3.13; do
            is_recent "$candidate" && break
        done
        is_recent "$candidate" || refuse "set-up: no Python 3.11 or newer found; install one or activate an environment that has it"
        echo "set-up: creating $ROOT/.venv"
        "$candidate" -m venv "$ROOT/.venv" || refuse "set-up: '$candidate -m venv' failed; install Python's venv module"
        find_python
    fi
    is_recent "$PYTHON" || refuse "set-up: $PYTHON is older than Python 3.11; activate a newer environment or deactivate this one"
    stamp="$("$PYTHON" -c 'import sys; print(sys.prefix)')/.minionerec-requirements.sha256"
    wanted="$(digest_of requirements.txt constraints.txt pyproject.toml) $ROOT"
    if [[ -f "$stamp" ]] && grep -qxF -- "$wanted$extra" "$stamp"; then return 0; fi
    echo "set-up: installing requirements.txt${extra:+ and the extra dev} into $(dirname -- "$stamp") (once, a minute or two)"
    "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip --default-pip >/dev/null
    pip_install "$ROOT/requirements.txt" -r "$ROOT/requirements.txt"
    pip_install "$ROOT itself" -e "$ROOT$extra"
    printf '%s\n' "$wanted" "$wanted$extra" >"$stamp"
}

# pip_install NAME ARGUMENTS...: in the versions that the tests ran with.
pip_install() {
    "$PYTHON" -m pip install -qq --disable-pip-version-check -c "$ROOT/constraints.txt" "${@:2}" ||
        refuse "set-up: pip could not install $1; its message is above"
}

# digest_of FILES...: one sha256 of files of the repository.
digest_of() {
    (cd -- "$ROOT" && cat -- "$@") | "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

# For the stage scripts: an environment must be there and hold what the stages import.
need_environment() {
    local advice="run \`bash quickstart.sh\` once, or \`pip install -r requirements.txt\` in an active environment"
    find_python || refuse "no Python environment is active and $ROOT/.venv does not exist; $advice"
    has_packages yaml torch transformers accelerate || refuse "$PYTHON lacks packages of requirements.txt; $advice"
}

has_packages() {
    "$PYTHON" -P -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' "$@"
}

# ------------------------------------------------------------------------------------------------------- a stage

# preflight STAGE ARGUMENTS...: check settings and earlier stages in about a second. Ends the script when there is
# nothing to do (finished before, --help) or something to mend.
preflight() {
    local code=0
    need_environment
    "$PYTHON" -P -m minionerec.experiment.preflight "$@" || code=$?
    if ((code == ALREADY_DONE)); then exit 0; fi
    if ((code != 0)); then exit "$code"; fi
}

# GPUs that a process started now would see: those of nvidia-smi, or as many as CUDA_VISIBLE_DEVICES names.
visible_gpus() {
    local found=0 device devices=()
    if command -v nvidia-smi >/dev/null; then
        found="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)"
    fi
    if ((found > 0)) && [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
        IFS=',' read -r -a devices <<<"$CUDA_VISIBLE_DEVICES"
        found=0
        for device in "${devices[@]}"; do
            [[ "$device" != -* ]] || break      # CUDA ignores an invalid index and what follows it
            found=$((found + 1))
        done
    fi
    echo "$found"
}

# run_python SCRIPT ARGUMENTS...: one process.
run_python() {
    local script="$ROOT/$1"
    shift
    exec "$PYTHON" "$script" "$@"
}

# launch SCRIPT ARGUMENTS...: as many processes as there are visible GPUs, or as the file ACCELERATE_CONFIG says.
#
# One process is started without `accelerate launch`, which would only add the variables set here; several are started
# through minionerec/experiment/launch.py, which keeps a stage's exit code and its one-line errors.
launch() {
    local processes options=() script="$ROOT/$1" file="${ACCELERATE_CONFIG:-}"
    [[ -z "$file" ]] || check_accelerate_config "$file"
    processes="$(visible_gpus)"
    if ((processes == 0)); then
        export ACCELERATE_USE_CPU=true
        processes=1
    fi
    if [[ -z "$file" ]] && ((processes == 1)); then
        export ACCELERATE_MIXED_PRECISION=no
        run_python "$@"
    fi
    shift
    if [[ -z "$file" ]]; then
        options=(--multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0)
    else
        options=(--config_file "$file")
        processes="$(setting_in "$file" num_processes "$processes")"
        [[ -z "${MACHINE_RANK:-}" ]] || options+=(--machine_rank "$MACHINE_RANK")
        [[ -z "${MAIN_PROCESS_IP:-}" ]] || options+=(--main_process_ip "$MAIN_PROCESS_IP")
    fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(threads_for "$processes")}"
    exec "$PYTHON" -P -m minionerec.experiment.launch "${options[@]}" --num_processes "$processes" "$script" "$@"
}

# Refuse a file that cannot work; on the CPU, hide the GPUs from everything that the stage starts.
check_accelerate_config() {
    [[ -f "$1" ]] || refuse "ACCELERATE_CONFIG: $1: no such file; $ROOT/configs/accelerate holds some to start from"
    if grep -q '^distributed_type: *DEEPSPEED' "$1" && ! has_packages deepspeed; then
        refuse "ACCELERATE_CONFIG: $1: needs the package deepspeed; run \`$PYTHON -m pip install deepspeed\`"
    fi
    if grep -q '^use_cpu: *true' "$1"; then export CUDA_VISIBLE_DEVICES=""; fi
}

# setting_in FILE KEY DEFAULT: a number at the top level of a YAML file.
setting_in() {
    local found
    found="$(sed -n "s/^$2: *\([0-9][0-9]*\).*/\1/p" "$1")"
    echo "${found:-$3}"
}

# threads_for PROCESSES: the machine's cores shared among them, at least 1 each.
threads_for() {
    local cores
    cores="$(getconf _NPROCESSORS_ONLN)"
    echo "$((cores > $1 ? cores / $1 : 1))"
}
