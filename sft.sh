#!/usr/bin/env bash
# Stage 2: supervised fine-tuning -> runs/<name>/sft
#
#   bash sft.sh --config configs/quickstart.yaml [--section.key value ...]
#   ACCELERATE_CONFIG=configs/accelerate/fsdp.yaml bash sft.sh --config ...
#   bash sft.sh --help        all keys
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/minionerec/setup.sh"

need_python
exec "$PYTHON" -P -m minionerec.experiment.launch sft "$@"
