"""Limits of numbers, declared once for settings (`steps: Count = 1000`) and for flags (`cli.number(Count)`)."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from motionaura_jax.core.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Limit:
    """Bound on a number: `holds` tests a value, `words` complete "must be ..."."""

    words: str
    holds: Callable[[float], bool]


def at_least(low: int) -> Limit:
    """Return the limit of finite numbers with only a lower bound."""
    return Limit(f"at least {low}", lambda value: low <= value < math.inf)


Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
Several = Annotated[int, at_least(2)]
Seed = Annotated[int, Limit("at least 0 and below 2^63", lambda value: 0 <= value < 2**63)]
KeySeed = Annotated[int, Limit("at least 0 and below 2^32", lambda value: 0 <= value < 2**32)]
NonNegative = Annotated[float, at_least(0)]
OneOrMore = Annotated[float, at_least(1)]
Positive = Annotated[float, Limit("above 0 and finite", lambda value: 0 < value < math.inf)]
Pixel = Annotated[float, Limit("between -1 and 1", lambda value: -1 <= value <= 1)]
Share = Annotated[float, Limit("between 0 and 1", lambda value: 0 <= value <= 1)]
PositiveShare = Annotated[float, Limit("above 0 and at most 1", lambda value: 0 < value <= 1)]
ShareBelowOne = Annotated[float, Limit("at least 0 and below 1", lambda value: 0 <= value < 1)]


class Checked:
    """Base of settings dataclasses; checks each value against the limits and choices of its annotation.

    Raises:
      UserError: names the first value out of bounds, items of tuples included, as "CLASS.FIELD=VALUE: ...";
        `config.build` replaces the class by the key.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            _check(hint, getattr(self, name), f"{type(self).__name__}.{name}")


def _hints(cls: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _check(hint: Any, value: Any, key: str) -> None:
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is tuple:
        for index, item in enumerate(value):
            _check(arguments[0], item, f"{key}[{index}]")
    elif kind in (types.UnionType, typing.Union) and value is not None:
        _check(arguments[0], value, key)  # settings have no union but `limit | None`
    elif kind is Literal and value not in arguments:
        raise UserError(f"{key}={value!r} is not one of {arguments}{nearest(str(value), map(str, arguments))}")
    elif kind is Annotated and not arguments[1].holds(value):
        raise UserError(f"{key}={value}: must be {arguments[1].words}")
