"""Transposed convolution 1x4x4 with stride (1, 2, 2), the decoder's last layer (MotionAura, appendix B.1).

Its polyphase form: each of the four (row, column) parities of the output reads two of the four kernel rows and
columns, so a 3x3 convolution to four times the channels, with fixed zeros in the unused taps, gives all four
parities at once, and depth-to-space interleaves them.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from motionaura_jax.ops.conv3d import frame_conv
from motionaura_jax.ops.dispatch import choose
from motionaura_jax.ops.upsample import depth_to_space

IMPLEMENTATIONS = ("polyphase", "lax")

# TAPS[parity][offset]: the kernel row that the input row at offset -1, 0, +1 meets; row 4 is the zero row.
TAPS = ((3, 1, 4), (4, 2, 0))


def conv_transpose_1x4x4(
    x: Float[Array, "b t h w ci"], kernel: Float[Array, "1 4 4 ci co"], *, impl: str = "auto"
) -> Float[Array, "b t h2 w2 co"]:
    """Doubles height and width: y[2h + j - 1, 2w + k - 1] += x[h, w] kernel[0, j, k].

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
        return depth_to_space(frame_conv(x, polyphase_kernel(kernel)), (1, 2, 2))
    return lax.conv_transpose(
        x,
        kernel[:, ::-1, ::-1],
        (1, 2, 2),
        ((0, 0), (2, 2), (2, 2)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def polyphase_kernel(kernel: Float[Array, "1 4 4 ci co"]) -> Float[Array, "3 3 ci co4"]:
    """Returns the 3x3 kernel whose output channels are ordered (row parity, column parity, channel)."""
    taps = jnp.array(TAPS)
    padded = jnp.pad(kernel[0], ((0, 1), (0, 1), (0, 0), (0, 0)))
    phases = padded[taps[:, :, None, None], taps[None, None]]
    return phases.transpose(1, 3, 4, 0, 2, 5).reshape(3, 3, kernel.shape[3], 4 * kernel.shape[4])
