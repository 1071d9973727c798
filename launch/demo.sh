#!/usr/bin/env bash
# Run the demo. It needs only Python: the first run installs everything into .venv, and later runs reuse it.
#
#   ./launch/demo.sh [FLAGS]    flags of `motionaura demo`; --help lists them
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

prepare
step "demo"
exec "$python" -P -m motionaura_jax.demo "$@"
