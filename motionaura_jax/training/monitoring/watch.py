"""All that looks at a run while it goes on, opened and closed together."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

from motionaura_jax.systems.base import System
from motionaura_jax.training.checkpoint import Checkpoints
from motionaura_jax.training.data import TrainingData
from motionaura_jax.training.monitoring.alarms import Alarms
from motionaura_jax.training.monitoring.flops import ModelFlops
from motionaura_jax.training.monitoring.profile import Profiler
from motionaura_jax.training.monitoring.progress import TrainingProgress
from motionaura_jax.training.monitoring.watchdog import Watchdog
from motionaura_jax.training.recovery import Recovery
from motionaura_jax.training.signals import StopSignal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """See the class of each."""

    stop: StopSignal
    bar: TrainingProgress
    watchdog: Watchdog
    profiler: Profiler
    recovery: Recovery
    alarms: Alarms
    flops: ModelFlops

    def pause(self, step: int) -> None:
        """Takes what follows `step` out of the speed, and out of what may stall."""
        self.bar.pause(step)
        self.watchdog.rest()


@contextlib.contextmanager
def watching(
    system: System, workdir: pathlib.Path, data: TrainingData, checkpoints: Checkpoints, first: int
) -> Iterator[Watch]:
    """Watches a run that begins after step `first`, for the time of the body."""
    recipe = system.recipe
    with (
        StopSignal() as stop,
        TrainingProgress(recipe.train.steps, first) as bar,
        Watchdog(workdir, recipe.watchdog) as watchdog,
        Profiler(workdir, recipe.profile) as profiler,
    ):
        yield Watch(
            stop=stop,
            bar=bar,
            watchdog=watchdog,
            profiler=profiler,
            recovery=Recovery(workdir, recipe, data, checkpoints),
            alarms=Alarms(recipe.watchdog),
            flops=ModelFlops(system),
        )
