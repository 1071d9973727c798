"""Padding of videos: the border frame repeated in time, zeros in space.

Repeated frames keep the statistics of the first and the last frame, which zeros would pull toward gray;
the causal form is that of CV-VAE (Zhao et al. 2024) and MAGVIT-v2 (Yu et al. 2023), section 3.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from motionaura_jax.ops.dispatch import choose

TEMPORAL = ("replicate", "causal", "valid")


def split_padding(size: int) -> tuple[int, int]:
    """Returns (low, high) for a window of `size` elements, such that stride 1 keeps the length; low <= high."""
    low = (size - 1) // 2
    return low, size - 1 - low


def pad_time(x: Float[Array, "b t h w c"], size: int, *, temporal: str = "replicate") -> Float[Array, "b t2 h w c"]:
    """Pads the time axis for a window of `size` frames.

    Args:
      x: video.
      size: frames in the window.
      temporal: 'replicate' repeats the first and the last frame; 'causal' repeats the first frame only, so that
        no output sees a later frame; 'valid' adds nothing: the caller supplies the frames around.

    Returns:
      The video with t2 = t + size - 1 frames (t for 'valid').

    Raises:
      UserError: unknown `temporal`.
    """
    chosen = choose("temporal", temporal, TEMPORAL)
    if chosen == "valid" or size == 1:
        return x
    low, high = (size - 1, 0) if chosen == "causal" else split_padding(size)
    return jnp.concatenate([x[:, :1]] * low + [x] + [x[:, -1:]] * high, axis=1)


def pad3d(
    x: Float[Array, "b t h w c"], window: Sequence[int], *, temporal: str = "replicate"
) -> Float[Array, "b t2 h2 w2 c"]:
    """Pads for a window of (time, height, width): time as in `pad_time`, zeros in height and width.

    Raises:
      UserError: unknown `temporal`.
    """
    time, height, width = window
    x = pad_time(x, time, temporal=temporal)
    return jnp.pad(x, ((0, 0), (0, 0), split_padding(height), split_padding(width), (0, 0)))
