"""Guard against settings from strangers that describe networks far larger than their weights."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from flax import linen as nn


class TooLarge(Exception):
    """Error for a network with more layers than its weights can fill."""


@contextlib.contextmanager
def at_most(calls: int) -> Iterator[None]:
    """Let the networks inside call at most `calls` methods of their modules, which takes about a millisecond each.

    Raises:
      TooLarge: they call more.
    """
    count = 0

    def counted(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            raise TooLarge
        return method(*args, **kwargs)

    with nn.intercept_methods(counted):
        yield
