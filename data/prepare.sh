#!/usr/bin/env bash
# Stage 0: raw or tabular data -> runs/<name>/data
#
#   bash data/prepare.sh --config configs/quickstart.yaml [--section.key value ...]
#   bash data/prepare.sh --help        all keys
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../minionerec/setup.sh"

need_python
exec "$PYTHON" -P -m minionerec.experiment.launch data "$@"
