"""Enlarging videos: sub-pixel rearrangement (Shi et al. 2016), nearest neighbor, and transposed convolution.

The transposed convolution 1x4x4 with stride (1, 2, 2) is the decoder's last layer (MotionAura, appendix B.1).  In its
polyphase form each of the four (row, column) parities of the output reads two of the four kernel rows and columns.  A 3x3
convolution to four times the channels, with zeros in the unused taps, gives all four parities at once, and depth-to-space
interleaves them.

A convolution behind nearest upsampling by 2 reads every input element two times or more, so kernel taps that meet the same
element can be added first: each parity of the output is a convolution of the small video with 2 taps per axis in place of 3.
That is 8 / 27 of the arithmetic for a doubling of time, height and width.
"""

import functools
import operator
from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

from motionaura_jax.ops.conv3d import conv3d, frame_conv, pad_time
from motionaura_jax.ops.dispatch import choose, on_cpu

IMPLEMENTATIONS = ("polyphase", "lax")
NEAREST_IMPLEMENTATIONS = ("polyphase", "plain")

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


def nearest_conv3d(
    x: Float[Array, "b t h w ci"],
    kernel: Float[Array, "3 3 3 ci co"],
    time_factor: int,
    *,
    causal: bool = False,
    impl: str = "auto",
    conv_impl: str = "auto",
) -> Float[Array, "b t2 h2 w2 co"]:
    """Repeat every element (time_factor, 2, 2) times, then convolve as `conv3d` does.

    Args:
      x: video, fp32 or bf16.
      kernel: cast to the dtype of `x`.
      time_factor: 1 or 2.
      causal: drop the `time_factor - 1` surplus copies of the first frame, then pad time with the first frame alone.
      impl: 'polyphase', at the resolution of `x`; 'plain', as defined; 'auto' is 'polyphase' on CPU.  They differ in
        rounding.
      conv_impl: implementation of the convolution for 'plain'.

    Returns:
      The video of shape (b, time_factor t - surplus, 2 h, 2 w, co) in the dtype of `x`.

    Raises:
      ValueError: the kernel is not 3x3x3, or an unsupported time factor.
      UserError: unknown `impl`.
    """
    if kernel.shape[:3] != (3, 3, 3) or time_factor not in (1, 2):
        raise ValueError(f"nearest_conv3d: kernel {kernel.shape[:3]}, time factor {time_factor}")
    chosen = choose("nearest conv impl", impl, NEAREST_IMPLEMENTATIONS, auto="polyphase" if on_cpu() else "plain")
    temporal, surplus = ("causal", time_factor - 1) if causal else ("replicate", 0)
    if chosen == "plain":
        enlarged = nearest_upsample(x, (time_factor, 2, 2))[:, surplus:]
        return conv3d(enlarged, kernel, temporal=temporal, impl=conv_impl)
    # Border frames repeat, so padding the small video is the same as padding the enlarged one.
    frames = pad_time(x, 3, temporal=temporal)
    outputs = [
        _phase(frames, taps, x.shape[1], start, ((1 - row, row), (1 - column, column)))
        for start, in_time in _time_phases(kernel, time_factor, causal)
        for row, in_rows in enumerate(_halves(in_time, 1))
        for column, taps in enumerate(_halves(in_rows, 2))
    ]
    return depth_to_space(jnp.concatenate(outputs, axis=-1), (time_factor, 2, 2))[:, surplus:]


def _halves(kernel: Array, axis: int) -> tuple[Array, Array]:
    """Return the 2-tap kernels of the even and the odd outputs along `axis`; the sums are fp32."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return jnp.concatenate([first, middle + last], axis), jnp.concatenate([first + middle, last], axis)


def _time_phases(kernel: Array, factor: int, causal: bool) -> list[tuple[int, Array]]:
    """Return (first frame in the padded video, kernel) of each phase in time."""
    if factor == 1:
        return [(0, kernel)]
    even, odd = _halves(kernel, 0)
    # Causal windows end at their output: frame 2m reads 2m - 2 to 2m, which are frames m - 1, m - 1 and m of `x`.
    return [(1, odd), (1, even)] if causal else [(0, even), (1, odd)]


def _phase(frames: Array, kernel: Array, length: int, start: int, padding: tuple[tuple[int, int], ...]) -> Array:
    """Sum the convolutions of `length` frames with every temporal tap of the kernel."""
    taps = [frame_conv(frames[:, start + i : start + i + length], tap.astype(frames.dtype), padding=padding)
            for i, tap in enumerate(kernel)]  # fmt: skip
    return functools.reduce(operator.add, taps)


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
