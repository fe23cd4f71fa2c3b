#!/bin/sh
# Lint and run the test suite on two processes: sh scripts/run_tests.sh [options of pytest ...]
set -eu
. "$(dirname -- "$0")/environment.sh"

cd "$root"
if ! "$PYTHON" -c 'import pytest, ruff, xdist' 2>/dev/null; then
    echo "error: the active environment lacks the tests' own packages; pip install -c constraints.txt -e '.[dev]', or deactivate it and run this again." >&2
    exit 2
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# in the order of tests/conftest.py, which has the longest files first
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
