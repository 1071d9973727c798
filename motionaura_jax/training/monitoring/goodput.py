"""Where the wall time of a run goes, over all its starts: the share that moved the weights is its goodput."""

import json
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from motionaura_jax.data.media import write_json
from motionaura_jax.parallel import distributed

FILE = "goodput.json"
KINDS = ("steps", "start", "compile", "data", "checkpoint", "evaluation", "lost")
_COMPILED = "/jax/core/compile/backend_compile_duration"
_REMEMBERED = 64  # checkpoints whose time is known, of which a run may go on from any


class Goodput:
    """Books the wall time of the loop under `KINDS`; `goodput.json` in the workdir carries it to the next start.

    - `steps`: training, including what the host does while the device is busy.
    - `start`: from opening the workdir to the first step.
    - `compile`: steps that had a program compiled, from the call to the result.
    - `data`: the device had nothing to do because no batch was there.
    - `checkpoint`, `evaluation`: the loop waited for them.
    - `lost`: steps that were done and had to be done again, after a kill or a rollback.

    Time between the end of a process and the next start is no part of it.

    Attributes:
      compiled: a program was compiled since the last booking.

    Args:
      workdir: read here, written by `write`.
      clock: seconds.
    """

    def __init__(self, workdir: pathlib.Path, clock: Callable[[], float] = time.perf_counter):
        self._path, self._clock = workdir / FILE, clock
        self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self._saved: dict[int, float] = {}
        self._since, self.compiled, self._thread = clock(), False, threading.get_ident()

    def __enter__(self) -> "Goodput":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    def resume(self, step: int) -> None:
        """Goes on from the checkpoint of `step` (0: from nothing): what earlier starts did beyond it was in vain."""
        try:
            values = json.loads(self._path.read_text("utf-8"))
            self._seconds |= {kind: float(values["seconds"][kind]) for kind in KINDS}
            self._saved = {int(saved): float(seconds) for saved, seconds in values["steps_at_checkpoint"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a first start, or a file that a crash spoiled: a figure to look at is no reason to stop
        self.lose(step)

    def lose(self, step: int) -> None:
        """Counts the steps since the checkpoint of `step` as lost."""
        self._saved = {saved: seconds for saved, seconds in self._saved.items() if saved <= step}
        kept = self._saved.get(step, 0.0)
        self._seconds["lost"] += self._seconds["steps"] - kept
        self._seconds["steps"] = kept

    def book(self, kind: str) -> str:
        """Books the time since the last call under `kind`, or `compile` for `steps` with compilation; returns which."""
        now = self._clock()
        kind = "compile" if kind == "steps" and self.compiled else kind
        self._seconds[kind] += now - self._since
        self._since, self.compiled = now, False
        return kind

    def saved(self, step: int) -> None:
        """Notes that a checkpoint of `step` was begun."""
        kept = list(self._saved.items())[1 - _REMEMBERED :]
        self._saved = {**dict(kept), step: self._seconds["steps"]}

    def shares(self) -> dict[str, float]:
        """`goodput`, and for every other kind `badput_KIND`; they add up to 1."""
        total = max(sum(self._seconds.values()), 1e-9)
        name = {kind: f"badput_{kind}" for kind in KINDS} | {"steps": "goodput"}
        return {name[kind]: seconds / total for kind, seconds in self._seconds.items()}

    def write(self) -> None:
        """Saves the seconds, in process 0.  Raises UserError where the disk is full."""
        if not distributed.is_primary():
            return
        seconds = {kind: round(value, 3) for kind, value in self._seconds.items()}
        write_json(self._path, {**self.shares(), "seconds": seconds, "steps_at_checkpoint": self._saved})

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED and threading.get_ident() == self._thread:
            self.compiled = True
