#!/bin/sh
# Evaluate one config on several processes: sh scripts/distribute_test.sh CONFIG [PROCESSES] [options of tools/test.py ...]
# PROCESSES is the number of GPUs if not given. Any number of processes gives the figures of one.
# Several machines: on each, NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine MASTER_PORT=29500 sh scripts/distribute_test.sh ...
# Slurm: srun -n 8 --gres=gpu:8 --ntasks-per-node=8 sh scripts/distribute_test.sh CONFIG
set -eu
. "$(dirname -- "$0")/environment.sh"

if [ $# -eq 0 ]; then
    echo "error: no config; sh scripts/distribute_test.sh configs/cfg_toyland.py 2" >&2
    exit 2
fi
config=$1
shift
if [ ! -f "$config" ] && [ -f "$root/$config" ]; then config="$root/$config"; fi
processes=
case "${1-}" in
[0-9]*)
    processes=$1
    shift
    ;;
esac
if [ -n "${SLURM_PROCID-}" ] && [ -z "${NNODES-}" ]; then
    exec "$PYTHON" "$root/tools/test.py" "$config" --launcher slurm "$@"
fi
: "${processes:=$("$PYTHON" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}"
exec "$PYTHON" -m torch.distributed.run --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$processes" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${MASTER_PORT:-29500}" \
    "$root/tools/test.py" "$config" --launcher pytorch "$@"
