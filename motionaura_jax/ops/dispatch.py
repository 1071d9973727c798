"""Choice between the implementations of one operation, by name or by device."""

from collections.abc import Sequence

import jax

from motionaura_jax.core.errors import UserError, nearest

_BEFORE_AMPERE = ("Tesla", "V100", "T4", "P100", "GTX", "RTX 20", "TITAN", "Quadro")  # in names of older GPUs


def on_cpu() -> bool:
    """Return True if the program being traced is for CPUs.

    The mesh that is set decides, even if its devices are not on this machine; without a mesh the default backend does.
    """
    return _platform() == "cpu"


def on_gpu() -> bool:
    """Return True if the program being traced is for GPUs, by the same rule as `on_cpu`."""
    return _platform() in ("gpu", "cuda", "rocm")


def _platform() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def on_ampere() -> bool:
    """Return True if the program being traced is for NVIDIA GPUs of the Ampere generation or later.

    These have flash attention. As in `on_cpu`, the mesh decides; without one, the first device of this machine does.
    """
    wanted, local = jax.sharding.get_abstract_mesh().abstract_device, jax.local_devices()[0]
    if wanted is None or wanted.device_kind == local.device_kind:
        capability = getattr(local, "compute_capability", "")  # that of an AMD GPU is no number
        return capability[:1].isdigit() and float(capability) >= 8.0
    return wanted.device_kind.startswith("NVIDIA") and not any(name in wanted.device_kind for name in _BEFORE_AMPERE)


def choose(option: str, value: str, known: Sequence[str], *, auto: str | None = None) -> str:
    """Return `value`, or `auto` for the value 'auto'.

    Args:
      option: name of the argument, for the message.
      value: the choice of the caller.
      known: the valid values.
      auto: the meaning of 'auto'; None if 'auto' is not allowed.

    Raises:
      UserError: `value` is not among `known`.
    """
    if auto is not None and value == "auto":
        return auto
    if value not in known:
        raise UserError(f"{option}: unknown value {value!r}{nearest(value, known)}")
    return value
