#!/bin/sh
# Lint and run the test suite on two processes: sh scripts/run_tests.sh [options of pytest ...]
set -eu
. "$(dirname -- "$0")/environment.sh"

cd "$root"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
