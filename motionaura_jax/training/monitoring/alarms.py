"""Alarms on the metrics of a run: a loss that jumps, a codebook that collapses."""

import collections
import math
import statistics
from collections.abc import Mapping

from motionaura_jax.core.recipe import WatchdogConfig

CODEBOOK = ("usage", "perplexity")
_LEAST = 10  # logged steps before anything counts as normal
_NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


class LossAlarm:
    """Alarm for a loss far above the median of the last `window` ones, in robust standard deviations.

    Spikes do not become normal: the median ignores them as long as they are fewer than half of the window.
    """

    def __init__(self, config: WatchdogConfig):
        self._limit = config.spike
        self._past: collections.deque[float] = collections.deque(maxlen=config.window)

    def check(self, loss: float) -> str | None:
        """Take the next loss; return one line if it is a spike."""
        line = None
        if self._limit and len(self._past) >= _LEAST and math.isfinite(loss):
            middle = statistics.median(self._past)
            spread = _NORMAL * statistics.median(abs(value - middle) for value in self._past)
            # The spread of a nearly constant loss is close to zero: require a thousandth of the median.
            if loss > middle + self._limit * max(spread, 1e-3 * abs(middle)):
                line = f"the loss jumped to {loss:.4g} (median of the last {len(self._past)}: {middle:.4g})"
        if math.isfinite(loss):
            self._past.append(loss)
        return line


class CollapseAlarm:
    """Alarm for a codebook measure whose median falls below a share of its best.

    It rings once, and again after the measure has recovered.
    """

    def __init__(self, name: str, config: WatchdogConfig):
        self._name, self._share = name, config.collapse
        self._past: collections.deque[float] = collections.deque(maxlen=config.window)
        self._best, self._rung = 0.0, False

    def check(self, value: float) -> str | None:
        """Take the next value; return one line if the codebook has collapsed."""
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
    """All alarms of a run."""

    def __init__(self, config: WatchdogConfig):
        self._loss = LossAlarm(config)
        self._codebook = {name: CollapseAlarm(name, config) for name in CODEBOOK}

    def check(self, metrics: Mapping[str, float]) -> dict[str, tuple[str, float]]:
        """Return (line, value) of every alarm that `metrics` set off, by metric name."""
        checks = {"loss": self._loss.check, **{name: alarm.check for name, alarm in self._codebook.items()}}
        lines = {name: check(metrics[name]) for name, check in checks.items() if name in metrics}
        return {name: (line, metrics[name]) for name, line in lines.items() if line}
