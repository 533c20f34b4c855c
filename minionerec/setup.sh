# shellcheck shell=bash
# What happens before Python is there; sourced by the scripts, never run. It finds the repository and a Python
# environment, or creates one. How a stage starts is minionerec/experiment/launch.py's business.
#
# The working directory stays the caller's, so that relative paths in flags and YAML files mean what they say.

ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON=""

export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

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

# Set PYTHON to the system's where it has everything, as in a container that was built for this.
find_system_python() {
    PYTHON="$(command -v python3)" && is_recent "$PYTHON" && [[ -z "$(lacks)" ]]
}

# What PYTHON lacks of requirements.txt.
lacks() {
    "$PYTHON" "$ROOT/minionerec/experiment/lacking.py" "$ROOT/requirements.txt"
}

# For the stage scripts: find_python, or say how to get one.
need_python() {
    find_python || find_system_python || refuse "no Python environment is active and $ROOT/.venv does not exist; run \`bash quickstart.sh\` once, or \`pip install -r requirements.txt\` in an active environment"
}

is_recent() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# set_up user (quickstart.sh) or set_up developer (test.sh). Create .venv unless an environment is active, and install
# requirements.txt and this project into the environment, for a developer with the extra dev of pyproject.toml, in the
# versions of constraints.txt, unless the stamp in it says that this very set was installed before. A user's active
# environment that lacks nothing is left as it is; what it lacks is said first. So is the system's Python.
set_up() {
    local candidate stamp wanted missing extra=""
    if [[ "$1" == developer ]]; then extra="[dev]"; fi
    if ! find_python; then
        if [[ "$1" == user ]] && find_system_python; then return 0; fi
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
    if [[ "$1" == user && "$PYTHON" != "$ROOT/.venv/bin/python" && ! -f "$stamp" ]]; then
        # Somebody else's: it is left as it is where nothing is missing, and told apart where something is
        missing="$(lacks)"
        if [[ -z "$missing" ]]; then return 0; fi
        echo "set-up: the active environment lacks $missing (deactivate it to have them in $ROOT/.venv instead)"
    fi
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
