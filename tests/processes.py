"""Commands as people run them: each in a process of its own."""

import json
import os
import subprocess
import sys


def start(name, *flags, root):
    """Starts `motionaura NAME FLAGS --json` in the checkout `root`."""
    command = [sys.executable, "-m", f"motionaura_jax.{name}", *flags, "--json"]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Waits for a command that has to succeed and returns its result."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out)


def report(module, *arguments, root):
    """Runs a program of the tests that needs devices of its own and prints JSON; compiles it without optimizations."""
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
