"""Checksums, which checkpoints lack, to verify that arrays were restored as saved; and hashes that identify weights.

The checksum is a sum modulo 2^32 over all elements, computed on the devices that hold them. It is the same on every mesh.
Arrays in host memory are summed with numpy: XLA would compile a program for each of their shapes.
"""

import hashlib
import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from motionaura_jax.core.types import PyTree

_ODD = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)  # 2^32 over the golden ratio, and a prime


def checksum(tree: PyTree) -> int:
    """Compute the checksum of all arrays of a tree, in order and without their names.

    A change of one element always changes the checksum. A swap of two elements, or a change of several, goes unnoticed
    once in 2^32.
    """
    return finish(begin(tree))


def begin(tree: PyTree) -> list[Array | np.uint32]:
    """Start to sum the arrays of a tree on their devices, for `finish`; the tree may be donated at once."""
    sums: list[Array | np.uint32] = []
    for leaf in jax.tree.leaves(tree):
        if _on_host(leaf):
            sums.append(_sum_on_host(np.asarray(leaf)))
            continue
        found = _sum(leaf)
        if jax.default_backend() == "cpu":
            # Each sum needs all virtual devices; many pending sums deadlock.
            found.block_until_ready()
        sums.append(found)
    return sums


def finish(sums: Sequence[Array | np.uint32]) -> int:
    """Wait for the sums that `begin` started and return the checksum."""
    return zlib.crc32(np.asarray(jax.device_get(list(sums)), np.uint32).tobytes())


def digest(tree: PyTree) -> str:
    """Hash all arrays of a tree, in order and without their names, to 16 hex digits that identify the weights."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:16]


def _on_host(leaf: Any) -> bool:
    """Return True for an array that numpy reads without a transfer."""
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and len(leaf.devices()) == 1 and next(iter(leaf.devices())).platform == "cpu"


def _sum_on_host(x: np.ndarray) -> np.uint32:
    """Return what `_sum` returns."""
    x = np.ascontiguousarray(x)
    bits = x if x.dtype == bool else x.view(f"uint{8 * x.dtype.itemsize}")
    words = bits.ravel().astype(np.uint32)
    places = np.arange(words.size, dtype=np.uint32)
    places *= _ODD[0]
    words ^= places
    words *= _ODD[1]
    words ^= words >> np.uint32(15)
    return words.sum(dtype=np.uint32)


@jax.jit
def _sum(x: Array) -> UInt32[Array, ""]:
    # Every step is a bijection of the words at one position: words that differ before it differ after it.
    mixed = (_words(x) ^ (_places(x.shape) * _ODD[0])) * _ODD[1]
    return jnp.sum(mixed ^ (mixed >> np.uint32(15)), dtype=jnp.uint32)


def _words(x: Array) -> UInt32[Array, "..."]:
    """Return the bits of each element as one number."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)


def _places(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Return the index of each element, counted along the last axis first."""
    strides = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
    axes = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(s) for axis, s in enumerate(strides))
    return sum(axes, jnp.zeros(shape, jnp.uint32))
