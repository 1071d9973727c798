"""Depthwise 3-D convolution as shifted multiply-adds, the cheap layer of 3D-MBConv (MotionAura, appendix B.4).

Library kernels for grouped convolution are 1-2 orders of magnitude off the memory limit, most of all backward
(jax issues 13800, 23713 and 26266).  A sum of shifted products over the window is one fused loop.  Its gradient with
respect to the video is the same sum with the kernel flipped, and the gradient of the kernel is one reduction per window
position.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from motionaura_jax.ops.conv3d import pad3d
from motionaura_jax.ops.dispatch import choose, on_cpu, on_gpu

IMPLEMENTATIONS = ("shift", "lax")


def depthwise_conv3d(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c"],
    *,
    temporal: str = "replicate",
    impl: str = "auto",
) -> Float[Array, "b t2 h w c"]:
    """Convolve every channel with its own kernel, stride 1.

    y[b, t, h, w, c] = sum_ijk padded[b, t+i, h+j, w+k, c] kernel[i, j, k, c], with zeros around the frames.

    Args:
      x: video, fp32 or bf16.
      kernel: one window per channel; may stay fp32 when `x` is bf16 (products and sums are fp32 either way).
      temporal: padding in time, see `ops.conv3d.pad_time`; t2 = t, or t - kt + 1 for 'valid'.
      impl: 'shift'; 'lax', the library call; 'auto' is 'shift' on every backend.

    Returns:
      The filtered video in the dtype of `x`.  Reverse-mode differentiable to any order; 'shift' has no forward-mode derivative.

    Raises:
      ValueError: the channels of `x` and `kernel` differ.
      UserError: unknown `temporal` or `impl`.
    """
    if x.shape[-1] != kernel.shape[-1]:
        raise ValueError(f"depthwise_conv3d: x has {x.shape[-1]} channels, the kernel {kernel.shape[-1]}")
    chosen = choose("depthwise impl", impl, IMPLEMENTATIONS, auto="shift")
    padded = pad3d(x, kernel.shape[:3], temporal=temporal)
    return _shift(padded, kernel) if chosen == "shift" else _library(padded, kernel)


def _library(x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c"]) -> Float[Array, "b t2 h2 w2 c"]:
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype)[:, :, :, None],
        (1, 1, 1),
        "VALID",
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=x.shape[-1],
    )


def _positions(window: Sequence[int]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, window)))


@jax.custom_vjp
def _shift(x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c"]) -> Float[Array, "b t2 h2 w2 c"]:
    """Sum shifted products over the window; XLA fuses the whole sum into one pass over the video."""
    frames, height, width = (size - window + 1 for size, window in zip(x.shape[1:4], kernel.shape[:3], strict=True))
    weights = kernel.astype(jnp.float32)
    total = jnp.zeros((), jnp.float32)
    for i, j, k in _positions(kernel.shape[:3]):
        shifted = x[:, i : i + frames, j : j + height, k : k + width]
        total = total + shifted.astype(jnp.float32) * weights[i, j, k]
    return total.astype(x.dtype)


def _shift_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _shift(x, kernel), (x, kernel)


def _shift_backward(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    # Each output was a window of inputs, so each input's gradient is a window of outputs with the kernel reversed.
    around = [(size - 1, size - 1) for size in kernel.shape[:3]]
    grad_x = _shift(jnp.pad(grad, ((0, 0), *around, (0, 0))), kernel[::-1, ::-1, ::-1])
    window = kernel.shape[:3]
    if on_gpu():
        grad_kernel = stacked_kernel_gradient(x, grad, window)
    else:
        # One frame at a time stays in the cache of a CPU; a TPU prefers fewer, larger reductions.
        grad_kernel = kernel_gradient(x, grad, window, frames=1 if on_cpu() else grad.shape[1])
    return grad_x, grad_kernel.astype(kernel.dtype)


_shift.defvjp(_shift_forward, _shift_backward)


def kernel_gradient(
    x: Float[Array, "b t h w c"], grad: Float[Array, "b t2 h2 w2 c"], window: Sequence[int], *, frames: int
) -> Float[Array, "kt kh kw c"]:
    """Correlate the padded input with the gradient of the output at every window position, in fp32.

    Args:
      x: padded input, larger than `grad` by the window minus one.
      grad: gradient of the output.
      window: (kt, kh, kw).
      frames: frames per partial sum; divides t2.

    Returns:
      The fp32 gradient of the kernel.
    """
    batch, total, height, width, channels = grad.shape
    positions = jnp.array(_positions(window))

    def add_tile(partial: Array, start: Array) -> tuple[Array, None]:
        """Add the correlations of `frames` frames."""
        grad_tile = lax.dynamic_slice_in_dim(grad, start, frames, axis=1).astype(jnp.float32)

        def correlate(position: Array) -> Array:
            i, j, k = position
            shifted = lax.dynamic_slice(x, (0, start + i, j, k, 0), (batch, frames, height, width, channels))
            return jnp.sum(shifted.astype(jnp.float32) * grad_tile, axis=(1, 2, 3))

        return partial + lax.map(correlate, positions), None

    # The batch is summed last: a batch that is sharded over devices then costs one all-reduce instead of one per position.
    zeros = jnp.zeros((len(positions), batch, channels), jnp.float32)
    partial, _ = lax.scan(add_tile, zeros, jnp.arange(0, total, frames))
    return partial.sum(axis=1).reshape(*window, channels)


def stacked_kernel_gradient(
    x: Float[Array, "b t h w c"], grad: Float[Array, "b t2 h2 w2 c"], window: Sequence[int]
) -> Float[Array, "kt kh kw c"]:
    """Compute `kernel_gradient` as one sum over all shifted inputs at once.

    XLA for GPUs fuses the stack and the products into the sum, so that neither exists in memory. A loop over the positions
    would write float32 and transposed copies of both arrays instead, and launch kernels for each position.
    """
    frames, height, width = grad.shape[1:4]
    shifted = [x[:, i : i + frames, j : j + height, k : k + width] for i, j, k in _positions(window)]
    products = jnp.stack(shifted).astype(jnp.float32) * grad.astype(jnp.float32)
    return products.sum(axis=(1, 2, 3, 4)).reshape(*window, -1)
