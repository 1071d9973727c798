#!/usr/bin/env bash
# Train with several processes on this machine. Every line of their output starts with the number of its process.
#
#   ./launch/local.sh -n N FLAGS    flags of `motionaura train`
#
# The processes share the machine's GPUs evenly. Signals go to all processes: SIGTERM and SIGINT save a checkpoint and end
# the run. If one process fails, all end; the exit status is that of the first failure.
#
#   EXTRA                  cuda12 or cuda13 installs JAX for GPUs, once
#   PORT                   port at which the processes meet; default: a free one
#   JAX_NUM_CPU_DEVICES    virtual devices of each process, to try a mesh on a CPU
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ "${1:-}" = -n ] || fail "usage: launch/local.sh -n N FLAGS; the flags are those of motionaura train"
case ${2:-} in
  [1-9] | [1-9][0-9] | [1-9][0-9][0-9]) count=$2 ;;
  *) fail "-n ${2:-}: give the number of processes, such as -n 2" ;;
esac
shift 2
has_plugin='import sys, importlib.metadata as m; sys.exit(not m.entry_points(group="jax_plugins"))'
patience=15 # seconds that the other processes have to exit after a failure

prepare
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
[ "${JAX_PLATFORMS:-}" != cpu ] || gpus=0
[ "$gpus" = 0 ] || "$python" -c "$has_plugin" \
  || fail "no JAX for the $gpus GPUs in .venv; set EXTRA=cuda12 (if made by hand: pip install it), or JAX_PLATFORMS=cpu"
[ "$gpus" = 0 ] || [ "$gpus" -ge "$count" ] \
  || fail "$count processes for $gpus GPUs; start at most one process for each GPU"
export COLUMNS=${COLUMNS:-160} # width of log lines, which go to no terminal
port=${PORT:-$("$python" -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')}
export JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$count

# Print the GPUs of process $1, or nothing if the machine has none.
share() {
  local each=$((gpus / count))
  [ "$each" = 0 ] || seq -s, $(($1 * each)) $((($1 + 1) * each - 1))
}

# Ignore signals while labeling lines, so that the last lines are not lost.
label() {
  trap '' TERM INT USR1
  while IFS= read -r line || [ -n "$line" ]; do printf '[%s] %s\n' "$1" "$line"; done
}

set -m # put each process in its own group: an interrupt from the terminal arrives once, through `forward`
pids=()
for ((rank = 0; rank < count; rank++)); do
  (
    export JAX_PROCESS_ID=$rank
    devices=$(share "$rank")
    [ -z "$devices" ] || export JAX_LOCAL_DEVICE_IDS=$devices
    exec "$python" -P -m motionaura_jax.train "$@"
  ) > >(label "$rank") 2> >(label "$rank" >&2) &
  pids+=($!)
done
forward() { kill "-$1" ${pids[*]} 2>/dev/null || true; }
trap 'forward TERM' TERM
trap 'forward INT' INT
trap 'forward USR1' USR1

status=0
running=$count
while [ "$running" -gt 0 ]; do
  sleep 0.2
  for ((rank = 0; rank < count; rank++)); do
    [ -n "${pids[rank]}" ] && ! kill -0 "${pids[rank]}" 2>/dev/null || continue
    code=0
    wait "${pids[rank]}" || code=$?
    pids[rank]=
    running=$((running - 1))
    if [ "$code" != 0 ] && [ "$status" = 0 ]; then
      status=$code
      failed=$SECONDS
      step "process $rank ended with status $code; the others end too"
    fi
  done
  if [ "$status" != 0 ] && [ $((SECONDS - failed)) -gt "$patience" ]; then forward KILL; fi
done
exit "$status"
