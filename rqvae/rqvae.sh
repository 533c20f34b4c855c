#!/usr/bin/env bash
# Stage 1: item text -> embeddings -> quantiser -> semantic IDs in runs/<name>/sids
#
#   bash rqvae/rqvae.sh --config configs/quickstart.yaml [--section.key value ...]
#   bash rqvae/rqvae.sh --help        all keys
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../minionerec/setup.sh"

need_python
exec "$PYTHON" -P -m minionerec.experiment.launch sids "$@"
