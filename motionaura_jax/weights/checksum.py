"""Numbers that tell whether arrays came back as they were saved, which checkpoints lack, and which weights they are.

The checksum is a sum modulo 2^32 over all elements, computed where they lie, so that it is the same on every mesh.
"""

import hashlib
import math
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from motionaura_jax.core.types import PyTree

_ODD = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)  # 2^32 over the golden ratio, and a prime


def checksum(tree: PyTree) -> int:
    """Returns the checksum of all arrays of a tree, in their order, with names left out.

    One element that changes always changes it, two that swap places or more that change all but once in 2^32.
    """
    return finish(begin(tree))


def begin(tree: PyTree) -> list[Array]:
    """Starts to sum the arrays of a tree on their devices, for `finish`; the tree may be donated at once."""
    sums = []
    for leaf in jax.tree.leaves(tree):
        sums.append(_sum(leaf))
        if jax.default_backend() == "cpu":
            # Virtual devices come to a stop with many sums on the way that each need all of them.
            sums[-1].block_until_ready()
    return sums


def finish(sums: Sequence[Array]) -> int:
    """Waits for what `begin` started, and returns the checksum."""
    return zlib.crc32(np.asarray(jax.device_get(list(sums)), np.uint32).tobytes())


def digest(tree: PyTree) -> str:
    """Returns a hash of all arrays of a tree, in their order, with names left out: 16 hex digits that identify weights."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


@jax.jit
def _sum(x: Array) -> UInt32[Array, ""]:
    # Every step maps the words of one place one to one: what differs there before, differs after.
    mixed = (_words(x) ^ (_places(x.shape) * _ODD[0])) * _ODD[1]
    return jnp.sum(mixed ^ (mixed >> np.uint32(15)), dtype=jnp.uint32)


def _words(x: Array) -> UInt32[Array, "..."]:
    """The bits of each element as one number."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)


def _places(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """The number of each element, counted along the last axis first."""
    strides = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
    axes = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(s) for axis, s in enumerate(strides))
    return sum(axes, jnp.zeros(shape, jnp.uint32))
