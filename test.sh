#!/usr/bin/env bash
# Set up, then run the test suite.
#
#   bash test.sh                    everything but the long tests
#   bash test.sh -m slow            the long tests; any arguments go to pytest
#
# MINIONEREC_REAL_DATA names the folder with real data sets; tests that need one are skipped without it.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/minionerec/launch.sh"

help_if_asked "$@"
set_up
cd "$ROOT"
exec "$PYTHON" -m pytest -m "not slow" "$@"     # of two -m, pytest takes the last
