"""Sharding constraints on activations: the only hints that networks give the compiler.

Each function returns its argument unchanged if no mesh is set, if the mesh has one device, and inside a `jax.shard_map`
island. A mesh axis that does not divide an array is left out.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array, Float

from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel import rules
from motionaura_jax.parallel.mesh import BATCH, batch_shards


def axis_size(axis: str) -> int:
    """Return the number of devices along an axis of the current mesh; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def split(x: Array, *axes: rules.Axes) -> Array:
    """Split the leading dimensions of `x` over mesh axes, one entry each; the other dimensions stay whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if _nothing_to_split(mesh):
        return x
    entries = []
    for length, entry in zip(x.shape, axes, strict=False):
        kept: list[str] = []
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            if length % (mesh.shape[axis] * math.prod(mesh.shape[name] for name in kept)) == 0:
                kept.append(axis)
        entries.append(tuple(kept) or None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))


def batch(tree: PyTree) -> PyTree:
    """Split the clips, the first axis of every array."""
    return jax.tree.map(lambda x: split(x, BATCH), tree)


def tokens(x: Float[Array, "b s *f"], *features: rules.Axes) -> Float[Array, "b s *f"]:
    """Split clips and tokens; `features` gives the split of the other axes, by default none."""
    return split(x, BATCH, "sequence", *features)


def channels(x: Float[Array, "b s c"]) -> Float[Array, "b s c"]:
    """Split clips, and channels over `sequence` in place of tokens: each device then sees whole sequences."""
    return split(x, BATCH, None, "sequence")


def heads(x: Float[Array, "b s n"], count: int) -> Float[Array, "b s n"]:
    """Split clips, and features between their `count` heads over `tensor` and `sequence`.

    Each device then attends to whole sequences with some of the heads ("Ulysses", Jacobs et al. 2023).
    """
    parts = x.reshape(*x.shape[:2], count, -1)
    return split(parts, BATCH, None, ("tensor", "sequence")).reshape(x.shape)


def whole(tree: PyTree) -> PyTree:
    """Copy arrays to every device, so that every process can read them."""
    return jax.tree.map(split, tree)


def placed(params: PyTree) -> PyTree:
    """Split values computed from parameters by the sharding rules of the parameters."""
    mesh = jax.sharding.get_abstract_mesh()
    if _nothing_to_split(mesh):
        return params
    specs = (place.spec for place in rules.place(params, mesh.shape))
    leaves = map(jax.lax.with_sharding_constraint, jax.tree.leaves(params), specs)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def gathered(params: PyTree, cast: Callable[[rules.Placement], jnp.dtype | None] = lambda place: None) -> PyTree:
    """Gather parameters over the axes of the batch at the place of their use.

    Without this the compiler exchanges activations in some layers. Layers stacked by a scan stay split: the loop gathers
    them one by one.

    Args:
      cast: dtype in which a parameter travels, None for its own. Name only one to which its layer casts it anyway.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if _nothing_to_split(mesh):
        return params
    sizes = {axis: 1 if axis in BATCH else size for axis, size in mesh.shape.items()}

    def gather(leaf: Array, place: rules.Placement, stored: rules.Placement) -> Array:
        if place.stacked:
            return leaf
        if dtype := cast(place):
            # Each device casts its part; without this constraint the compiler may gather first.
            leaf = jax.lax.with_sharding_constraint(leaf.astype(dtype), stored.spec)
        return jax.lax.with_sharding_constraint(leaf, place.spec)

    leaves = map(gather, jax.tree.leaves(params), rules.place(params, sizes), rules.place(params, mesh.shape))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def microbatches(tree: PyTree, count: int) -> PyTree:
    """Cut a batch into `count` microbatches along a new leading axis; no clip changes its device.

    On one device microbatches are consecutive; on several, each takes an equal part of the clips of every device.
    """
    shards = batch_shards(jax.sharding.get_abstract_mesh())

    def cut(x: Array) -> Array:
        parts = x.reshape(shards, count, -1, *x.shape[1:]).swapaxes(0, 1)
        return split(parts.reshape(count, -1, *x.shape[1:]), None, BATCH)

    return jax.tree.map(cut, tree)


def _nothing_to_split(mesh: AbstractMesh) -> bool:
    return math.prod(mesh.axis_sizes) == 1 or AxisType.Manual in mesh.axis_types
