"""Dense 3-D convolution of videos, and the padding that all convolutions of videos share.

Convolutions of MotionAura, appendix B.  On CPU the library's 3-D kernel is 2-7 times slower than its 2-D kernel for the same
arithmetic (up to 128 channels); one 2-D convolution per time tap, with the frames in the batch, gives the same sum.

Padding repeats the border frame in time and adds zeros in space.  Repeated frames keep the statistics of the first and the
last frame, which zeros would pull toward gray; the causal form is that of CV-VAE (Zhao et al. 2024) and MAGVIT-v2 (Yu et al.
2023), section 3.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from motionaura_jax.ops.dispatch import choose, on_cpu

IMPLEMENTATIONS = ("taps2d", "lax")
TEMPORAL = ("replicate", "causal", "valid")


def conv3d(
    x: Float[Array, "b t h w ci"],
    kernel: Float[Array, "kt kh kw ci co"],
    *,
    strides: Sequence[int] = (1, 1, 1),
    temporal: str = "replicate",
    impl: str = "auto",
) -> Float[Array, "b t2 h2 w2 co"]:
    """Convolve a video, with zeros around the frames.

    Windows start at multiples of the stride in the padded video (as in PyTorch, unlike TensorFlow's 'SAME'): a length n
    gives ceil(n / stride).

    Args:
      x: video, fp32 or bf16.
      kernel: cast to the dtype of `x`; PyTorch's `weight.permute(2, 3, 4, 1, 0)`.
      strides: (time, height, width).
      temporal: padding in time, see `pad_time`.
      impl: 'taps2d', a sum of 2-D convolutions (a 1x1 window is a matrix product); 'lax', the library call;
        'auto' is 'taps2d' on CPU and for windows of one frame, 'lax' on other backends.

    Returns:
      The convolved video in the dtype of `x`.

    Raises:
      ValueError: fewer frames than the window with temporal='valid'.
      UserError: unknown `temporal` or `impl`.
    """
    taps = kernel.shape[0]
    chosen = choose("conv3d impl", impl, IMPLEMENTATIONS, auto="taps2d" if on_cpu() or taps == 1 else "lax")
    x = pad_time(x, taps, temporal=temporal)
    if x.shape[1] < taps:
        raise ValueError(f"conv3d: {x.shape[1]} frames are fewer than the window of {taps}")
    kernel = kernel.astype(x.dtype)
    return _taps2d(x, kernel, strides) if chosen == "taps2d" else _library(x, kernel, strides)


def frame_conv(
    x: Float[Array, "b t h w ci"],
    kernel: Float[Array, "kh kw ci co"],
    *,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[tuple[int, int]] | None = None,
) -> Float[Array, "b t h2 w2 co"]:
    """Convolve every frame on its own, with zeros around; arguments as in `conv3d`, all of one dtype.

    On CPU the gradient of the kernel is one matrix product per window position; see `_kernel_gradient`.

    Args:
      padding: (low, high) zeros of height and width; by default those that keep the size at stride 1.
    """
    height, width = kernel.shape[:2]
    if height == width == 1 and padding is None:
        return x[:, :, :: strides[0], :: strides[1]] @ kernel[0, 0]
    around = tuple(padding or (split_padding(height), split_padding(width)))
    convolve = _frames_with_products if on_cpu() else _frames
    y = convolve(x.reshape(-1, *x.shape[2:]), kernel, tuple(strides), around)
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _frames(x: Array, kernel: Array, strides: tuple[int, ...], padding: tuple[tuple[int, int], ...]) -> Array:
    # The zeros are added inside the call: XLA's CPU convolution without any padding is up to 10 times slower.
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


_frames_with_products = jax.custom_vjp(_frames, nondiff_argnums=(2, 3))


def _frames_forward(x: Array, kernel: Array, strides: Any, padding: Any) -> tuple[Array, tuple[Array, Array]]:
    return _frames(x, kernel, strides, padding), (x, kernel)


def _frames_backward(strides: Any, padding: Any, residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    _, pullback = jax.vjp(lambda x: _frames(x, kernel, strides, padding), x)
    return *pullback(grad), _kernel_gradient(x, grad, kernel, strides, padding)


_frames_with_products.defvjp(_frames_forward, _frames_backward)


def _kernel_gradient(
    x: Float[Array, "n h w ci"], grad: Float[Array, "n h2 w2 co"], kernel: Array, strides: Any, padding: Any
) -> Float[Array, "kh kw ci co"]:
    """Correlate input and gradient by one matrix product over all pixels for every window position.

    The library's own gradient is a convolution whose window is the whole frame, behind two transposed copies: half as fast.
    """
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (step * (size - 1) + 1 for step, size in zip(strides, grad.shape[1:3], strict=True))

    def correlate(j: int, k: int) -> Array:
        shifted = padded[:, j : j + rows : strides[0], k : k + columns : strides[1]]
        # XLA transposes the left operand; on this side all positions share one transposed copy.
        return jnp.einsum("nhwo,nhwi->oi", grad, shifted, preferred_element_type=jnp.float32)

    height, width = kernel.shape[:2]
    products = [correlate(j, k) for j in range(height) for k in range(width)]
    return jnp.stack(products).mT.reshape(kernel.shape).astype(kernel.dtype)


def _taps2d(x: Array, kernel: Array, strides: Sequence[int]) -> Array:
    """Sum over the taps i in time of frames i, i + step, i + 2 step, ... convolved with slice i of the kernel."""
    taps = kernel.shape[0]
    step = strides[0]
    last = x.shape[1] - taps
    shifted = (x[:, i : i + last + 1 : step] for i in range(taps))
    outputs = (frame_conv(frames, tap, strides=strides[1:]) for frames, tap in zip(shifted, kernel, strict=True))
    return functools.reduce(operator.add, outputs)


def _library(x: Array, kernel: Array, strides: Sequence[int]) -> Array:
    _, height, width = kernel.shape[:3]
    return lax.conv_general_dilated(
        x,
        kernel,
        tuple(strides),
        ((0, 0), split_padding(height), split_padding(width)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def split_padding(size: int) -> tuple[int, int]:
    """Return (low, high) padding for a window of `size` elements, so that stride 1 keeps the length; low <= high."""
    low = (size - 1) // 2
    return low, size - 1 - low


def pad_time(x: Float[Array, "b t h w c"], size: int, *, temporal: str = "replicate") -> Float[Array, "b t2 h w c"]:
    """Pad the time axis for a window of `size` frames.

    Args:
      x: video.
      size: frames in the window.
      temporal: 'replicate' repeats the first and the last frame; 'causal' repeats the first frame only, so that
        no output sees a later frame; 'valid' adds nothing, because the caller supplies the frames around.

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
    """Pad for a window of (time, height, width): time as in `pad_time`, zeros in height and width.

    Raises:
      UserError: unknown `temporal`.
    """
    time, height, width = window
    x = pad_time(x, time, temporal=temporal)
    return jnp.pad(x, ((0, 0), (0, 0), split_padding(height), split_padding(width), (0, 0)))
