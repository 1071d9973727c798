"""Guards against untrusted settings that describe networks far larger than their weights."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from flax import linen as nn

from motionaura_jax.core.errors import UserError

_SMALL = 2**22  # sizes up to this cost nothing before they are compared with the weights
_NO_SIZES = ("loss_chunk", "restart_patience")  # settings of networks that training alone reads; any number will do


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


def check_numbers(values: Any, shapes: Collection[tuple[int, ...]], where: str) -> None:
    """Refuse sizes in a config that are out of all proportion to the weights, before anything of these sizes is built.

    Args:
      values: plain values of the config of a network.
      shapes: shapes of the stored tensors.
      where: file and key of the config, for messages.

    Raises:
      UserError: names the first such number.
    """
    largest = max(_SMALL, 4 * max((size for shape in shapes for size in shape), default=0))
    if isinstance(values, Mapping):
        for key, value in values.items():
            if key not in _NO_SIZES:
                check_numbers(value, shapes, f"{where}.{key}")
    elif isinstance(values, (list, tuple)):
        for value in values:
            check_numbers(value, shapes, where)
    elif isinstance(values, (int, float)) and not isinstance(values, bool) and not abs(values) <= largest:
        raise UserError(
            f"{where}={values:.6g}: out of proportion to the weights, none of which is that large; use config and weights "
            f"of the same model"
        )
