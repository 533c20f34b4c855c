#!/usr/bin/env bash
# Baselines on the same split and evaluator -> runs/<name>/baselines
#
#   bash baselines/run.sh --config configs/quickstart.yaml [--section.key value ...]
#   bash baselines/run.sh --help        all keys
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../minionerec/setup.sh"

need_python
exec "$PYTHON" -P -m minionerec.experiment.launch baselines "$@"
