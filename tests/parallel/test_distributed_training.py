"""Training in real processes: results independent of their count, one common saved step, and a common end."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from motionaura_jax import train
from motionaura_jax.parallel import distributed
from motionaura_jax.training.monitoring.writers import read_metrics
from motionaura_jax.weights import steps
from tests.cluster import recipes
from tests.processes import Forked, free_port

DEVICES = 4  # per run, for any number of processes


class Run:
    """Processes that train one recipe in one workdir; `own` holds flags per process."""

    module = "tests.cluster.worker"

    def __init__(self, root: Path, recipe: Path, workdir: Path, count: int, *flags: str, own=lambda index: ()):
        self.workdir, self.logs = workdir, [workdir.with_name(f"{workdir.name}-{n}-of-{count}") for n in range(count)]
        environment = {"JAX_NUM_CPU_DEVICES": str(DEVICES // count)}
        if count > 1:
            flags = (f"--coordinator_address=localhost:{free_port()}", f"--num_processes={count}", *flags)
            environment["COLUMNS"] = "200"
        self.processes = []
        for index, log in enumerate(self.logs):
            place = [f"--process_id={index}"] if count > 1 else []
            given = [f"--config={recipe}", f"--workdir={workdir}", *flags, *place, *own(index)]
            self.processes.append(Forked(self.module, *given, root=root, out=Path(os.devnull), err=log, **environment))

    def come_to(self, step: int) -> None:
        """Wait until the step is logged."""
        until = time.monotonic() + 400
        while len(read_metrics(self.workdir / "metrics.jsonl")) < step:
            assert all(process.poll() is None for process in self.processes), self.finish()
            assert time.monotonic() < until, self.finish()
            time.sleep(0.05)

    def finish(self) -> list[tuple[int, str]]:
        """Wait for all processes; return the status and stderr of each."""
        until = time.monotonic() + 100
        try:
            for process in self.processes:
                process.wait(max(until - time.monotonic(), 1))
        finally:
            [process.kill() for process in self.processes]
        return [(process.wait(100), log.read_text()) for process, log in zip(self.processes, self.logs, strict=True)]


def train_to(step: int, *arguments, status: int = 0) -> int:
    """Train until `step` is logged, then send SIGTERM to the last process; return the step that all have saved.

    All end with `status`.
    """
    run = Run(*arguments)
    run.come_to(step)
    run.processes[-1].send_signal(signal.SIGTERM)
    ends = run.finish()
    assert [found for found, _ in ends] == [status] * len(ends), ends
    saved = int(steps.newest(run.workdir).name)
    assert f"stopped by a signal after step {saved};" in ends[0][1] and len(losses(run.workdir)) == saved
    return saved


def losses(workdir: Path) -> list[float]:
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def one_error(said: str) -> str:
    assert "Traceback" not in said, said[-3000:]
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    return line


def test_a_signal_to_one_process_saves_the_same_step_in_both(root, tmp_path):
    saving = recipes.toy(tmp_path, checkpoint={"every": 2})  # in threads, while the steps and the signal go on
    assert train_to(5, root, saving, tmp_path / "run", 2, "--requeue", status=75) >= 5


@pytest.mark.slow
def test_fewer_processes_go_on_with_the_same_numbers(root, tmp_path):
    """Four processes, then two, then one, each stopped after at least five steps, against a single process throughout."""
    recipe, step = recipes.text_to_video(tmp_path), 0
    for count in (4, 2, 1):
        step = train_to(step + 5, root, recipe, tmp_path / "fewer", count)
    train_to(step, root, recipe, tmp_path / "one", 1)
    found, expected = np.array(losses(tmp_path / "fewer")), losses(tmp_path / "one")[:step]
    print(f"\n{step} steps, largest relative difference {np.max(np.abs(found / expected - 1)):.1e}")
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_other_by_name(root, tmp_path, victim):
    run = Run(root, recipes.toy(tmp_path), tmp_path / "run", 2, "--heartbeat_timeout=30")
    run.come_to(3)
    run.processes[victim].kill()
    began = time.monotonic()
    status, said = run.finish()[1 - victim]
    assert time.monotonic() - began < 30  # within the heartbeat
    assert status != 0 and re.search(rf"^error: process {victim} on \S+ is gone", said, re.MULTILINE), said[-3000:]


class Defective(Run):
    module = "tests.parallel.defective"


def test_a_defect_in_one_process_ends_both_at_once_and_shows_its_traceback(root, tmp_path):
    began = time.monotonic()
    (own_status, traceback), (status, said) = Defective(root, recipes.toy(tmp_path), tmp_path / "run", 2).finish()
    assert time.monotonic() - began < 60  # JAX would wait for 300 s at the end of the interpreter
    assert status == own_status == distributed.FAILED
    assert re.search(r"process 0 on \S+ failed: ZeroDivisionError: a defect", one_error(said))
    assert traceback.startswith("Traceback") and traceback.endswith("ZeroDivisionError: a defect\n")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.train.stepz=3", "config.train.stepz: no such key; did you mean"),
        pytest.param(
            "--config.seed=1",
            r"process 1 on \S+ has another config than process 0 .*\(config.seed\)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "--workdir={}/elsewhere",
            r"process 1 on \S+ does not see what process 0 on \S+ writes there; choose .* share",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_wrong_with_one_process_ends_both(root, tmp_path, flag, message):
    run = Run(root, recipes.toy(tmp_path), tmp_path / "run", 2, own=lambda index: [flag.format(tmp_path)] * index)
    for status, said in run.finish():
        assert status == 2 and re.search(message, one_error(said))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_workdir_that_cannot_be_written_ends_both_with_one_line(root, tmp_path):
    run = Run(root, recipes.toy(tmp_path), tmp_path / "run", 2, "--workdir=/proc/run")
    for status, said in run.finish():
        assert status == 2 and "/proc/run: cannot be written" in one_error(said)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num_processes=2", "--coordinator_address is not given and no cluster provides it"),
        ("--coordinator_address=here --num_processes=2 --process_id=0", "coordinator_address=here: give HOST:PORT"),
        ("--coordinator_address=localhost:1 --num_processes=2 --process_id=2", "processes count from 0"),
        (
            "--coordinator_address=localhost:1 --num_processes=2 --process_id=1 --start_timeout=1",
            "no coordinator answers at localhost:1 ",
        ),
    ],
)
def test_a_place_that_makes_no_sense_is_one_line(tmp_path, capsys, flags, message):
    assert train.main(["--config=none.json", f"--workdir={tmp_path / 'run'}", *flags.split()]) == 2
    assert message in one_error(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
