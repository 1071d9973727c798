"""Commands and programs of the tests, each in a separate process."""

import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import compilation

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        __name__,
        "motionaura_jax.training.loop",
        "motionaura_jax.systems.text_to_video.system",
    ]
)
"""Makes processes that find the libraries imported: most of a short run would be that."""

# JAX read these on import.
_VARIABLES = {"JAX_COMPILATION_CACHE_DIR": str, "JAX_DISABLE_MOST_OPTIMIZATIONS": int, "JAX_NUM_CPU_DEVICES": int}


def free_port() -> int:
    """Return a free local port."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


class Forked:
    """Module run as by `python -m`, with quick compilation and output to files; behaves like `subprocess.Popen`."""

    def __init__(self, module, *arguments, root, out: Path, err: Path, **environment):
        place = {**os.environ, **compilation.QUICKLY, **environment, "PYTHONPATH": str(root)}
        self._process = FORKS.Process(target=_run, args=(module, [*map(str, arguments)], place, root, out, err))
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Return the exit status; kill the process and raise TimeoutError after `timeout` seconds."""
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            raise TimeoutError(f"process {self._process.pid} was not done after {timeout} s")
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _run(module, arguments, environment, root, out, err):
    import jax

    os.environ.clear()
    os.environ.update(environment)
    for name, kind in _VARIABLES.items():
        if name in environment:
            jax.config.update(name.lower(), kind(environment[name]))
    os.chdir(root)
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def start(name, *flags, root):
    """Start `motionaura NAME FLAGS --json` in the checkout `root`, as a user would."""
    command = [sys.executable, "-m", f"motionaura_jax.{name}", *flags, "--json"]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Wait for a command that must succeed; return its result."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out)


def kill(process, when):
    """Kill a command with SIGKILL as soon as `when()` is true."""
    deadline = time.monotonic() + 400
    while not when():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-3000:]
        time.sleep(0.01)
    process.kill()
    process.communicate()


def report(module, *arguments, root, **environment):
    """Run a test program that needs its own devices and prints JSON; return its output."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        program = Forked(module, *arguments, root=root, out=out, err=err, **environment)
        try:
            assert program.wait(600) == 0, err.read_text()[-3000:]
        except TimeoutError as error:
            error.add_note(err.read_text()[-3000:])
            raise
        return json.loads(out.read_text())
