"""Work that a process does alone, shared by its own devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import BATCH, batch_sharding, make_mesh


def by_rows(function: Callable[[Any, Any], Any], weights: PyTree) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `rows -> function(weights, rows)` for a function that treats every row by itself.

    Each device holds all `weights` and takes its part of the rows, the last of which is repeated until they divide.
    Devices exchange nothing, so that a thread may call this while another one runs a program on the same devices.
    The same function with weights of the same shapes is compiled once.
    """
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    # Through the host: `weights` may lie on the devices of all processes.
    copies = jax.device_put(jax.tree.map(np.asarray, weights), NamedSharding(mesh, PartitionSpec()))

    def call(rows: np.ndarray) -> np.ndarray:
        count = len(rows)
        filled = rows[np.minimum(np.arange(-(-count // mesh.size) * mesh.size), count - 1)]
        with jax.set_mesh(mesh):  # the caller may be within that of all processes
            return np.asarray(_shared(function, mesh, copies, jax.device_put(filled, batch_sharding(mesh))))[:count]

    return call


@functools.partial(jax.jit, static_argnames=("function", "mesh"))
def _shared(function: Callable[[Any, Any], Any], mesh: Mesh, weights: PyTree, rows: Any) -> Any:
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(BATCH)),
        out_specs=PartitionSpec(BATCH),
        check_vma=False,  # the loops of these functions do not say what varies between devices: nothing but the rows
    )(weights, rows)
