"""Trainings in several real processes: the same numbers as in one, resumed in another number, and all end together."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from motionaura_jax.parallel.hub import free_port
from motionaura_jax.training.writers import read_metrics
from tests.cluster import recipes
from tests.systems import tiny

DEVICES = 4  # of a run, whatever the number of its processes


class Run:
    """Processes that train one recipe in one workdir."""

    def __init__(self, root: Path, recipe: Path, workdir: Path, count: int, *flags: str, own=lambda index: ()):
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(DEVICES // count), "PYTHONPATH": str(root)}
        place = [f"--coordinator_address=localhost:{free_port()}", f"--num_processes={count}"] if count > 1 else []
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(root / "tests/parallel/worker.py"), f"--config={recipe}", f"--workdir={workdir}"]
                + [*place, *flags, *own(index)]
                + ([f"--process_id={index}"] if place else []),
                cwd=root,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(count)
        ]

    def finish(self) -> list[tuple[int, str]]:
        """Waits for all; returns status and stderr of each."""
        try:
            said = [process.communicate(timeout=500)[1] for process in self.processes]
        finally:
            [process.kill() for process in self.processes]
        return [(process.returncode, text) for process, text in zip(self.processes, said, strict=True)]


def train(*arguments, **options) -> None:
    """Trains to the end."""
    for status, said in Run(*arguments, **options).finish():
        assert status == 0, said[-3000:]


def losses(workdir: Path) -> list[float]:
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def toy(folder: Path, **sections) -> Path:
    return recipes.write(folder, **{"steps": 6, "system": "toy", "checkpoint": {"every": 2, "keep": 9}, **sections})


def errors(said: str) -> list[str]:
    assert "Traceback" not in said, said[-3000:]
    return [line for line in said.splitlines() if line.startswith("error:")]


def test_two_processes_train_like_one_and_one_goes_on(root, tmp_path):
    recipe = toy(tmp_path)
    for count, workdir in ((1, "one"), (2, "two")):
        train(root, recipe, tmp_path / workdir, count)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-6)
    assert len(losses(tmp_path / "two")) == 6 and (tmp_path / "two" / "samples" / "0000006.png").exists()
    more = ["--config.train.steps=8", "--override"]
    for count, workdir in ((2, "one"), (1, "two")):
        train(root, recipe, tmp_path / workdir, count, *more)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-6)
    assert len(losses(tmp_path / "one")) == 8


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_by_name(root, tmp_path, victim):
    run = Run(root, toy(tmp_path, steps=10**6), tmp_path / "run", 2, "--heartbeat_timeout=10")
    until = time.monotonic() + 200
    while len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    run.processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    status, said = run.finish()[1 - victim]
    assert time.monotonic() - began < 10  # within the heartbeat
    assert status != 0 and re.search(rf"^error: process {victim} on \S+ is gone", said, re.MULTILINE), said[-3000:]


def test_a_workdir_that_is_not_shared_is_refused(root, tmp_path):
    own = lambda index: [f"--workdir={tmp_path / str(index)}"]  # noqa: E731
    (_, first), (_, second) = Run(root, toy(tmp_path), tmp_path / "run", 2, own=own).finish()
    for line in (*errors(first), *errors(second)):
        assert re.search(r"process 1 on \S+ does not see what process 0 on \S+ writes there; choose .* shared?", line)
    assert len(errors(first)) == len(errors(second)) == 1
    assert not (tmp_path / "0" / "config.json").exists()


def test_a_config_of_its_own_ends_all(root, tmp_path):
    own = lambda index: [f"--config.seed={index}"]  # noqa: E731
    for status, said in Run(root, toy(tmp_path), tmp_path / "run", 2, own=own).finish():
        (line,) = errors(said)
        assert status == 2 and re.search(r"process 1 on \S+ has another config than process 0 .*\(config.seed\)", line)


def test_bad_input_of_one_process_ends_all(root, tmp_path):
    own = lambda index: ["--config.train.stepz=3"] * index  # noqa: E731
    for status, said in Run(root, toy(tmp_path), tmp_path / "run", 2, own=own).finish():
        assert status == 2 and len(errors(said)) == 1 and "config.train.stepz: no such key; did you mean" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], "--coordinator_address is not given"),
        (["--num_processes=0"], "--num_processes: 0: must be at least 1"),
        (
            ["--coordinator_address=here", "--num_processes=2", "--process_id=0"],
            "coordinator_address=here: give HOST:PORT",
        ),
        (["--coordinator_address=localhost:1", "--num_processes=2", "--process_id=2"], "processes count from 0"),
    ],
)
def test_a_place_that_makes_no_sense_is_one_line(root, tmp_path, flags, message):
    ((status, said),) = Run(root, toy(tmp_path), tmp_path / "run", 1, *flags).finish()
    assert status == 2 and message in errors(said)[0] and len(errors(said)) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workdir", ["/proc/run", "{file}/run"])
def test_a_workdir_that_cannot_be_written_ends_all_with_one_line(root, tmp_path, workdir):
    (tmp_path / "file").write_text("")
    folder = Path(workdir.format(file=tmp_path / "file"))
    for status, said in Run(root, toy(tmp_path), folder, 2).finish():
        assert status == 2 and re.search(f"{folder}: cannot be used as a workdir", errors(said)[0])
        assert len(errors(said)) == 1


def text_to_video(folder: Path) -> Path:
    tokenizer = tiny.save_tokenizer(folder / "tokenizer")
    values = tiny.text_to_video(tokenizer, text={"vocabulary": []})
    values = {name: section for name, section in values.items() if name not in ("data", "train")}
    return recipes.write(folder, 6, **values, checkpoint={"every": 2, "keep": 9})


def tokenizer(folder: Path) -> Path:
    return recipes.write(folder, 6, system="mbq_vae", model=tiny.TOKENIZER, checkpoint={"every": 2, "keep": 9})


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "tolerance"), [(text_to_video, 1e-5), (tokenizer, 1e-3)])
def test_four_processes_are_resumed_by_two_and_those_by_one(root, tmp_path, recipe, tolerance):
    """Losses of two steps in 4 processes, two in 2 and five in 1, against nine in one process."""
    path = recipe(tmp_path)
    for count, steps, workdir in ((1, 9, "one"), (4, 2, "less"), (2, 4, "less"), (1, 9, "less")):
        began = time.monotonic()
        train(root, path, tmp_path / workdir, count, f"--config.train.steps={steps}", "--override")
        print(count, time.monotonic() - began)
    expected, found = losses(tmp_path / "one"), losses(tmp_path / "less")
    print(np.max(np.abs(np.array(found) / expected - 1)))
    np.testing.assert_allclose(found, expected, rtol=tolerance)
