"""Limits of numbers and places, declared once for settings (`steps: Count = 1000`) and for flags (`cli.number(Count)`).

Every number has an upper limit far above any use, so that a slip of the keyboard is one line and not a hang. Limits that
depend on the machine are those of `core.memory`.
"""

import bisect
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from motionaura_jax.core.errors import UserError, nearest, shown
from motionaura_jax.core.files import place


@dataclasses.dataclass(frozen=True)
class Limit:
    """Bound on a number: `holds` tests a value, `words` complete "must be ..."."""

    words: str
    holds: Callable[[float], bool]


def between(low: float, high: float) -> Limit:
    """Return the limit of numbers from `low` to `high`."""
    return Limit(f"at least {low} and at most {high}", lambda value: low <= value <= high)


def _above_zero(high: float) -> Limit:
    return Limit(f"above 0 and at most {high:g}", lambda value: 0 < value <= high)


LARGEST = 1e30
"""Largest real number; float32 still holds its products with ordinary values."""
_INT32 = 2**31 - 1
MAX_FRAMES = 2**16
MAX_VIDEOS = 10**5
MAX_CODES = 2**24
MAX_LEVELS = 16
"""Most levels of resolution of a network."""

Count = Annotated[int, between(1, _INT32)]
Natural = Annotated[int, between(0, _INT32)]
Several = Annotated[int, between(2, _INT32)]
Bytes = Annotated[int, between(1, 2**63 - 1)]
Seed = Annotated[int, Limit("at least 0 and below 2^63", lambda value: 0 <= value < 2**63)]
KeySeed = Annotated[int, Limit("at least 0 and below 2^32", lambda value: 0 <= value < 2**32)]
Pixel = Annotated[float, Limit("between -1 and 1", lambda value: -1 <= value <= 1)]

Frames = Annotated[int, between(1, MAX_FRAMES)]
Side = Annotated[int, between(1, 2**14)]  # pixels; no H.264 encoder takes more
Rate = Annotated[float, between(0.01, 1000)]  # frames per second that .mp4 and .gif can hold
Batch = Annotated[int, between(1, 2**16)]
Files = Annotated[int, between(1, 10**6)]
Videos = Annotated[int, between(1, MAX_VIDEOS)]
Steps = Annotated[int, between(1, 10**5)]  # of a sampler
Seconds = Annotated[int, between(1, 10**6)]
Threads = Annotated[int, between(0, 1024)]
Processes = Annotated[int, between(1, 2**20)]

Width = Annotated[int, between(1, 2**20)]  # channels
Depth = Annotated[int, between(1, 1024)]  # layers
Layers = Annotated[int, between(0, 1024)]
Length = Annotated[int, between(1, 2**14)]  # positions of a text
Codes = Annotated[int, between(1, MAX_CODES)]
Ratio = Annotated[float, _above_zero(256)]  # of two widths

NonNegative = Annotated[float, Limit(f"at least 0 and at most {LARGEST:g}", lambda value: 0 <= value <= LARGEST)]
OneOrMore = Annotated[float, Limit(f"at least 1 and at most {LARGEST:g}", lambda value: 1 <= value <= LARGEST)]
Positive = Annotated[float, _above_zero(LARGEST)]
Share = Annotated[float, Limit("between 0 and 1", lambda value: 0 <= value <= 1)]
PositiveShare = Annotated[float, Limit("above 0 and at most 1", lambda value: 0 < value <= 1)]
ShareBelowOne = Annotated[float, Limit("at least 0 and below 1", lambda value: 0 <= value < 1)]

Place = Annotated[str, "place"]
"""Local path, bucket or hub id; a leading `~` becomes the home folder."""


def largest(fits: Callable[[int], bool], below: int) -> int:
    """Return the largest number from 0 to below `below` that fits; all smaller ones must fit as well."""
    return bisect.bisect_left(range(1, below), True, key=lambda value: not fits(value))


class Checked:
    """Base of settings dataclasses; checks each value against its annotation, and replaces `~` in places.

    Raises:
      UserError: names the first value out of bounds, items of tuples included, as "CLASS.FIELD=VALUE: ...";
        `config.build` replaces the class by the key.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if hint is Place:
                object.__setattr__(self, name, place(value))
            else:
                _check(hint, value, f"{type(self).__name__}.{name}")


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
        raise UserError(f"{key}={shown(value)}: must be {arguments[1].words}")
    elif hint is float and not math.isfinite(value):
        raise UserError(f"{key}={value}: must be finite")
    elif hint is int and abs(value) > _INT32:
        raise UserError(f"{key}={shown(value)}: must be at most {_INT32}")
