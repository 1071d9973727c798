#!/usr/bin/env bash
# The demo, from nothing but a Python: the first run installs everything into .venv, later ones reuse it.
#
#   ./launch/demo.sh [FLAGS]    the flags are those of `motionaura demo`; --help lists them
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

prepare
step "demo"
exec "$python" -m motionaura_jax.demo "$@"
