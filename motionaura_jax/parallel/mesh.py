"""The mesh of a run, what has to divide over it, and batches spread over its devices."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel.config import AXES, MeshConfig

logger = logging.getLogger(__name__)

BATCH = ("data", "fsdp")
"""The axes over which the clips of a batch are split."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges `devices` (all of them by default) as `config` says; `jax.set_mesh` puts the mesh to use.

    Where devices form several slices (TPU) or machines (GPU), connected more slowly than within, `data` and then `fsdp`
    run across them, so that the other axes stay inside.

    Raises:
      UserError: sizes that do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = tuple(config.sizes(len(devices)).values())
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    outer = across_slices(sizes, slices)
    inner = [size // part for size, part in zip(sizes, outer, strict=True)]
    # `jax.make_mesh` gives an axis of a TPU's torus to one axis of the mesh alone, which rules most meshes out.
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    else:
        arranged = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def across_slices(sizes: Sequence[int], slices: int) -> tuple[int, ...]:
    """Splits `slices` over the axes from the first on; warns where an axis that talks in every layer is cut.

    Raises:
      UserError: the slices cannot be split so.
    """
    outer, left = [], slices
    for size in sizes:
        outer.append(math.gcd(size, left))
        left //= outer[-1]
    if left > 1:
        raise UserError(
            f"config.mesh: {dict(zip(AXES, sizes, strict=True))} cannot be cut into {slices} slices of devices"
        )
    for axis, part in zip(AXES, outer, strict=True):
        if part > 1 and axis not in BATCH:
            logger.warning("mesh axis %s runs across %d slices or machines and will be slow", axis, part)
    return tuple(outer)


def batch_shards(mesh: Any) -> int:
    """Returns into how many parts a batch is split; `mesh` may be abstract, or empty."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH)


def check_batch(sizes: dict[str, int], batch_size: int, accumulation: int = 1) -> None:
    """Raises UserError unless every microbatch of a batch divides over `data` x `fsdp` of `sizes`."""
    unit = accumulation * math.prod(sizes[axis] for axis in BATCH)
    if batch_size % unit:
        below = batch_size // unit * unit
        choices = " or ".join(str(size) for size in (below, below + unit) if size)
        raise UserError(
            f"config.data.batch_size={batch_size}: does not divide into {accumulation} microbatch(es) over "
            f"config.mesh.data x fsdp = {sizes['data']} x {sizes['fsdp']} devices; choose {choices}, or another mesh"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch: clips lead."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def batch_parts(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """Returns (parts, count): this process reads these of `count` equal parts of every batch.

    Processes whose devices hold the same clips, as along `tensor` and `sequence`, read the same.  The parts of a process
    need not lie together: on a TPU neighbors in the mesh are neighbors on the torus, which visits the hosts in turn.
    """
    shards = mesh.devices.reshape(batch_shards(mesh), -1)  # the axes of a batch come first
    own = jax.process_index()
    parts = (part for part, row in enumerate(shards) if any(device.process_index == own for device in row))
    return tuple(parts), len(shards)


def spread_batch(mesh: Mesh, batch: PyTree) -> PyTree:
    """Makes global arrays of a batch of which this process holds `batch_parts`, one after the other."""
    sharding, (parts, count) = batch_sharding(mesh), batch_parts(mesh)

    def spread(leaf: Any) -> jax.Array:
        local = np.asarray(leaf)
        shape = (len(local) // len(parts) * count, *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, shape)

    return jax.tree.map(spread, batch)
