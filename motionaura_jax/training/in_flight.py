"""Steps that were sent to the device and metrics on their way back, without the device ever waiting for the host."""

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

AHEAD = 2
"""Steps that the device has in its queue: enough to hide what the host does, few enough to stop and to time them."""

Numbers = dict[str, float]


class _Row(NamedTuple):
    """Metrics of a step in one array, in the order of their sorted names.

    To fetch one number takes the loop as long as to fetch all, and much longer while another thread holds the interpreter.
    """

    names: tuple[str, ...]
    values: Float[Array, " n"]

    def numbers(self) -> Numbers:
        return dict(zip(self.names, np.asarray(self.values).tolist(), strict=True))


@jax.jit
def _pack(metrics: Mapping[str, Array]) -> Float[Array, " n"]:
    return jnp.stack([jnp.asarray(metrics[name], jnp.float32) for name in sorted(metrics)])


class InFlight:
    """The metrics of the steps since the last log, in order."""

    def __init__(self, rows: Iterable[tuple[int, Mapping[str, float]]] = ()) -> None:
        """Begins with `rows` of (step, metrics) from before a restart."""
        self._rows = collections.deque(
            (int(step), _Row(tuple(row), jnp.array(list(row.values()), jnp.float32))) for step, row in rows
        )
        self._running: collections.deque[_Row] = collections.deque()

    @property
    def idle(self) -> bool:
        """Whether the device has finished all that it was given."""
        return not self._running or self._running[-1].values.is_ready()  # type: ignore[attr-defined]  # absent from stubs

    def add(self, number: int, metrics: Mapping[str, Array]) -> None:
        """Takes the scalars of step `number`, starts to copy them, and waits until no more than `AHEAD` steps are queued."""
        row = _Row(tuple(sorted(metrics)), _pack(dict(metrics)))
        row.values.copy_to_host_async()
        self._rows.append((number, row))
        self._running.append(row)
        while len(self._running) > AHEAD:
            self._running.popleft().values.block_until_ready()

    def wait(self) -> None:
        """Waits until the device has finished."""
        for row in self._running:
            row.values.block_until_ready()

    def latest(self, name: str) -> float:
        """Fetches one metric of the last step."""
        return self._running[-1].numbers()[name]

    def open_window(self) -> list[tuple[int, Numbers]]:
        """Fetches what no window has given yet."""
        return [(number, row.numbers()) for number, row in self._rows]

    def windows(self, every: int, until: int, *, rest: bool) -> Iterator[tuple[int, list[Numbers]]]:
        """Yields (last step, rows) of the stretches that end at a multiple of `every`, up to step `until`.

        With `rest`, also what is left of them up to `until`.
        """
        window: list[_Row] = []
        numbers = [number for number, _ in self._rows if number <= until]
        for number in numbers:
            window.append(self._rows.popleft()[1])
            if number % every == 0 or (rest and number == until):
                yield number, [row.numbers() for row in window]
                window = []
        self._rows.extendleft((number, row) for number, row in zip(reversed(numbers), reversed(window), strict=False))
