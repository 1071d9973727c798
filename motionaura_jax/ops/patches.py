"""Invertible patches: blocks of pixels as channels, either as they are or as 3-D Haar wavelet packets.

A convolution on patches of 4x4 pixels costs a sixteenth of the same convolution on pixels.  Both kinds are orthogonal maps, so
their inverses are exact.  A Haar wavelet transform replaces pairs of neighbors by (sum, difference) / sqrt(2); a packet repeats
this on all of its outputs.  For blocks whose sides are powers of two, that is a Walsh-Hadamard transform along each axis.  The
first channel of each color is then proportional to the block's mean, and smooth video is near zero in all others.  The Cosmos
tokenizer (Agarwal et al. 2025, section 4) starts with such packets.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float
from scipy import linalg

from motionaura_jax.ops.upsample import depth_to_space

Kind = Literal["patch", "haar"]


def to_patches(
    x: Float[Array, "b t h w c"], factors: Sequence[int], kind: Kind = "patch", *, causal: bool = False
) -> Float[Array, "b t2 h2 w2 rc"]:
    """Move blocks of pixels into channels; `from_patches` is the inverse.

    Args:
      x: video, fp32 or bf16.
      factors: (rt, rh, rw), the frames, rows and columns of a block.
      kind: "patch" leaves the pixels of a block as they are; "haar" replaces them by their Haar packet, computed in fp32.
      causal: take 1 + k rt frames; the first patch holds rt copies of the first frame.

    Returns:
      The patches in the dtype of `x`, with channels ordered (time, height, width, channel), the channel fastest.

    Raises:
      ValueError: the factors do not divide the sides, or a factor of "haar" is not a power of two.
    """
    time, height, width = factors
    if causal:
        x = jnp.concatenate([x[:, :1]] * (time - 1) + [x], axis=1)
    if any(side % factor for side, factor in zip(x.shape[1:4], factors, strict=True)):
        size = (x.shape[1] - (time - 1 if causal else 0), *x.shape[2:4])
        frames = "1 + k * " if causal else "k * "
        raise ValueError(
            f"video of {size} (frames, height, width): patches need {frames}{time}, k * {height}, k * {width}"
        )
    blocks = rearrange(x, "b (t rt) (h rh) (w rw) c -> b t h w rt rh rw c", rt=time, rh=height, rw=width)
    if kind == "haar":
        blocks = _transformed(blocks)
    return rearrange(blocks, "b t h w rt rh rw c -> b t h w (rt rh rw c)")


def from_patches(
    y: Float[Array, "b t h w rc"], factors: Sequence[int], kind: Kind = "patch", *, causal: bool = False
) -> Float[Array, "b t2 h2 w2 c"]:
    """Undo `to_patches`, with the same arguments; causal: drop the copies of the first frame."""
    time, height, width = factors
    if kind == "haar":
        blocks = rearrange(y, "b t h w (rt rh rw c) -> b t h w rt rh rw c", rt=time, rh=height, rw=width)
        # The transform is symmetric and orthogonal, so it is its own inverse.
        y = _transformed(blocks).reshape(y.shape)
    video = depth_to_space(y, factors)
    return video[:, time - 1 :] if causal else video


def _transformed(blocks: Float[Array, "b t h w rt rh rw c"]) -> Float[Array, "b t h w rt rh rw c"]:
    """Apply the orthonormal Walsh-Hadamard matrix along the three axes of each block.

    This is one product with the matrix of the whole block: jaxlib 0.11.2 takes minutes to compile one per axis.
    """
    *grid, time, height, width, channels = blocks.shape
    pixels = blocks.astype(jnp.float32).reshape(*grid, time * height * width, channels)
    # The highest precision: the inverse must stay exact where other products are rounded to bf16 or tf32.
    y = jnp.einsum("...ic,ij->...jc", pixels, _walsh(time, height, width), precision="highest")
    return y.reshape(blocks.shape).astype(blocks.dtype)


@functools.cache
def _walsh(*sides: int) -> np.ndarray:
    """Return the symmetric, orthogonal matrix (n, n) of blocks of n pixels; its entries are +-1 / sqrt(n)."""
    for side in sides:
        if side < 1 or side & (side - 1):
            raise ValueError(f"Haar packets need sides that are powers of two, got {side}")
    size = math.prod(sides)
    return (linalg.hadamard(size) / np.sqrt(size)).astype(np.float32)
