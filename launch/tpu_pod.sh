#!/usr/bin/env bash
# Train on a Cloud TPU from your own machine: create the TPU, install this checkout on all its workers, train, and repeat
# all of this when Google takes the TPU away.
#
#   TPU=NAME ZONE=ZONE TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite ./launch/tpu_pod.sh FLAGS
#
# FLAGS are those of `motionaura train`; the workers find each other. Ctrl-C or SIGTERM saves a checkpoint and ends the
# run. The TPU stays: `gcloud compute tpus tpu-vm delete` ends its costs.
#
#   TPU, ZONE       name and zone; an existing TPU is reused after an installation
#   TYPE, VERSION   accelerator type and software version of a new TPU
#   SPOT            yes for a TPU that costs less and may be taken away
#   MOUNT           command that every worker runs first, e.g. to mount their shared disk
#   MAX_RESTARTS    number of times that training may start again (100)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for name in TPU ZONE TYPE VERSION; do
  [ -n "${!name:-}" ] || fail "$name is not set; usage: TPU=NAME ZONE=ZONE TYPE=TYPE VERSION=VERSION launch/tpu_pod.sh FLAGS"
done
[ $# -gt 0 ] || fail "no flags; they are those of motionaura train, such as --config=configs/tokenizer.py:small"
command -v gcloud >/dev/null || fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
pause=${PAUSE:-30}

vm() { gcloud compute tpus tpu-vm "$1" "$TPU" --zone="$ZONE" --quiet "${@:2}"; }
state() { vm describe --format='value(state)' 2>/dev/null || true; }
everywhere() { vm ssh --worker=all --ssh-flag='-o ServerAliveInterval=30' --command="$1"; }

# Fail on errors that waiting cannot fix: a wrong name, zone or project, or a missing permission.
check_known() {
  local said
  said=$(gcloud compute tpus tpu-vm "$1" describe "$2" --zone="$ZONE" --quiet 2>&1 >/dev/null) \
    || fail "gcloud finds no $2 among the $1 of $ZONE: ${said%%$'\n'*}"
}

create() {
  until vm create --accelerator-type="$TYPE" --version="$VERSION" ${SPOT:+--spot}; do
    step "no $TYPE available in $ZONE; trying again in $pause s"
    sleep "$pause"
  done
}

install_on_workers() {
  local archive
  archive=$(mktemp)
  tar -czf "$archive" -C "$root" --exclude=.git --exclude=.venv --exclude=.cache --exclude=runs .
  gcloud compute tpus tpu-vm scp "$archive" "$TPU:motionaura.tgz" --zone="$ZONE" --worker=all --quiet
  rm "$archive"
  everywhere "set -e; ${MOUNT:-true}; mkdir -p motionaura_jax; tar -xzf motionaura.tgz -C motionaura_jax; cd motionaura_jax
    command -v python3.11 >/dev/null || sudo apt-get install -qq -y python3.11-venv >/dev/null
    [ -d .venv ] || python3.11 -m venv .venv
    .venv/bin/python -m pip install --quiet -c requirements.txt '.[tpu,cloud]'"
}

# Signal the processes on the workers: they outlive the connection and keep the TPU busy.
signal_workers() { everywhere "pkill -$1 -u \$USER -f '[m]otionaura_jax[.]train' || true"; }

check_known accelerator-types "$TYPE"
check_known versions "$VERSION"
stopping=
trap 'stopping=yes; signal_workers TERM' INT TERM

installed=
for ((restarts = 0; restarts <= ${MAX_RESTARTS:-100}; restarts++)); do
  found=$(state)
  if [ "$found" != READY ]; then
    [ -z "$found" ] || { step "$TPU is $found; deleting it" && vm delete; }
    step "creating $TPU, a $TYPE in $ZONE"
    create
    installed=
  fi
  [ -n "$installed" ] || { step "installing on all workers" && install_on_workers && installed=yes; }
  step "start $((restarts + 1))"
  status=0
  everywhere "cd motionaura_jax && COLUMNS=160 .venv/bin/python -P -m motionaura_jax.train --requeue $(printf '%q ' "$@")" \
    & wait $! || status=$?
  [ -z "$stopping" ] || { wait && step "stopped; the same command resumes" && exit 0; }
  case $status in
    0) exit 0 ;;
    # An error of the run, or of gcloud if the TPU is gone. Restart after anything else: 75, signals, lost connections.
    1 | 2) [ "$(state)" != READY ] || fail "training ended with status $status; its reason is above" ;;
  esac
  step "status $status; starting again from the newest checkpoint"
  signal_workers KILL || true
done
fail "started again ${MAX_RESTARTS:-100} times (MAX_RESTARTS)"
