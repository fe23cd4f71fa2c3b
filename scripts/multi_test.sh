#!/bin/sh
# Evaluate methods x backbones x datasets over the GPUs at hand: sh scripts/multi_test.sh [options of tools/benchmark.py]
# Without options: all methods on Toyland. The same command again goes on where it stopped.
set -eu
. "$(dirname -- "$0")/environment.sh"

if [ $# -eq 0 ]; then
    set -- --methods $("$PYTHON" -c 'import sfp; print(*sfp.list_methods())') --datasets toyland
fi
exec "$PYTHON" "$root/tools/benchmark.py" "$@"
