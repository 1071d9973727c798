"""Invertible patches: blocks of pixels as channels, either as they are or as 3-D Haar wavelet packets.

A convolution on patches of 4x4 pixels costs a sixteenth of one on pixels.  Both forms are orthogonal, so the
inverse is exact.  The Haar packet of a block is its Walsh-Hadamard transform: the first channel of each color is proportional
to the block's mean, and smooth video is near zero in all others (the Cosmos tokenizer starts with it).
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from motionaura_jax.ops.upsample import depth_to_space

Kind = Literal["patch", "haar"]


def to_patches(x: Float[Array, "b t h w c"], factors: Sequence[int], kind: Kind = "patch") -> Float[Array, "b t2 h2 w2 rc"]:
    """Move blocks of `factors` (rt, rh, rw) elements into channels; the inverse is `from_patches`.

    Channels are ordered (time, height, width, channel), the channel fastest.  With `kind="haar"`, the orthonormal transform of
    each block takes its place.

    Raises:
      ValueError: the factors do not divide the sides, or a factor of "haar" is not a power of two.
    """
    time, height, width = factors
    if any(side % factor for side, factor in zip(x.shape[1:4], factors, strict=True)):
        raise ValueError(f"patches of {tuple(factors)} do not tile a video of {x.shape[1:4]} (frames, height, width)")
    blocks = rearrange(x, "b (t rt) (h rh) (w rw) c -> b t h w rt rh rw c", rt=time, rh=height, rw=width)
    if kind == "haar":
        blocks = _transformed(blocks, factors)
    return rearrange(blocks, "b t h w rt rh rw c -> b t h w (rt rh rw c)")


def from_patches(y: Float[Array, "b t h w rc"], factors: Sequence[int], kind: Kind = "patch") -> Float[Array, "b t2 h2 w2 c"]:
    """Undo `to_patches`."""
    if kind == "patch":
        return depth_to_space(y, factors)
    time, height, width = factors
    blocks = rearrange(y, "b t h w (rt rh rw c) -> b t h w rt rh rw c", rt=time, rh=height, rw=width)
    blocks = _transformed(blocks, factors)  # symmetric and orthogonal: its own inverse
    return rearrange(blocks, "b t h w rt rh rw c -> b (t rt) (h rh) (w rw) c")


def _transformed(blocks: Array, factors: Sequence[int]) -> Array:
    """Apply the orthonormal Walsh-Hadamard matrix along the three axes of each block."""
    time, height, width = (jnp.asarray(_walsh(factor), blocks.dtype) for factor in factors)
    return jnp.einsum("...ijkc,ai,bj,dk->...abdc", blocks, time, height, width)


@functools.cache
def _walsh(size: int) -> np.ndarray:
    """Return the symmetric, orthogonal matrix (size, size) of entries +-1 / sqrt(size)."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"Haar packets need sides that are powers of two, got {size}")
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron(matrix, [[1.0, 1.0], [1.0, -1.0]])
    return matrix / np.sqrt(size)
