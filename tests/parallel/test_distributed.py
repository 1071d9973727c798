"""A single process agrees with itself; and the gaps of JAX's own service, which are the reason for `membership`.

Runs of several processes are in test_distributed_training.py.
"""

import signal
import socket
import time

import pytest

from motionaura_jax.parallel import distributed
from tests.processes import Forked, free_port


def test_alone_nothing_waits():
    with distributed.joined():
        assert distributed.process_count() == 1 and distributed.is_primary()
        assert distributed.gather("x", 3) == [3] and distributed.broadcast("y", "z") == "z"
        distributed.barrier("b")
    assert distributed.leave(3) == 3


class JaxAlone:
    """Processes of a two-process run without `distributed.joined`, one per index; all are killed at the end."""

    def __init__(self, root, folder, *numbers, port, heartbeat=100):
        self.logs = [folder / f"{place}.log" for place in range(len(numbers))]
        self.processes = [
            Forked("tests.parallel.jax_alone", f"localhost:{port}", 2, number, heartbeat, root=root, out=log, err=log)
            for number, log in zip(numbers, self.logs, strict=True)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        [process.kill() for process in self.processes]

    def wait_until_joined(self):
        until = time.monotonic() + 60
        while any("joined" not in text for text in self.texts()):
            assert time.monotonic() < until, self.texts()
            time.sleep(0.02)

    def texts(self):
        """Return the text of each log; empty until its process has opened it."""
        return [log.read_text() if log.exists() else "" for log in self.logs]


# If this fails, JAX now detects failures faster or names the machine, and `membership` can shrink.
@pytest.mark.slow
def test_jax_alone_waits_for_the_heartbeat_of_a_killed_process_and_then_aborts(root, tmp_path):
    with JaxAlone(root, tmp_path, 0, 1, port=free_port(), heartbeat=4) as run:
        run.wait_until_joined()
        run.processes[1].kill()
        began = time.monotonic()
        assert run.processes[0].wait(60) == -signal.SIGABRT
        assert time.monotonic() - began > 1.5
        assert socket.gethostname() not in run.logs[0].read_text().replace("localhost", "")
