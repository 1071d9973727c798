"""Commands as people run them: each in a process of its own."""

import json
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
