"""What a run warns of by its numbers: a loss that jumps, a codebook that empties."""

import collections
import math
import statistics
from collections.abc import Mapping

from motionaura_jax.core.recipe import WatchdogConfig

CODEBOOK = ("usage", "perplexity")
_LEAST = 10  # logged steps before anything counts as normal
_NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


class LossAlarm:
    """Rings for a loss far above the median of the last `window` ones, measured in robust standard deviations.

    A spike does not become normal: it enters the window only with those that follow, and a median stands half of them.
    """

    def __init__(self, config: WatchdogConfig):
        self._limit = config.spike
        self._past: collections.deque[float] = collections.deque(maxlen=config.window)

    def check(self, loss: float) -> str | None:
        """Takes the next loss and returns one line where it is a spike."""
        line = None
        if self._limit and len(self._past) >= _LEAST and math.isfinite(loss):
            middle = statistics.median(self._past)
            spread = _NORMAL * statistics.median(abs(value - middle) for value in self._past)
            # A loss that hardly moves has no spread to speak of: a thousandth of it never alarms.
            if loss > middle + self._limit * max(spread, 1e-3 * abs(middle)):
                line = f"the loss jumped to {loss:.4g} (median of the last {len(self._past)}: {middle:.4g})"
        if math.isfinite(loss):
            self._past.append(loss)
        return line


class CollapseAlarm:
    """Rings once when a measure of the codebook stays, in the median, below a share of its best; again after it recovered."""

    def __init__(self, name: str, config: WatchdogConfig):
        self._name, self._share = name, config.collapse
        self._past: collections.deque[float] = collections.deque(maxlen=config.window)
        self._best, self._rung = 0.0, False

    def check(self, value: float) -> str | None:
        """Takes the next value and returns one line where the codebook has collapsed."""
        self._past.append(value)
        if len(self._past) < _LEAST:
            return None
        middle = statistics.median(self._past)
        self._best = max(self._best, middle)
        fallen = middle < self._share * self._best
        line = f"the codebook collapses: {self._name} fell to {middle:.4g} from {self._best:.4g}"
        rings, self._rung = fallen and not self._rung, fallen
        return line if rings else None


class Alarms:
    """All of them."""

    def __init__(self, config: WatchdogConfig):
        self._loss = LossAlarm(config)
        self._codebook = {name: CollapseAlarm(name, config) for name in CODEBOOK}

    def check(self, metrics: Mapping[str, float]) -> dict[str, tuple[str, float]]:
        """Returns, by the name of the metric, the line and the value of every alarm that `metrics` set off."""
        checks = {"loss": self._loss.check, **{name: alarm.check for name, alarm in self._codebook.items()}}
        lines = {name: check(metrics[name]) for name, check in checks.items() if name in metrics}
        return {name: (line, metrics[name]) for name, line in lines.items() if line}
