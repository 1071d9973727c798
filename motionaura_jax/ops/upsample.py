"""Enlarging a video without arithmetic: sub-pixel rearrangement (Shi et al. 2016) and nearest neighbor."""

from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float


def depth_to_space(x: Float[Array, "b t h w rc"], factors: Sequence[int]) -> Float[Array, "b t2 h2 w2 c"]:
    """Moves blocks of channels into time, height and width.

    Args:
      x: video whose channels are ordered (time, height, width, channel), the channel fastest.
      factors: (rt, rh, rw), the growth of each axis; their product divides the channels.

    Returns:
      The video of shape (b, t rt, h rh, w rw, c).
    """
    time, height, width = factors
    pattern = "b t h w (rt rh rw c) -> b (t rt) (h rh) (w rw) c"
    return rearrange(x, pattern, rt=time, rh=height, rw=width)


def nearest_upsample(x: Float[Array, "b t h w c"], factors: Sequence[int]) -> Float[Array, "b t2 h2 w2 c"]:
    """Repeats every element (rt, rh, rw) times along time, height and width."""
    time, height, width = factors
    b, t, h, w, c = x.shape
    blocks = jnp.broadcast_to(x[:, :, None, :, None, :, None], (b, t, time, h, height, w, width, c))
    return blocks.reshape(b, t * time, h * height, w * width, c)
