"""Settings of the mesh. Imports no jax."""

import dataclasses
import math
from typing import Annotated

from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.core.errors import shown as cut
from motionaura_jax.core.limits import Checked, Limit, between

AXES = ("data", "fsdp", "tensor", "sequence")
"""Names of the mesh axes, ordered from the least communication to communication in every layer."""

MAX_DEVICES = 2**16
Devices = Annotated[int, between(1, MAX_DEVICES)]
Rest = Annotated[
    int,
    Limit(
        f"at least 1 and at most {MAX_DEVICES}, or -1 or 0 for all devices that the other axes leave",
        lambda value: -1 <= value <= MAX_DEVICES,
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Checked):
    """Devices along each axis of the mesh; their product is the number of devices.

    Attributes:
      data: groups that each hold the whole state and take their part of the clips; -1 or 0: all devices that are left.
      fsdp: devices that split parameters, optimizer state and average among them; each takes its part of the clips.
      tensor: devices that split each matrix product among them.
      sequence: devices that split the tokens of a clip among them.
    """

    data: Rest = -1
    fsdp: Devices = 1
    tensor: Devices = 1
    sequence: Devices = 1

    def sizes(self, devices: int) -> dict[str, int]:
        """Return the size of every axis on `devices` devices.

        Raises:
          UserError: the axes do not divide the devices, or leave some without work.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        inner = self.fsdp * self.tensor * self.sequence
        if sizes["data"] < 1:
            sizes["data"] = max(devices // inner, 1)
        if math.prod(sizes.values()) != devices:
            asked = {axis: getattr(self, axis) for axis in AXES if getattr(self, axis) > 1}
            raise UserError(
                f"config.mesh={shown(asked)}: {math.prod(asked.values())} does not divide {devices} device(s) or leaves "
                f"some without work; choose axes with the product {devices}, e.g. --config.mesh.fsdp={devices}"
            )
        return sizes


def parse(text: str, flag: str = "--mesh") -> MeshConfig:
    """Parse "data:2,sequence:4". Other axes get one device, `data` all remaining devices.

    Raises:
      UserError: unknown axis, or a size that is not a number above 0.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        axis, _, size = part.strip().partition(":")
        if axis not in AXES:
            raise UserError(f"{flag}={cut(text)}: {cut(axis)!r} is not a mesh axis{nearest(axis, AXES)}")
        digits = size.isdecimal() and len(size) <= len(str(MAX_DEVICES))
        if axis in sizes or not digits or not 1 <= int(size) <= MAX_DEVICES:
            raise UserError(
                f"{flag}={cut(text)}: write each axis once with its number of devices, from 1 to {MAX_DEVICES}, "
                f"e.g. data:2,sequence:4"
            )
        sizes[axis] = int(size)
    return MeshConfig(**sizes)


def shown(sizes: dict[str, int]) -> str:
    """Format sizes for `parse`, without axes of one device."""
    return ",".join(f"{axis}:{size}" for axis, size in sizes.items() if size > 1) or "data:1"
