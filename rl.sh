#!/usr/bin/env bash
# Stage 3: reinforcement learning (GRPO) from runs/<name>/sft -> runs/<name>/rl
#
#   bash rl.sh --config configs/quickstart.yaml [--section.key value ...]
#   ACCELERATE_CONFIG=configs/accelerate/fsdp.yaml bash rl.sh --config ...
#   bash rl.sh --help        all keys
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/minionerec/setup.sh"

need_python
exec "$PYTHON" -P -m minionerec.experiment.launch rl "$@"
