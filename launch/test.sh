#!/usr/bin/env bash
# Run linters and tests. They need only Python: the first run installs everything into .venv, and later runs reuse it.
#
#   ./launch/test.sh                    ruff and the default tests: about 8 minutes once programs are compiled
#   ./launch/test.sh --all              also mypy and the slow tests; all must pass before a change is merged
#   ./launch/test.sh -k checkpoint -x   passes any other flags to pytest
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

all=no
if [ "${1:-}" = --all ]; then
  all=yes
  shift
fi

failed=
check() {
  step "$*"
  "$python" -m "$@" || failed="${failed:+$failed; }$*"
}

prepare
cd "$root"
check ruff check --output-format=concise .
check ruff format --check .
if [ "$all" = yes ]; then
  check mypy
  set -- -m '' "$@"
fi
check pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder --durations=25 --durations-min=1 "$@"
[ -z "$failed" ] || fail "failed: $failed"
