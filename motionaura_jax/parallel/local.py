"""Work that a process does alone, shared by its own devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import BATCH, batch_sharding, make_mesh
from motionaura_jax.types import PyTree


def by_rows(function: Callable[[Any, Any], Any], weights: PyTree) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `rows -> function(weights, rows)` for a function that treats every row by itself.

    Each device holds all `weights` and takes its part of the rows, the last of which is repeated until they divide.
    Devices exchange nothing, so that a thread may call this while another one runs a program on the same devices.
    """
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    # Through the host: `weights` may lie on the devices of all processes.
    copies = jax.device_put(jax.tree.map(np.asarray, weights), NamedSharding(mesh, PartitionSpec()))
    # Nothing varies between devices but the rows, which the functions given here do not say of their loops.
    shared = jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(BATCH)),
            out_specs=PartitionSpec(BATCH),
            check_vma=False,
        )
    )

    def call(rows: np.ndarray) -> np.ndarray:
        count = len(rows)
        filled = rows[np.minimum(np.arange(-(-count // mesh.size) * mesh.size), count - 1)]
        with jax.set_mesh(mesh):  # the caller may be within that of all processes
            return np.asarray(shared(copies, jax.device_put(filled, batch_sharding(mesh))))[:count]

    return call
