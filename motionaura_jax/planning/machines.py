"""Devices that a run can be planned for. Imports no jax."""

import dataclasses
import math

from motionaura_jax.core.errors import UserError, nearest

USABLE = 0.92
"""Share of a device's memory that a program can use; drivers, libraries and fragmentation take the rest."""

GIB = 2**30

SIZES = (16, 24, 40, 80, 141)
"""Memory sizes in GiB for which every estimate states whether the run fits."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Kind of device.

    Attributes:
      memory: size in GiB.
      host: chips of a TPU host along each axis; None for other devices. Programs for other devices cannot be compiled
        without the device, so their figures come from the program for a CPU.
    """

    memory: float
    host: tuple[int, ...] | None = None

    @property
    def limit(self) -> float:
        """Return the bytes that a program can use."""
        return USABLE * self.memory * GIB


MACHINES = {
    "cpu": Machine(math.inf),
    "t4": Machine(16),
    "v100": Machine(32),
    "l4": Machine(24),
    "rtx4090": Machine(24),
    "a100-40": Machine(40),
    "a100": Machine(80),
    "h100": Machine(80),
    "h200": Machine(141),
    "v5e": Machine(16, (2, 2)),
    "v6e": Machine(32, (2, 2)),
    "v5p": Machine(95, (2, 2, 1)),
}


def machine(name: str) -> Machine:
    """Return the kind of device called `name`.

    Raises:
      UserError: the name is unknown (suggests the nearest one).
    """
    if name not in MACHINES:
        raise UserError(f"--device={name}: no such device{nearest(name, MACHINES)}")
    return MACHINES[name]


def topology(name: str, chips: int) -> str | None:
    """Return the name of a TPU topology of `chips` chips, e.g. "v5e:4x8"; None for other devices.

    Raises:
      UserError: no topology has this number of chips.
    """
    found = machine(name).host
    if found is None:
        return None
    axes = list(found)
    while math.prod(axes) < chips:
        axes[axes.index(min(axes))] *= 2
    if math.prod(axes) != chips:
        raise UserError(
            f"--mesh: {chips} devices form no {name} topology; choose a power of two, at least {math.prod(found)}"
        )
    return f"{name}:{'x'.join(map(str, sorted(axes)))}"
