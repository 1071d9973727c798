"""A trace of a few steps, for the profiler of TensorBoard or for Perfetto."""

import pathlib
from typing import Any

import jax

from motionaura_jax.core.recipe import ProfileConfig

FOLDER = "profile"


class Profiler:
    """Traces the steps `config.start` + 1, ..., `config.start` + `config.steps` of this process into `workdir/profile`."""

    def __init__(self, workdir: pathlib.Path, config: ProfileConfig):
        self._folder, self._config = workdir / FOLDER, config
        self._done, self._tracing = 0, False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()

    def before_step(self) -> None:
        """Opens the window."""
        if self._config.steps and self._done == self._config.start:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after_step(self, metrics: Any) -> None:
        """Closes the window once the device has finished its last step, which made `metrics`."""
        self._done += 1
        if self._tracing and self._done == self._config.start + self._config.steps:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
