"""A state as it is now, copied to the memory of the hosts while the loop goes on: what a checkpoint is written from.

Each host holds one more copy of what it writes.  Arrays that lie on several devices in copies are split over these devices
as far as their dimensions divide, so that no part is moved, held or written twice.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, Sharding

from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel import rules


def snapshot(tree: PyTree) -> PyTree:
    """Returns copies of the arrays of `tree` in host memory; starts to copy and does not wait for it.

    The originals may be donated at once: whatever overwrites them comes after the copy.
    """
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, _copy(tuple(map(_on_host, leaves)))(leaves))


@functools.lru_cache(maxsize=4)
def _copy(places: Sequence[Sharding]) -> jax.stages.Wrapped:
    # One program for all: to start one for each array takes the loop longer than to move the bytes.
    return jax.jit(lambda leaves: [jnp.copy(leaf) for leaf in leaves], out_shardings=list(places))


def _on_host(leaf: jax.Array) -> Sharding:
    place = leaf.sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, rules.spread(place.spec, leaf.shape, place.mesh.shape))
    return place.with_memory_kind("pinned_host")
