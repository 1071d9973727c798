"""The lock of a workdir: it keeps a second run out, and the OS releases it however the process ends."""

import os
import subprocess
import sys

import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.parallel import distributed
from motionaura_jax.training import loop, workdir
from tests.training.toy import ToyRecipe, ToySystem

HOLD = """
import pathlib, sys, time
from motionaura_jax.training import loop, workdir
with workdir.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(root, tmp_path):
    """Start a process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_told_who_holds_it_until_that_is_killed(holder, tmp_path):
    with pytest.raises(UserError, match=rf"process {holder.pid} on \S+ trains in it; .* choose another folder$"):
        loop.fit(ToySystem(config.build(ToyRecipe, {"system": "toy"})), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [workdir.LOCK]
    holder.kill()
    holder.wait()
    with workdir.lock(tmp_path):
        pass


def test_a_run_of_another_machine_gets_time_to_turn_out_to_be_gone(holder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(distributed, "host_name", lambda: "elsewhere")
    with pytest.raises(UserError, match=f"if it is gone for good, delete {tmp_path}/lock"):
        workdir.lock(tmp_path, lease=0.1).__enter__()
    monkeypatch.setattr(workdir.time, "sleep", lambda _: (holder.kill(), holder.wait()))
    with workdir.lock(tmp_path, lease=60):
        assert (tmp_path / workdir.LOCK).read_text().endswith(" on elsewhere")
    assert "waiting up to 60 s for its end" in caplog.text


def test_of_several_processes_only_the_first_holds_it(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    holds = (tmp_path / workdir.LOCK).read_text()
    with workdir.lock(tmp_path):
        assert (tmp_path / workdir.LOCK).read_text() == holds


def test_a_file_system_without_locks_keeps_nobody_out(holder, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(workdir.errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with workdir.lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / workdir.LOCK).read_text()
