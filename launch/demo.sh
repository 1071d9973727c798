#!/usr/bin/env bash
# Run the demo. It needs only Python: the first run installs everything into .venv, and later runs reuse it.
#
#   ./launch/demo.sh [FLAGS]    flags of `motionaura demo`; --help lists them
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

prepare
step "demo"
# XLA runs most operations of networks this small on one thread.  Two virtual devices, which share each batch, use two cores.
# Accelerators ignore the flag.
if [ -z "${XLA_FLAGS:-}" ] && [ "$(getconf _NPROCESSORS_ONLN)" -ge 2 ]; then
  export XLA_FLAGS=--xla_force_host_platform_device_count=2
fi
exec "$python" -P -m motionaura_jax.demo "$@"
