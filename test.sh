#!/usr/bin/env bash
# Set up, then run the test suite.
#
#   bash test.sh                    everything but the long tests
#   bash test.sh -m fast            under a minute: something of every room, and the source itself
#   bash test.sh -m slow            the long tests; any arguments go to pytest
#   bash test.sh -n 0               in one process (by default one per core, at most four)
#
# MINIONEREC_REAL_DATA names the folder with real data sets; tests that need one are skipped without it.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/minionerec/setup.sh"

help_if_asked "$@"
set_up developer
cd "$ROOT"
exec "$PYTHON" -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile "$@"     # of two -m or -n, pytest takes the last
