"""Enlarging videos: sub-pixel rearrangement (Shi et al. 2016), nearest neighbor, and transposed convolution.

The transposed convolution 1x4x4 with stride (1, 2, 2) is the decoder's last layer (MotionAura, appendix B.1).  In its
polyphase form each of the four (row, column) parities of the output reads two of the four kernel rows and columns.  A 3x3
convolution to four times the channels, with zeros in the unused taps, gives all four parities at once, and depth-to-space
interleaves them.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

from motionaura_jax.ops.conv3d import frame_conv
from motionaura_jax.ops.dispatch import choose

IMPLEMENTATIONS = ("polyphase", "lax")

_TAPS = ((3, 1, 4), (4, 2, 0))
"""[parity][offset]: the kernel row that the input row at offset -1, 0, +1 meets; row 4 is the zero row."""


def depth_to_space(x: Float[Array, "b t h w rc"], factors: Sequence[int]) -> Float[Array, "b t2 h2 w2 c"]:
    """Move blocks of channels into time, height and width.

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
    """Repeat every element (rt, rh, rw) times along time, height and width."""
    time, height, width = factors
    b, t, h, w, c = x.shape
    blocks = jnp.broadcast_to(x[:, :, None, :, None, :, None], (b, t, time, h, height, w, width, c))
    return blocks.reshape(b, t * time, h * height, w * width, c)


def conv_transpose_1x4x4(
    x: Float[Array, "b t h w ci"], kernel: Float[Array, "1 4 4 ci co"], *, impl: str = "auto"
) -> Float[Array, "b t h2 w2 co"]:
    """Double height and width: y[2h + j - 1, 2w + k - 1] += x[h, w] kernel[0, j, k].

    Equal to PyTorch's `ConvTranspose3d(ci, co, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))` with
    `kernel = weight.permute(2, 3, 4, 0, 1)`.

    Args:
      x: video, fp32 or bf16.
      kernel: cast to the dtype of `x`.
      impl: 'polyphase'; 'lax', the library call; 'auto' is 'polyphase' on every backend.

    Returns:
      The video of shape (b, t, 2 h, 2 w, co) in the dtype of `x`.

    Raises:
      ValueError: the kernel is not 1x4x4.
      UserError: unknown `impl`.
    """
    if kernel.shape[:3] != (1, 4, 4):
        raise ValueError(f"conv_transpose_1x4x4: the kernel is {kernel.shape[:3]}")
    chosen = choose("transposed conv impl", impl, IMPLEMENTATIONS, auto="polyphase")
    kernel = kernel.astype(x.dtype)
    if chosen == "polyphase":
        return depth_to_space(frame_conv(x, _polyphase_kernel(kernel)), (1, 2, 2))
    # `lax.conv_transpose` does not flip the kernel, unlike PyTorch.
    return lax.conv_transpose(
        x,
        kernel[:, ::-1, ::-1],
        (1, 2, 2),
        ((0, 0), (2, 2), (2, 2)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def _polyphase_kernel(kernel: Float[Array, "1 4 4 ci co"]) -> Float[Array, "3 3 ci co4"]:
    """Return the 3x3 kernel whose output channels are ordered (row parity, column parity, channel)."""
    taps = jnp.array(_TAPS)
    padded = jnp.pad(kernel[0], ((0, 1), (0, 1), (0, 0), (0, 0)))  # row and column 4 are zeros
    phases = padded[taps[:, :, None, None], taps[None, None]]  # (row parity, row, column parity, column, ci, co)
    return phases.transpose(1, 3, 4, 0, 2, 5).reshape(3, 3, kernel.shape[3], 4 * kernel.shape[4])
