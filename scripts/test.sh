#!/bin/sh
# Evaluate one config: sh scripts/test.sh [CONFIG] [options of tools/test.py ...]
# Without CONFIG: Toyland, the built-in world that needs no download.
set -eu
. "$(dirname -- "$0")/environment.sh"

config="$root/configs/cfg_toyland.py"
case "${1-}" in
"" | -*) ;;
*)
    config=$1
    shift
    if [ ! -f "$config" ] && [ -f "$root/$config" ]; then config="$root/$config"; fi
    ;;
esac
exec "$PYTHON" "$root/tools/test.py" "$config" "$@"
