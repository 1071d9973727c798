"""Runs interrupted at any moment: the rerun reaches the result of an undisturbed run, bit for bit."""

import os
import random
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from motionaura_jax.scenes import dataset
from motionaura_jax.training import checkpoint, loop, step
from motionaura_jax.training.data import TrainingData
from motionaura_jax.training.monitoring.writers import read_metrics
from motionaura_jax.weights import steps
from tests.processes import free_port
from tests.training import killed

SPEED = ("per_second", "goodput", "badput", "memory_gb")


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Return ten small clips with captions."""
    folder = tmp_path_factory.mktemp("clips")
    options = dataset.PRESETS["easy"]
    dataset.write_scenes(folder, count=10, split="train", options=options, num_frames=4, height=16, width=16, fps=8.0)
    return folder


def everything(workdir):
    """Return all arrays of the newest checkpoint by name, and the metrics that do not depend on the clock."""
    step = steps.newest(workdir)
    items = [item for item in ("params", "ema", "extra", "optimizer") if (step / item).is_dir()]
    with ocp.StandardCheckpointer() as reader:
        arrays = {item: jax.tree.map(np.asarray, reader.restore(step / item)) for item in items}
    rows = read_metrics(workdir / "metrics.jsonl")
    return arrays, [{k: v for k, v in row.items() if not any(word in k for word in SPEED)} for row in rows]


def saved(workdir):
    """Return the newest saved step, or 0."""
    folder = workdir / "checkpoints"
    return (
        max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0) if folder.exists() else 0
    )


def assert_equal_runs(one, other):
    (arrays, rows), (expected, expected_rows) = everything(one), everything(other)
    assert arrays.keys() == expected.keys() and "ema" in arrays
    assert jax.tree.structure(arrays) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(arrays), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows == expected_rows


def test_a_signal_in_the_middle_of_a_step_ends_the_run_after_it(clips, tmp_path, monkeypatch):
    loop.fit(killed.make(clips, 8, 100), tmp_path / "whole")
    make, calls = step.make_train_step, []

    def make_and_be_stopped(*arguments):
        train_step = make(*arguments)

        def stopped_in_the_third(*inputs):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(*inputs)

        return stopped_in_the_third

    monkeypatch.setattr(step, "make_train_step", make_and_be_stopped)
    result = loop.fit(killed.make(clips, 8, 100), tmp_path / "stopped")
    assert result["stopped"] and result["step"] == 3
    assert loop.fit(killed.make(clips, 8, 100), tmp_path / "stopped")["step"] == 8
    fed = [everything(tmp_path / name)[0]["extra"]["extra"]["fed"] for name in ("whole", "stopped")]
    np.testing.assert_array_equal(*fed)


def test_a_signal_in_the_middle_of_a_save_loses_nothing(clips, tmp_path, monkeypatch):
    loop.fit(killed.make(clips, 8, 3), tmp_path / "whole")
    save = checkpoint.Checkpoints.save

    def save_and_be_stopped(self, state, beside):
        save(self, state, beside)  # continues in the background
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", save_and_be_stopped)
        with pytest.raises(KeyboardInterrupt):  # the second signal arrives during the save that the first one requests
            loop.fit(killed.make(clips, 8, 3), tmp_path / "stopped")
    assert steps.newest(tmp_path / "stopped").name in ("3", "4")
    assert loop.fit(killed.make(clips, 8, 3), tmp_path / "stopped")["step"] == 8
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_no_step_and_repeat_no_sample(clips, tmp_path):
    total, rng, unfinished = 300, random.Random(0), 0
    for _ in range(20):
        process = killed.start(tmp_path / "killed", clips, total, 5)
        goal = saved(tmp_path / "killed") + 5 * rng.randint(0, 2)  # 0: during start-up or compilation
        while saved(tmp_path / "killed") < goal and process.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.2))
        process.kill()
        process.join()
        unfinished += bool(list((tmp_path / "killed" / "checkpoints").glob("*tmp*")))
    assert unfinished, "no kill met a save; the moments need another seed"
    assert 0 < saved(tmp_path / "killed") < total, "the run was over before the kills were"
    for name in ("killed", "whole"):
        process = killed.start(tmp_path / name, clips, total, 1000)
        process.join(300)
        assert process.exitcode == 0
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")
    fed = everything(tmp_path / "killed")[0]["extra"]["extra"]["fed"]
    source = TrainingData(killed.make(clips, total, 5).recipe, tmp_path / "look").batches(0)
    np.testing.assert_array_equal(fed, [batch["index"] for batch in source])


@pytest.mark.slow
def test_an_interrupt_of_one_of_two_processes_ends_both_after_the_same_step(clips, tmp_path):
    place = {"coordinator_address": f"localhost:{free_port()}", "num_processes": 2}
    both = [killed.start(tmp_path / "run", clips, 10**5, 1000, **place, process_id=index) for index in (0, 1)]
    deadline = time.monotonic() + 200
    while not read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert time.monotonic() < deadline and all(process.is_alive() for process in both)
        time.sleep(0.05)
    os.kill(both[1].pid, signal.SIGINT)
    for process in both:
        process.join(100)
        assert process.exitcode == 0
    assert 0 < saved(tmp_path / "run") < 1000  # both must request the save at the same step
