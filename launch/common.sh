# Sourced by the other scripts here: find Python, fill .venv, keep compiled programs. Sets $root and $python.
#
#   PYTHON                      interpreter to use; default: python3, or 3.12 or 3.11 if python3 is older or untested
#   EXTRA                       extras of pyproject.toml to install, e.g. cuda12; default: those of the existing .venv
#   MOTIONAURA_VENV             virtual environment to use; default: .venv
#   JAX_COMPILATION_CACHE_DIR   folder of compiled programs; default: .cache/jax
#
# An existing .venv that these scripts did not create is reused unchanged.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${MOTIONAURA_VENV:-$root/.venv}
python=$venv/bin/python
stamp=$venv/installed
log=$venv/install.log # its presence marks a .venv that these scripts created
needed_kb=2000000

step() { printf '==> %s\n' "$*" >&2; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Print the path of the first tested interpreter, else of the first that is new enough; in a virtual environment, print
# that of its base.
find_python() {
  local newest candidate candidates=(python3 python3.12 python3.11 python3.13)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for newest in 12 99; do
    for candidate in "${candidates[@]}"; do
      "$candidate" -c "$suitable" "$newest" 2>/dev/null && return
    done
  done
  candidate=${candidates[0]}
  fail "Python 3.11 or newer is needed, $candidate is $("$candidate" --version 2>/dev/null || echo missing);" \
    "install one or set PYTHON to it"
}
suitable='import sys
if not (3, 11) <= sys.version_info[:2] <= (3, int(sys.argv[1])): sys.exit(1)
print(sys._base_executable or sys.executable)'

# Print a hash of everything that an installation depends on: interpreter, extras, path of the checkout, requirements.
fingerprint() {
  "$1" - "$root" "$extra" <<'PY'
import hashlib, pathlib, sys

root = pathlib.Path(sys.argv[1])
digest = hashlib.sha256(f"{sys.version} {root} {sys.argv[2]}".encode())
for name in ("requirements.txt", "pyproject.toml", "setup.py"):
    digest.update((root / name).read_bytes())
print(digest.hexdigest())
PY
}

# Install everything into .venv unless the last run did. The stamp is written last, so an interrupted run starts over.
prepare() {
  local base wanted began extra
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$root/.cache/jax}
  if [ -n "$(ls -A "$venv" 2>/dev/null)" ] && [ ! -e "$log" ]; then
    imports || fail "$venv was made by hand and cannot import motionaura_jax; install it there (README.md), or remove .venv"
    step "reusing the existing .venv, which was made by hand"
    return
  fi
  base=$(find_python)
  extra=${EXTRA-$(cat "$venv/extra" 2>/dev/null || true)}
  wanted=$(fingerprint "$base")
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && imports; then
    return
  fi
  began=$SECONDS
  check_disk
  step "creating .venv with $("$base" --version)"
  create_venv "$base" 2>/dev/null \
    || fail "cannot create $venv; on Debian and Ubuntu install python3-venv, elsewhere check that the folder is writable"
  step "installing requirements.txt (1.4 GB; a minute or two; details in .venv/install.log)"
  install -r "$root/requirements.txt"
  step "installing motionaura_jax from this folder${extra:+ with $extra}"
  install -c "$root/requirements.txt" --editable "$root${extra:+[$extra]}"
  printf '%s\n' "$wanted" >"$stamp"
  step "installed in $((SECONDS - began)) s"
}

imports() { "$python" -P -c 'import jax, motionaura_jax' >/dev/null 2>&1; }

# Write the log and the extras first, so that they survive an interruption.
create_venv() {
  mkdir -p "$venv" && rm -rf "$venv"/* && printf '%s\n' "$extra" >"$venv/extra" && "$1" -m venv "$venv" >"$log" 2>&1
}

check_disk() {
  local free
  free=$(df -Pk "$root" | awk 'NR == 2 { print $4 }')
  [ "$free" -ge "$needed_kb" ] \
    || fail "$((free / 1000)) MB free in $root, $((needed_kb / 1000)) MB are needed; free some space and run this again"
}

# Run pip install and turn a failure into one line.
install() {
  local last
  "$python" -m pip install --disable-pip-version-check --no-input --retries 2 "$@" >>"$log" 2>&1 && return
  last=$(tail -n 5 "$log")
  case $last in
    *'No space left'*) fail "the disk is full; free $((needed_kb / 1000)) MB in $root and run this again" ;;
    *'from versions: none'* | *[Cc]onnection* | *'timed out'* | *'name resolution'*)
      fail "no package index answers; check the network or pip's index setting and run this again (details: $log)"
      ;;
  esac
  fail "pip failed: $(grep -i '\berror' "$log" | tail -n 1) (details: $log)"
}
