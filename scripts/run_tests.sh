#!/bin/sh
# Lint and run the test suite on two processes: sh scripts/run_tests.sh [options of pytest ...]
set -eu
. "$(dirname -- "$0")/environment.sh"

cd "$root"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# in the order of tests/conftest.py, which has the longest files first
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
