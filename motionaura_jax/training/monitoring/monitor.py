"""Everything that runs alongside the steps of a run, behind one object."""

import contextlib
import logging
import os
import pathlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils
from jaxtyping import Array

from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel import distributed
from motionaura_jax.systems.base import Batch, System
from motionaura_jax.training.data import TrainingData
from motionaura_jax.training.in_flight import InFlight, Numbers, Window
from motionaura_jax.training.monitoring.alarms import Alarms
from motionaura_jax.training.monitoring.flops import ModelFlops
from motionaura_jax.training.monitoring.goodput import Goodput, Profiler
from motionaura_jax.training.monitoring.progress import TrainingProgress
from motionaura_jax.training.monitoring.watchdog import Watchdog
from motionaura_jax.training.monitoring.writers import MetricWriter
from motionaura_jax.training.state import TrainState

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Notify = Callable[[int], object]
"""Takes a step whose metrics, and videos of an evaluation, are in the workdir.  It must not raise."""


class Monitor:
    """Observer of a run: metrics, progress, goodput, profile, watchdog, alarms and stop signals.

    It never changes the state.  Use it as a context manager: leaving it closes every part.

    Args:
      state, frozen: arguments of the training step, or their shapes.
      window: metrics of steps since the last log of the run that is resumed.
      began: `time.perf_counter()` when the run began.
      notify: called in the first process whenever a log or an evaluation is in the workdir.
    """

    def __init__(
        self,
        system: System,
        workdir: pathlib.Path,
        data: TrainingData,
        state: TrainState,
        frozen: PyTree,
        *,
        window: Window = (),
        began: float | None = None,
        notify: Notify | None = None,
    ):
        recipe = system.recipe
        self._workdir, self._data, self._step = workdir, data, int(state.step)
        self._log_every = recipe.train.log_every
        self._notify: Notify = notify if notify and distributed.is_primary() else lambda _: None
        self._metrics = InFlight(window)
        self._goodput = Goodput(workdir, began)
        self._goodput.resume(self._step)
        self._stop = StopSignal()
        self._bar = TrainingProgress(recipe.train.steps, self._step)
        self._watchdog = Watchdog(workdir, recipe.watchdog)
        self._profiler = Profiler(workdir, recipe.profile)
        self._alarms = Alarms(recipe.watchdog)
        self._flops = ModelFlops(system, state, frozen)
        self._writer = MetricWriter(workdir, self._step)

    def __enter__(self) -> "Monitor":
        with contextlib.ExitStack() as opened:
            opened.callback(lambda: self._writer.close())  # looked up late: a rollback opens another one
            for part in (self._goodput, self._stop, self._bar, self._watchdog, self._profiler):
                opened.enter_context(part)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    # ---------------------------------------------------------------- Time
    @contextlib.contextmanager
    def clock(self, kind: str) -> Iterator[None]:
        """Book the wall time of the body under one of `goodput.KINDS`.

        Every kind but `data` interrupts the steps: the watchdog sleeps until the next step, and the body does not count
        towards the reported speed.  Waiting for a batch costs goodput only if the device has run out of steps.
        """
        if kind == "data":
            with self._goodput.clock(kind, unless=lambda: not self._metrics.idle):
                yield
            return
        self._pause()
        try:
            with self._goodput.clock(kind):
                yield
        finally:
            self._pause()

    def _pause(self) -> None:
        self._bar.pause(self._step)
        self._watchdog.rest()

    # ---------------------------------------------------------------- Steps
    def after_step(self, step: int, batch: Batch, metrics: Mapping[str, Array]) -> bool:
        """Record a step that was sent to the device; return True if the run has to stop after it.

        Blocks while the device has enough steps queued.  Call it once after every step, in all processes.
        """
        self._step = step
        self._flops.add(batch)
        self._metrics.add(step, metrics)
        self._profiler.after_step(metrics)
        self._watchdog.beat(step)
        if self._goodput.compiled:
            # The first execution of a new program counts as compiling and not towards the speed.
            self._metrics.wait()
            self._pause()
        self._goodput.mark()
        return self._stop.after(step)

    @property
    def finite(self) -> bool:
        """True if loss and gradient of the last step were finite; waits for that step."""
        return not self._metrics.latest("skipped")

    def open_window(self) -> Window:
        """Fetch the (step, metrics) that no log has covered yet, for a checkpoint."""
        return self._metrics.open_window()

    # ---------------------------------------------------------------- Log
    def due(self, until: int, *, rest: bool) -> Iterator[tuple[int, Sequence[Numbers]]]:
        """Yield (last step, metrics of its steps) for each log that is due up to step `until`; with `rest`, all metrics."""
        return self._metrics.windows(self._log_every, until, rest=rest)

    def log(self, step: int, rows: Sequence[Numbers]) -> dict[str, float]:
        """Average and log the metrics of the steps up to `step`; raise alarms.

        Returns:
          `step`, and the mean `loss` and `goodput` so far.
        """
        common = set.intersection(*map(set, rows))  # a run resumed with other settings may measure fewer metrics
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[-1] if name in common}
        means["skipped"] = rows[-1]["skipped"]
        speed = self._bar.report(step, means, self._data.clips_per_step)
        speed |= self._flops.rates(speed["steps_per_second"]) | self._goodput.shares()
        self._writer.scalars(step, {**means, **speed, "rejected_files": self._data.rejected_count})
        self._goodput.write()
        for row in rows:
            for name, (line, value) in self._alarms.check(row).items():
                logger.warning("step %d: %s", step, line)
                self._writer.scalars(step, {f"alarm_{name}": value})
        self._notify(step)
        return {"step": step, "loss": means["loss"], "goodput": speed["goodput"]}

    def evaluated(self, step: int, metrics: Mapping[str, float], sheet: pathlib.Path | None) -> None:
        """Log held-out metrics and, if there is one, the contact sheet in the image file `sheet`."""
        self._writer.scalars(step, metrics)
        self.note(f"step {step}  " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        if sheet:
            self._writer.picture(step, "held out", sheet)
        self._notify(step)

    def note(self, text: str) -> None:
        """Print one line above the progress bar, in the first process."""
        self._bar.note(text)

    # ---------------------------------------------------------------- Checkpoints
    def saved(self, step: int) -> None:
        """Record that a checkpoint of `step` was started: a rerun will continue the log from there."""
        self._goodput.saved(step)
        self._goodput.mark()  # the file should include the time of this save
        self._goodput.write()
        self._writer.flush()

    def rolled_back(self, step: int, count: int, window: Window) -> None:
        """Continue from the checkpoint of `step`, after the `count`-th rollback in a row."""
        self._step, self._metrics = step, InFlight(window)
        self._goodput.lose(step)
        self._writer.close()
        self._writer = MetricWriter(self._workdir, step)
        self._writer.scalars(step, {"alarm_rollback": count})


class StopSignal:
    """Handler of SIGINT and SIGTERM: the run saves and ends after a step, the same one in all processes.

    In a single process, a second signal ends it at once.  With several processes, JAX's preemption service catches SIGTERM
    in any of them and lets all agree on the step; SIGINT is forwarded to it.
    """

    def __init__(self) -> None:
        self._requested = False
        self._together = jax.process_count() > 1

    def __enter__(self) -> "StopSignal":
        caught = {signal.SIGINT: self._forward} if self._together else dict.fromkeys(_SIGNALS, self._note)
        self._before = {number: signal.signal(number, handler) for number, handler in caught.items()}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Return True if the run has to end after `step`; call it once after every step, in all processes."""
        return multihost_utils.reached_preemption_sync_point(step) if self._together else self._requested

    def _note(self, number: int, _: Any) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True

    def _forward(self, number: int, _: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
