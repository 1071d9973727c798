"""SIGINT and SIGTERM end a run after a step and a checkpoint, at the same step in all processes."""

import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Notes a signal, so that the run saves before it ends; in a single process a second one ends it at once.

    With several processes, the preemption service of JAX catches SIGTERM in whichever process it comes and makes all agree
    on the step; SIGINT is passed on to it.
    """

    def __init__(self) -> None:
        self._requested = False
        self._together = jax.process_count() > 1

    def __enter__(self) -> "StopSignal":
        caught = {signal.SIGINT: self._pass_on} if self._together else dict.fromkeys(_SIGNALS, self._note)
        self._before = {number: signal.signal(number, handler) for number, handler in caught.items()}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Whether the run ends after `step`; to be asked once after every step, in all processes."""
        return multihost_utils.reached_preemption_sync_point(step) if self._together else self._requested

    def _note(self, number: int, _: Any) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True

    def _pass_on(self, number: int, _: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
