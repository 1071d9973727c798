"""Wall time of a run: how much of it trained the model, booked over all starts, and a trace of a few steps.

Goodput is the share of the time that moved the weights; badput is the rest, by cause.
"""

import contextlib
import math
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from motionaura_jax.core import files
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import ProfileConfig
from motionaura_jax.data.media import write_json
from motionaura_jax.parallel import distributed

FILE = "goodput.json"
KINDS = ("steps", "start", "compile", "data", "checkpoint", "evaluation", "lost")
PROFILE = "profile"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_REMEMBERED = 64  # checkpoints from which a run may resume and still know its time


class Goodput:
    """Bookkeeper of the wall time of the loop; `goodput.json` in the workdir carries it to the next start.

    Every second is booked under exactly one of `KINDS`:

    - `steps`: training, including host work while the device is busy.
    - `start`: from opening the workdir to the first step, and every rollback.
    - `compile`: steps during which a program was compiled, from the call to the result.
    - `data`: the device was idle because no batch was ready.
    - `checkpoint`, `evaluation`: the loop waited for them.
    - `lost`: steps that had to be repeated after a kill or a rollback.

    Time between the end of one process and the next start does not count.

    Attributes:
      compiled: True if a program was compiled since the last booking.

    Args:
      workdir: folder of `goodput.json`.
      began: reading of `now` when the run began; default: now.
      now: clock in seconds.
    """

    def __init__(self, workdir: pathlib.Path, began: float | None = None, now: Callable[[], float] = time.perf_counter):
        self._path, self._now = workdir / FILE, now
        self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._saved: dict[int, float] = {}
        self._kinds = ["start"]  # innermost last
        self._since = now() if began is None else began
        self.compiled, self._thread = False, threading.get_ident()

    def __enter__(self) -> "Goodput":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    @contextlib.contextmanager
    def clock(self, kind: str, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Book the time of the body under `kind`; bodies nest, and each books its own time.

        If `unless()` is True at the end of the body, its time counts as that of the enclosing body.
        """
        self.mark()
        self._kinds.append(kind)
        try:
            yield
            if unless():
                self._kinds[-1] = self._kinds[-2]
        finally:
            self.mark()
            self._kinds.pop()

    def mark(self) -> None:
        """Book the time since the last booking under the current kind: `compile` for steps that compiled."""
        now, kind = self._now(), self._kinds[-1]
        self._seconds["compile" if kind == "steps" and self.compiled else kind] += now - self._since
        self._since, self.compiled = now, False

    def resume(self, step: int) -> None:
        """Continue the file of earlier starts from the checkpoint of `step` (0: no checkpoint); later steps are lost."""
        # The first start, or a damaged file: a statistic is no reason to stop a run.
        with contextlib.suppress(UserError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            values = files.read_json(self._path, remedy="delete it")
            known = {kind: float(values["seconds"][kind]) for kind in KINDS}
            saved = {int(number): float(seconds) for number, seconds in values["steps_at_checkpoint"].items()}
            if all(0 <= seconds < math.inf for seconds in (*known.values(), *saved.values())):
                self._seconds, self._saved = known, saved
        self.lose(step)

    def lose(self, step: int) -> None:
        """Count the steps since the checkpoint of `step` as lost."""
        self._saved = {saved: seconds for saved, seconds in self._saved.items() if saved <= step}
        kept = self._saved.get(step, 0.0)
        self._seconds["lost"] += self._seconds["steps"] - kept
        self._seconds["steps"] = kept

    def saved(self, step: int) -> None:
        """Record that a checkpoint of `step` was started."""
        kept = list(self._saved.items())[1 - _REMEMBERED :]
        self._saved = {**dict(kept), step: self._seconds["steps"]}

    def shares(self) -> dict[str, float]:
        """Return `goodput`, and `badput_KIND` for every other kind; they add up to 1."""
        total = max(sum(self._seconds.values()), 1e-9)
        name = {kind: f"badput_{kind}" for kind in KINDS} | {"steps": "goodput"}
        return {name[kind]: seconds / total for kind, seconds in self._seconds.items()}

    def write(self) -> None:
        """Save the seconds; process 0 writes.

        Raises:
          UserError: a full disk.
        """
        if not distributed.is_primary():
            return
        seconds = {kind: round(value, 3) for kind, value in self._seconds.items()}
        write_json(self._path, {**self.shares(), "seconds": seconds, "steps_at_checkpoint": self._saved})

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        # Other threads (orbax, prefetch) compile without making the loop wait.
        if event == _COMPILED and threading.get_ident() == self._thread:
            self.compiled = True


class Profiler:
    """Trace of the steps `config.start` + 1 to `config.start` + `config.steps` of this process, in `workdir/profile`.

    TensorBoard and Perfetto read it.  A run that ends early ends the trace.
    """

    def __init__(self, workdir: pathlib.Path, config: ProfileConfig):
        self._folder, self._config = workdir / PROFILE, config
        self._done, self._tracing = 0, False

    def __enter__(self) -> "Profiler":
        self._start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()

    def after_step(self, metrics: Any) -> None:
        """Count a step; start or stop the trace when it is due.

        Args:
          metrics: arrays that the step computes; the trace ends when the device has finished them.
        """
        self._done += 1
        if self._tracing and self._done == self._config.start + self._config.steps:
            jax.block_until_ready(metrics)
            self._stop()
        self._start()

    def _start(self) -> None:
        if self._config.steps and self._done == self._config.start:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
