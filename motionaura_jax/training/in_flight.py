"""Steps that were sent to the device and metrics on their way back, without the device ever waiting for the host."""

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

AHEAD = 2
"""Steps that the device has in its queue: enough to hide what the host does, few enough to stop and to time them."""

Row = Mapping[str, Any]


class InFlight:
    """The metrics of the steps since the last log, in order."""

    def __init__(self, rows: Iterable[tuple[int, Row]] = ()) -> None:
        """Begins with `rows` of (step, metrics) from before a restart."""
        self._rows: collections.deque[tuple[int, Row]] = collections.deque((int(step), row) for step, row in rows)
        self._running: collections.deque[Row] = collections.deque()

    @property
    def idle(self) -> bool:
        """Whether the device has finished all that it was given."""
        return not self._running or jax.tree.leaves(self._running[-1])[0].is_ready()

    def add(self, number: int, metrics: Row) -> None:
        """Takes the metrics of step `number`, starts to copy them, and waits until no more than `AHEAD` steps are queued."""
        for leaf in jax.tree.leaves(metrics):
            leaf.copy_to_host_async()
        self._rows.append((number, metrics))
        self._running.append(metrics)
        while len(self._running) > AHEAD:
            jax.block_until_ready(self._running.popleft())

    def wait(self) -> None:
        """Waits until the device has finished."""
        jax.block_until_ready(list(self._running))

    def latest(self, name: str) -> float:
        """Fetches one metric of the last step."""
        return float(jax.device_get(self._running[-1][name]))

    def open_window(self) -> list[tuple[int, dict[str, float]]]:
        """Fetches what no window has given yet."""
        return [(number, _numbers(row)) for number, row in jax.device_get(list(self._rows))]

    def windows(self, every: int, until: int, *, rest: bool) -> Iterator[tuple[int, list[dict[str, float]]]]:
        """Yields (last step, rows) of the stretches that end at a multiple of `every`, up to step `until`.

        With `rest`, also what is left of them up to `until`.
        """
        window: list[Row] = []
        numbers = [number for number, _ in self._rows if number <= until]
        for number in numbers:
            window.append(self._rows.popleft()[1])
            if number % every == 0 or (rest and number == until):
                yield number, [_numbers(row) for row in jax.device_get(window)]
                window = []
        self._rows.extendleft((number, row) for number, row in zip(reversed(numbers), reversed(window), strict=False))


def _numbers(row: Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items()}
