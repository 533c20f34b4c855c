#!/usr/bin/env bash
# Stage 4: HR@K and NDCG@K over the full catalogue -> runs/<name>/evaluate/<checkpoint>-<split>
#
#   bash evaluate.sh --config configs/quickstart.yaml [--evaluate.checkpoint sft|rl|PATH] [--evaluate.split test|valid]
#   bash evaluate.sh --help        all keys
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/minionerec/setup.sh"

need_python
exec "$PYTHON" -P -m minionerec.experiment.launch evaluate "$@"
