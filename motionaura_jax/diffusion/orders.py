"""Orders for revealing a token grid.  Besnier et al. 2025 (Halton-MaskGIT, 2503.17076), section 4."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

_PRIMES = (2, 3, 5, 7)


@functools.cache
def halton_ranks(shape: tuple[int, ...]) -> Int[np.ndarray, "..."]:
    """Return the rank (0 first) of each cell of the grid `shape`, of up to four axes, in Halton order.

    Cells are ranked by the Halton sequence's first visit, so that every prefix covers the grid evenly.  Axes of one cell
    use no base, so an image is ordered as in two dimensions.
    """
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    size = math.prod(shape)
    for doubling in itertools.count(3):
        points = np.arange(1, (size << doubling) + 1)
        cells = np.zeros((len(shape), points.size), np.int64)
        # The longest axis gets the smallest base, whose points are the most even.
        for base, axis in zip(_PRIMES, sorted(axes, key=lambda a: -shape[a]), strict=False):
            cells[axis] = _radical_inverse(points, base) * shape[axis]
        visited, first = np.unique(np.ravel_multi_index(tuple(cells), shape), return_index=True)
        if visited.size == size:
            break
    ranks = np.empty(size, np.int32)
    ranks[visited[np.argsort(first)]] = np.arange(size)
    return ranks.reshape(shape)


def halton_order(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b t h w"]:
    """Return the Halton rank of each cell, shifted around the grid by a random offset per sample."""
    ranks = jnp.asarray(halton_ranks(shape), jnp.float32)

    def one(key: Array) -> Array:
        shift = jax.random.randint(key, (len(shape),), 0, jnp.asarray(shape))
        return jnp.roll(ranks, shift, tuple(range(len(shape))))

    return jax.vmap(one)(keys)


def random_order(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b t h w"]:
    """Return independent uniform numbers: every order is equally likely."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def _radical_inverse(points: Int[np.ndarray, " n"], base: int) -> Float[np.ndarray, " n"]:
    """Reflect the base-`base` digits of `points` about the radix point: 6 = 110 in base 2 becomes 0.011 = 0.375."""
    value, scale = np.zeros(points.size), 1.0
    while points.any():
        scale /= base
        points, digit = np.divmod(points, base)
        value += digit * scale
    return value
