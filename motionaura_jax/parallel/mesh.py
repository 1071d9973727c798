"""The mesh of a run, the sizes that must divide over it, and batches spread over its devices."""

import functools
import logging
import math
from collections.abc import Callable, Sequence
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
    """Arrange `devices` (default: all) into the axes of `config`. `jax.set_mesh` puts the mesh to use.

    If the devices form several slices (TPU) or machines (GPU) with slower connections between them, `data` and then
    `fsdp` run across these, and the other axes stay inside.

    Raises:
      UserError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = tuple(config.sizes(len(devices)).values())
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    outer = across_slices(sizes, slices)
    inner = [size // part for size, part in zip(sizes, outer, strict=True)]
    # `jax.make_mesh` never splits an axis of a TPU's torus between two axes of the mesh, which rules out most meshes.
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    else:
        arranged = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def across_slices(sizes: Sequence[int], slices: int) -> tuple[int, ...]:
    """Split `slices` over the axes, first axis first. Warn if this cuts an axis that communicates in every layer.

    Raises:
      UserError: the sizes of the axes do not divide into the slices.
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
    """Return the number of parts of a batch. `mesh` may be abstract or empty."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH)


def check_batch(sizes: dict[str, int], batch_size: int, accumulation: int = 1) -> None:
    """Raise UserError unless every microbatch divides over `data` x `fsdp` of `sizes`."""
    unit = accumulation * math.prod(sizes[axis] for axis in BATCH)
    if batch_size % unit:
        below = batch_size // unit * unit
        choices = " or ".join(str(size) for size in (below, below + unit) if size)
        raise UserError(
            f"config.data.batch_size={batch_size}: does not divide into {accumulation} microbatch(es) over "
            f"config.mesh.data x fsdp = {sizes['data']} x {sizes['fsdp']} devices; choose {choices}, or another mesh"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of every array of a batch: its first axis is split."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def batch_parts(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """Return (parts, count): this process reads `parts` of the `count` equal parts of every batch.

    Processes whose devices hold the same clips, as along `tensor` and `sequence`, read the same parts. The parts of a
    process need not be contiguous: neighbors in a TPU's mesh are neighbors on its torus, which visits the hosts in turn.
    """
    shards = mesh.devices.reshape(batch_shards(mesh), -1)  # the axes of a batch come first
    own = jax.process_index()
    parts = (part for part, row in enumerate(shards) if any(device.process_index == own for device in row))
    return tuple(parts), len(shards)


def spread_batch(mesh: Mesh, batch: PyTree) -> PyTree:
    """Make global arrays from the `batch_parts` of this process, concatenated in order."""
    sharding, (parts, count) = batch_sharding(mesh), batch_parts(mesh)

    def spread(leaf: Any) -> jax.Array:
        local = np.asarray(leaf)
        shape = (len(local) // len(parts) * count, *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, shape)

    return jax.tree.map(spread, batch)


def by_rows(function: Callable[[Any, Any], Any], weights: PyTree) -> Callable[[np.ndarray], np.ndarray]:
    """Return `rows -> function(weights, rows)`, computed on the devices of this process alone.

    `function` must treat every row by itself. Each device holds all `weights` and takes its part of the rows; the last
    row is repeated until they divide. Devices exchange nothing, so a thread may call the result while another thread
    runs a program on the same devices. The same function with weights of the same shapes is compiled once.
    """
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    # Through the host: `weights` may lie on the devices of all processes.
    copies = jax.device_put(jax.tree.map(np.asarray, weights), NamedSharding(mesh, PartitionSpec()))

    def call(rows: np.ndarray) -> np.ndarray:
        count = len(rows)
        filled = rows[np.minimum(np.arange(-(-count // mesh.size) * mesh.size), count - 1)]
        with jax.set_mesh(mesh):  # the caller may be inside the mesh of all processes
            return np.asarray(_shared(function, mesh, copies, jax.device_put(filled, batch_sharding(mesh))))[:count]

    return call


@functools.partial(jax.jit, static_argnames=("function", "mesh"))
def _shared(function: Callable[[Any, Any], Any], mesh: Mesh, weights: PyTree, rows: Any) -> Any:
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(BATCH)),
        out_specs=PartitionSpec(BATCH),
        check_vma=False,  # the loops of these functions do not declare what varies between devices: only the rows
    )(weights, rows)
