#!/usr/bin/env bash
# Set up, then run every stage on the embedded catalogue with a tiny backbone: CPU, minutes. Ends with one table.
#
#   bash quickstart.sh [--section.key value ...]        the flags go to every stage
#
# Uses the active virtualenv or conda environment, else creates .venv. Finished stages are not repeated.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/minionerec/setup.sh"

help_if_asked "$@"
set_up user
config=configs/quickstart.yaml
[[ "$PWD" -ef "$ROOT" ]] || config="$ROOT/$config"

stage() {
    printf '\n== %s\n' "$*"
    bash "$ROOT/$1" --config "$config" "${@:2}"
}

stage data/prepare.sh "$@"
stage rqvae/rqvae.sh "$@"
stage baselines/run.sh "$@"
stage sft.sh "$@"
stage rl.sh "$@"
stage evaluate.sh --evaluate.checkpoint sft "$@"
stage evaluate.sh --evaluate.checkpoint rl "$@"

printf '\n== results on the test split\n'
"$PYTHON" -P -m minionerec.summary --config "$config" "$@"
