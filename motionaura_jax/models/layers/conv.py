"""Convolutions and GroupNorm on channels-last video.  Padding repeats border frames and adds zeros around frames."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from motionaura_jax.models.layers.initializers import fan_in_normal
from motionaura_jax.ops.conv3d import conv3d
from motionaura_jax.ops.depthwise import depthwise_conv3d
from motionaura_jax.ops.dispatch import on_cpu
from motionaura_jax.ops.upsample import conv_transpose_1x4x4, depth_to_space, nearest_conv3d
from motionaura_jax.parallel.rules import Placement

Video = Float[Array, "b t h w c"]
Triple = tuple[int, int, int]
Initializer = Callable[..., Array]

_EPSILON = 1e-6
_NEAREST = {"auto": "auto", "taps2d": "polyphase", "lax": "plain"}
"""Form of the convolution behind nearest upsampling that belongs to an implementation of dense convolutions."""


class Conv3d(nn.Module):
    """Dense 3-D convolution with bias, for sizes that the strides divide.

    Symmetric: k * stride frames become k, with windows centered on multiples of the stride.  Causal: 1 + k * stride frames
    become 1 + k, with windows that end at multiples of the stride, so output i depends on no frame after i * stride.
    """

    features: int
    kernel: Triple
    strides: Triple = (1, 1, 1)
    causal: bool = False
    kernel_init: Initializer = fan_in_normal
    impl: str = "auto"
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Video) -> Video:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = conv3d(
            x.astype(self.dtype),
            kernel,
            strides=self.strides,
            temporal="causal" if self.causal else "replicate",
            impl=self.impl,
        )
        return y + bias.astype(self.dtype)


class DepthwiseConv3d(nn.Module):
    """Depthwise convolution: one 3x3x3 filter and bias per channel, stride 1."""

    causal: bool = False
    impl: str = "auto"
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Video) -> Video:
        channels = x.shape[-1]
        kernel = self.param("kernel", fan_in_normal, (3, 3, 3, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        y = depthwise_conv3d(
            x.astype(self.dtype), kernel, temporal="causal" if self.causal else "replicate", impl=self.impl
        )
        return y + bias.astype(self.dtype)


class SubpixelConv3d(nn.Module):
    """Upsampling by `factors`: 3x3x3 convolution to prod(factors) * features channels, then depth to space (Shi et al. 2016).

    All phases are initialized equally, which avoids checkerboard patterns early in training (ICNR, Aitken et al. 2017).
    """

    features: int
    factors: Triple
    causal: bool = False
    impl: str = "auto"
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Video) -> Video:
        phases = int(np.prod(self.factors))
        y = Conv3d(
            self.features * phases,
            (3, 3, 3),
            causal=self.causal,
            kernel_init=equal_phases(phases),
            impl=self.impl,
            dtype=self.dtype,
            name="conv",
        )(x)
        return depth_to_space(y, self.factors)


class NearestConv3d(nn.Module):
    """Nearest upsampling by (`time_factor`, 2, 2), then a dense 3x3x3 convolution with bias.

    Causal: 1 + k frames become 1 + time_factor * k, because the first frame stands for one frame alone.
    """

    features: int
    time_factor: int
    causal: bool = False
    impl: str = "auto"
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Video) -> Video:
        kernel = self.param("kernel", fan_in_normal, (3, 3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = nearest_conv3d(
            x.astype(self.dtype),
            kernel,
            self.time_factor,
            causal=self.causal,
            impl=_NEAREST[self.impl],
            conv_impl=self.impl,
        )
        return y + bias.astype(self.dtype)


class TransposedConv1x4x4(nn.Module):
    """Transposed convolution 1x4x4 with stride (1, 2, 2) and bias: doubles height and width (appendix B.2)."""

    features: int
    impl: str = "auto"
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Video) -> Video:
        kernel = self.param("kernel", _strided_fan_in, (1, 4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = conv_transpose_1x4x4(x.astype(self.dtype), kernel, impl=self.impl)
        return y + bias.astype(self.dtype)


def is_dense_kernel(place: Placement) -> bool:
    """Return whether a parameter is the kernel of a dense convolution, which its layer casts to its own dtype."""
    return place.path.endswith("kernel") and len(place.shape) == 5


def _strided_fan_in(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Sample N(0, 1 / fan_in): with a stride of 2, each output pixel meets 2x2 of the 4x4 taps."""
    return 2.0 * fan_in_normal(key, shape)


def equal_phases(phases: int) -> Initializer:
    """Return an initializer that repeats one kernel for all `phases` of an output."""

    def init(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
        one_phase = fan_in_normal(key, (*shape[:-1], shape[-1] // phases))
        return jnp.tile(one_phase, phases)

    return init


def num_groups(channels: int) -> int:
    """Return the largest divisor of gcd(32, channels) that leaves at least 8 channels per group, or 1."""
    groups = math.gcd(32, channels)
    while groups > 1 and channels // groups < 8:
        groups //= 2
    return groups


class GroupNorm(nn.Module):
    """Normalization of groups of channels, computed in float32.  Wu and He 2018; group rule in docs/fidelity.md.

    With `per_frame`, each frame has its own statistics, as causal and chunked coding require.
    """

    per_frame: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        axes = (2, 3) if self.per_frame else (1, 2, 3)
        values = x.astype(jnp.float32)
        # Average over positions first, then over groups: the large reduction keeps channels innermost, which vectorizes.
        centered = values - _over_groups(values.mean(axes, keepdims=True))
        variance = _over_groups(jnp.square(centered).mean(axes, keepdims=True))
        return (centered * (jax.lax.rsqrt(variance + _EPSILON) * scale) + bias).astype(x.dtype)


def _over_groups(per_channel: Float[Array, "b t 1 1 c"]) -> Float[Array, "b t 1 1 c"]:
    grouped = per_channel.reshape(*per_channel.shape[:-1], num_groups(per_channel.shape[-1]), -1)
    means = grouped.mean(-1, keepdims=True)
    if on_cpu():  # XLA fuses this differently: trained models keep the rounding that they had
        return jnp.repeat(means[..., 0], grouped.shape[-1], axis=-1, total_repeat_length=per_channel.shape[-1])
    # The gradient of `jnp.repeat` would be a scatter, which GPUs add in no fixed order.
    return jnp.broadcast_to(means, grouped.shape).reshape(per_channel.shape)
