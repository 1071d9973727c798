"""Watchdog for steps that hang: it dumps the stacks of all threads and names the process that is behind."""

import collections
import contextlib
import faulthandler
import logging
import pathlib
import statistics
import sys
import threading
import time
import traceback
from typing import Any

import jax

from motionaura_jax.core.recipe import WatchdogConfig
from motionaura_jax.parallel import distributed

logger = logging.getLogger(__name__)

FOLDER = "watchdog"
_LEAST = 3  # timed steps before any step can count as stalled


class Watchdog:
    """Thread that checks that steps advance.

    A stalled step leaves `watchdog/stacks-PROCESS.txt` and one warning that names the processes that are behind; it is not
    ended.  Compiling, saving and evaluating are not steps: call `rest` before them, and the next `beat` resumes.
    """

    def __init__(self, workdir: pathlib.Path, config: WatchdogConfig):
        self._folder, self._config, self._process = workdir / FOLDER, config, jax.process_index()
        self._durations: collections.deque[float] = collections.deque(maxlen=101)
        self._step, self._began = 0, 0.0
        self._awake, self._told = False, False
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._config.stalled:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, step: int) -> None:
        """Record the end of `step`."""
        now = time.monotonic()
        distributed.at_step(step)
        with self._lock:
            if self._awake:
                self._durations.append(now - self._began)
            if self._told:
                logger.warning("step %d ended after %.1f s", step, now - self._began)
            self._step, self._began, self._awake, self._told = step, now, True, False

    def rest(self) -> None:
        """Expect nothing until the next `beat`."""
        with self._lock:
            self._awake = False

    def _watch(self) -> None:
        # A full disk is not for the watchdog to report: the run itself will.
        with contextlib.suppress(OSError):
            while not self._ended.wait(min(self._config.stalled_seconds / 4, 10.0)):
                with self._lock:
                    step, waited = self._step, time.monotonic() - self._began
                    stalled = self._awake and not self._told and waited > self._limit()
                    self._told |= stalled
                if stalled:
                    self._tell(step, waited)

    def _limit(self) -> float:
        if len(self._durations) < _LEAST:
            return float("inf")
        return max(self._config.stalled * statistics.median(self._durations), self._config.stalled_seconds)

    def _tell(self, step: int, waited: float) -> None:
        path = self._folder / f"stacks-{self._process}.txt"
        self._folder.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} step {step + 1}, {waited:.0f} s\n")
            # The main thread first: `faulthandler` leaves out threads from the 101st on, and the main one is its last.
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            stream.write("Main thread:\n" + "".join(traceback.format_stack(frame)) if frame else "")
            stream.flush()
            faulthandler.dump_traceback(stream, all_threads=True)
        logger.warning(
            "step %d has taken %.1f s, the median is %.2f s; behind is %s; all stacks of this process are in %s",
            *(step + 1, waited, statistics.median(self._durations), _behind(step), path),
        )


def _behind(step: int) -> str:
    """Name the processes whose last finished step is the lowest."""
    steps = distributed.steps() or dict.fromkeys(distributed.names(), step)
    return ", ".join(f"{name} (step {reached})" for name, reached in steps.items() if reached == min(steps.values()))
