"""The parts around the loop: prefetch, steps in flight, transfer guard, profiler, alarms, watchdog, signals."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.recipe import ProfileConfig, WatchdogConfig
from motionaura_jax.parallel import distributed, mesh
from motionaura_jax.training import in_flight, loop
from motionaura_jax.training.monitoring import alarms, goodput, watchdog
from motionaura_jax.training.monitoring.writers import read_metrics
from tests.training.toy import ToyRecipe, ToySystem


def toy(**values):
    shape = {"num_frames": 2, "height": 16, "width": 16, "batch_size": 2, "scenes": 6}
    sections = {"data": shape, "train": {"steps": 6, "log_every": 2}, "evaluate": {"every": 100, "clips": 2}}
    for name, section in values.items():
        sections[name] = {**sections.get(name, {}), **section}
    return ToySystem(config.build(ToyRecipe, {"system": "toy", **sections}))


# ---------------------------------------------------------------- Prefetch
def test_batches_come_in_order_and_some_wait_ready():
    placed = []
    with in_flight.Prefetch(iter(range(10)), lambda batch: placed.append(batch) or batch) as batches:
        assert next(batches) == 0
        deadline = time.monotonic() + 10
        while len(placed) <= in_flight.BATCHES_AHEAD and time.monotonic() < deadline:
            time.sleep(0.001)
        assert placed == list(range(in_flight.BATCHES_AHEAD + 1))
        assert list(batches) == list(range(1, 10))


@pytest.mark.parametrize("where", ["batches", "place"])
def test_a_failure_is_raised_where_its_batch_is_due(where):
    def batches():
        yield 0
        yield 1
        if where == "batches":
            raise RuntimeError("broken")
        yield 2

    def place(batch):
        if batch == 2:
            raise RuntimeError("broken")
        return batch

    with in_flight.Prefetch(batches(), place) as ready:
        assert [next(ready), next(ready)] == [0, 1]
        with pytest.raises(RuntimeError, match="broken"):
            next(ready)


def test_leaving_ends_the_thread():
    with in_flight.Prefetch(iter(range(100)), lambda batch: batch) as batches:
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


# ---------------------------------------------------------------- Steps in flight
def test_rows_come_once_in_windows_that_end_at_log_steps():
    flight = in_flight.InFlight()
    seen = []
    for number in range(1, 9):
        flight.add(number, {"loss": jnp.float32(number)})
        last = number == 8
        for until, rows in flight.windows(3, number if last else number - 1, rest=last):
            seen.append((number, until, [row["loss"] for row in rows]))
        if number == 5:
            again = in_flight.InFlight(flight.open_window())
    assert seen == [(4, 3, [1, 2, 3]), (7, 6, [4, 5, 6]), (8, 8, [7, 8])]
    again.add(6, {"loss": jnp.float32(6)})  # after a restart from step 5
    assert [rows for _, rows in again.windows(3, 6, rest=False)] == [[{"loss": 4.0}, {"loss": 5.0}, {"loss": 6.0}]]
    assert flight.latest("loss") == 8 and list(flight.windows(3, 8, rest=True)) == []
    flight.wait()
    assert flight.idle


def test_the_host_does_not_run_away_from_the_device():
    gate, ran = threading.Event(), []

    def slow(x):
        gate.wait(10)
        return x

    step = jax.jit(lambda x: jax.pure_callback(slow, jax.ShapeDtypeStruct((), jnp.float32), x))
    value = jnp.float32(1)

    def send():
        flight = in_flight.InFlight()
        for number in range(1, 6):
            flight.add(number, {"loss": step(value)})
            ran.append(number)

    thread = threading.Thread(target=send)
    thread.start()
    time.sleep(0.3)
    held = len(ran)
    gate.set()
    thread.join(20)
    assert held <= in_flight.STEPS_AHEAD and ran == [1, 2, 3, 4, 5]


# ---------------------------------------------------------------- Transfers
def test_a_transfer_that_nobody_asked_for_stops_the_loop(tmp_path, monkeypatch):
    system = toy()
    loop.fit(system, tmp_path / "clean")
    monkeypatch.setattr(mesh, "spread_batch", lambda _, batch: batch)  # numpy arrays: an implicit transfer
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        loop.fit(system, tmp_path / "implicit")


# ---------------------------------------------------------------- Profile
def test_the_window_of_the_profile_leaves_a_trace(tmp_path):
    loop.fit(toy(profile={"start": 2, "steps": 2}), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    loop.fit(toy(), tmp_path / "without")
    assert not (tmp_path / "without" / "profile").exists()


def test_a_run_that_ends_inside_the_window_ends_the_trace(tmp_path):
    with goodput.Profiler(tmp_path, ProfileConfig(start=0, steps=100)) as profiler:
        profiler.after_step(jnp.ones(2))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


# ---------------------------------------------------------------- Alarms
def test_a_jump_of_the_loss_rings_and_noise_does_not():
    rng = np.random.default_rng(0)
    alarm = alarms.LossAlarm(WatchdogConfig())
    assert [alarm.check(value) for value in 3 + 0.1 * rng.standard_normal(500)] == [None] * 500
    assert "jumped to 6 (median of the last 50: 2.98" in (alarm.check(6.0) or "")
    assert alarm.check(3.0) is None and alarm.check(float("nan")) is None
    assert "jumped" in (alarm.check(6.0) or "")


def test_a_falling_or_constant_loss_does_not_ring():
    alarm = alarms.LossAlarm(WatchdogConfig())
    assert not any(alarm.check(10 * 0.99**step) for step in range(300))
    alarm = alarms.LossAlarm(WatchdogConfig())
    assert not any(alarm.check(value) for value in [1.0] * 60 + [1.001] * 5)
    off = alarms.LossAlarm(WatchdogConfig(spike=0))
    assert not any(off.check(value) for value in [1.0, 1.1] * 30 + [1e9])


def test_a_codebook_that_empties_rings_once_and_again_after_it_recovered():
    alarm = alarms.CollapseAlarm("usage", WatchdogConfig(window=10))
    path = [0.5] * 20 + [0.05] * 30 + [0.5] * 20 + [0.05] * 30
    rung = [index for index, value in enumerate(path) if alarm.check(value)]
    assert len(rung) == 2 and 20 < rung[0] < 32 and 70 < rung[1] < 82
    growing = alarms.CollapseAlarm("usage", WatchdogConfig())
    assert not any(growing.check(0.01 + 0.001 * step) for step in range(500))


def test_an_alarm_is_a_warning_and_a_row(tmp_path, monkeypatch, caplog):
    system = toy(train={"steps": 40}, optimizer={"learning_rate": 0.0}, checkpoint={"every": 100})
    to_arrays, count = system.to_arrays, 0

    def brighten(batch):
        nonlocal count
        count += 1
        arrays = to_arrays(batch)
        return {**arrays, "video": arrays["video"] + 100.0 * (count == 31)}

    system.to_arrays = brighten
    loop.fit(system, tmp_path)
    lines = [record.getMessage() for record in caplog.records if "jumped" in record.getMessage()]
    assert len(lines) == 1 and lines[0].startswith("step 32: the loss jumped to")
    (row,) = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "alarm_loss" in row]
    assert row["step"] == 32 and row["alarm_loss"] > 100


# ---------------------------------------------------------------- Watchdog
def test_a_stalled_step_dumps_all_stacks_once_and_says_who_is_behind(tmp_path, caplog):
    with watchdog.Watchdog(tmp_path, WatchdogConfig(stalled=5, stalled_seconds=0.2)) as dog:
        for step in range(1, 6):
            dog.beat(step)
            time.sleep(0.01)
        time.sleep(1.0)
        dog.beat(6)
        time.sleep(0.05)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and told[0].startswith("step 6 has taken 0.") and "behind is process 0 on" in told[0]
    assert told[1].startswith("step 6 ended after 1.")
    stacks = (tmp_path / "watchdog" / "stacks-0.txt").read_text()
    assert "step 6" in stacks and "test_guards.py" in stacks and stacks.count("Current thread") <= 1


def test_the_processes_that_are_behind_are_named(tmp_path, monkeypatch, caplog):
    reached = {"process 0 on n0": 5, "process 1 on n1": 4, "process 2 on n2": 5}
    monkeypatch.setattr(distributed, "steps", lambda: reached)
    with watchdog.Watchdog(tmp_path, WatchdogConfig(stalled=5, stalled_seconds=0.1)) as dog:
        for step in range(1, 6):
            dog.beat(step)
            time.sleep(0.01)
        time.sleep(0.4)
    assert "behind is process 1 on n1 (step 4); all stacks" in caplog.text


def test_what_is_no_step_is_not_called_stalled(tmp_path, caplog):
    with watchdog.Watchdog(tmp_path, WatchdogConfig(stalled=2, stalled_seconds=0.1)) as dog:
        for step in range(1, 6):
            dog.beat(step)
        dog.rest()
        time.sleep(0.4)
        dog.beat(6)
    assert caplog.text == ""
