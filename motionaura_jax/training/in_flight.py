"""Batches on their way to the device and metrics on their way back, so that the device never waits for the host."""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from motionaura_jax.systems.base import Batch

BATCHES_AHEAD = 2
"""Batches that wait on the device."""

STEPS_AHEAD = 2
"""Steps queued on the device: enough to hide the work of the host, few enough to stop and to time them."""

Numbers = dict[str, float]
Window = Sequence[tuple[int, Mapping[str, float]]]
"""(step, metrics) of consecutive steps."""


class Prefetch:
    """Iterator over `place(batch)` for every batch of `batches`; a thread prepares `BATCHES_AHEAD` of them.

    An exception of either side is raised when its batch is due.  Use it as a context manager: leaving it ends the thread.

    Args:
      place: turns a batch of the loader into arrays on the devices.  It must not run a program that spans several
        processes: only the thread of the loop knows their common order.
    """

    def __init__(self, batches: Iterator[Mapping[str, Any]], place: Callable[[Mapping[str, Any]], Batch]):
        self._batches, self._place = batches, place
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pending: collections.deque[Future[Batch]] = collections.deque(
            self._submit() for _ in range(BATCHES_AHEAD)
        )

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Batch:
        batch = self._pending.popleft().result()
        self._pending.append(self._submit())
        return batch

    def _submit(self) -> "Future[Batch]":
        return self._pool.submit(lambda: self._place(next(self._batches)))


class _Row(NamedTuple):
    """Metrics of a step in one array, ordered by name.

    Fetching one number takes the loop as long as fetching all, and much longer while another thread holds the interpreter.
    """

    names: tuple[str, ...]
    values: Float[Array, " n"]

    def numbers(self) -> Numbers:
        return dict(zip(self.names, np.asarray(self.values).tolist(), strict=True))


@jax.jit
def _pack(metrics: Mapping[str, Array]) -> Float[Array, " n"]:
    return jnp.stack([jnp.asarray(metrics[name], jnp.float32) for name in sorted(metrics)])


class InFlight:
    """Metrics of the steps since the last log, in order; most of them are still being computed.

    Args:
      window: (step, metrics) from before a restart.
    """

    def __init__(self, window: Window = ()) -> None:
        self._rows = collections.deque(
            (int(step), _Row(tuple(row), jnp.array(list(row.values()), jnp.float32))) for step, row in window
        )
        self._running: collections.deque[_Row] = collections.deque()

    @property
    def idle(self) -> bool:
        """True if the device has finished every step that was sent to it."""
        return not self._running or self._running[-1].values.is_ready()  # type: ignore[attr-defined]  # absent from stubs

    def add(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Take the scalars of `step`, start copying them, and wait until at most `STEPS_AHEAD` steps are queued."""
        row = _Row(tuple(sorted(metrics)), _pack(dict(metrics)))
        row.values.copy_to_host_async()
        self._rows.append((step, row))
        self._running.append(row)
        while len(self._running) > STEPS_AHEAD:
            self._running.popleft().values.block_until_ready()

    def wait(self) -> None:
        """Wait until the device has finished every step."""
        for row in self._running:
            row.values.block_until_ready()

    def latest(self, name: str) -> float:
        """Fetch one metric of the last step."""
        return self._running[-1].numbers()[name]

    def open_window(self) -> list[tuple[int, Numbers]]:
        """Fetch the metrics that `windows` has not yielded yet."""
        return [(step, row.numbers()) for step, row in self._rows]

    def windows(self, every: int, until: int, *, rest: bool) -> Iterator[tuple[int, list[Numbers]]]:
        """Yield (last step, rows) of each window that ends at a multiple of `every`, up to step `until`.

        With `rest`, also yield the incomplete window that ends at `until`.
        """
        window: list[_Row] = []
        steps = [step for step, _ in self._rows if step <= until]
        for step in steps:
            window.append(self._rows.popleft()[1])
            if step % every == 0 or (rest and step == until):
                yield step, [row.numbers() for row in window]
                window = []
        self._rows.extendleft((step, row) for step, row in zip(reversed(steps), reversed(window), strict=False))
