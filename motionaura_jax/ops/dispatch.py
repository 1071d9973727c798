"""Choice between the implementations of one operation."""

from collections.abc import Sequence

import jax

from motionaura_jax.core.errors import UserError, nearest


def on_cpu() -> bool:
    """Whether what is traced now is meant for CPUs: those of the mesh that is set, which need not be at hand, or by default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.default_backend() if device is None else device.platform) == "cpu"


def choose(option: str, value: str, known: Sequence[str], *, auto: str | None = None) -> str:
    """Returns `value`, or `auto` for the value 'auto'.

    Args:
      option: name of the argument, for the message.
      value: what the caller asked for.
      known: the valid values.
      auto: what 'auto' stands for here; None where 'auto' is not a value.

    Raises:
      UserError: `value` is not among `known`.
    """
    if auto is not None and value == "auto":
        return auto
    if value not in known:
        raise UserError(f"{option}: unknown value {value!r}{nearest(value, known)}")
    return value
