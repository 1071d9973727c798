"""The speed that a run reports."""

import itertools

import pytest

from motionaura_jax.training import loop
from motionaura_jax.training.monitoring import progress, writers
from tests.training.test_guards import toy


@pytest.fixture
def clock(monkeypatch):
    """Make the clock advance by two seconds per reading."""
    seconds = itertools.count(0.0, 2.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(seconds))


def test_speed_is_that_of_the_steps_since_the_last_report(clock):
    shown = progress.TrainingProgress(total=100, start=0)
    assert shown.report(10, {"loss": 1.0}, clips_per_step=4)["steps_per_second"] == 5.0
    speed = shown.report(11, {"loss": 1.0}, clips_per_step=4)
    assert (speed["steps_per_second"], speed["clips_per_second"]) == (0.5, 2.0)


@pytest.mark.parametrize("paused_at", [20, 21])
def test_a_report_of_a_step_that_was_not_timed_repeats_the_last_speed(clock, paused_at):
    """Logs lag by a step, so the stopwatch may have restarted after the step that they report."""
    shown = progress.TrainingProgress(total=100, start=0)
    shown.report(10, {"loss": 1.0}, clips_per_step=4)
    shown.pause(paused_at)
    assert shown.report(20, {"loss": 1.0}, clips_per_step=4)["steps_per_second"] == 5.0
    assert shown.report(25, {"loss": 1.0}, clips_per_step=4)["steps_per_second"] == (25 - paused_at) / 4.0


def test_a_caller_hears_of_logs_and_evaluations_that_are_in_the_workdir(tmp_path):
    heard = []

    def note(step):
        row = writers.read_metrics(tmp_path / writers.FILE)[-1]
        video = tmp_path / "samples" / f"{step:07d}" / "first.mp4"
        heard.append((step, row["step"], "loss" in row, "eval_clips" in row, video.exists()))

    loop.fit(toy(train={"steps": 3, "log_every": 2}, evaluate={"every": 2, "clips": 2}), tmp_path, notify=note)
    log, evaluation = (True, False, False), (False, True, True)
    assert heard == [(2, 2, *log), (2, 2, *evaluation), (3, 3, *log), (3, 3, *evaluation)]
