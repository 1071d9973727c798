"""Batches on the device before the step that needs them."""

import collections
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from motionaura_jax.systems.base import Batch

AHEAD = 2
"""Batches that wait on the device."""


class Prefetch:
    """Iterates over `place(batch)` for every batch of `batches`, `AHEAD` of them prepared in a thread.

    `place` turns a batch of the loader into arrays on the devices.  It must not start a program that several processes
    run together: only the thread of the loop knows their common order.

    An exception of either side is raised where its batch is due.
    """

    def __init__(self, batches: Iterator[Mapping[str, Any]], place: Callable[[Mapping[str, Any]], Batch]):
        self._batches, self._place = batches, place
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pending: collections.deque[Future[Batch]] = collections.deque(self._submit() for _ in range(AHEAD))

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: Any) -> None:
        """Drops what waits, and ends the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Batch:
        batch = self._pending.popleft().result()
        self._pending.append(self._submit())
        return batch

    def _submit(self) -> "Future[Batch]":
        return self._pool.submit(lambda: self._place(next(self._batches)))
