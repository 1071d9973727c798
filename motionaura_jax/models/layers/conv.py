"""Convolution layers on channels-last video: border frames replicated, zeros around them."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from motionaura_jax.models.layers.initializers import fan_in_normal
from motionaura_jax.ops.conv3d import conv3d
from motionaura_jax.ops.depthwise import depthwise_conv3d
from motionaura_jax.ops.transpose import conv_transpose_1x4x4
from motionaura_jax.ops.upsample import depth_to_space

Video = Float[Array, "b t h w c"]
Triple = tuple[int, int, int]
Initializer = Callable[..., Array]


class Conv3d(nn.Module):
    """Dense 3-D convolution with bias; strides divide sizes exactly.

    Symmetric: k * stride frames become k.  Causal: 1 + k * stride frames become 1 + k, and result i sees no input frame
    after i * stride.  Windows are centered on multiples of the stride, causal ones end there.
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
        y = conv3d(x.astype(self.dtype), kernel, strides=self.strides, temporal=_temporal(self.causal), impl=self.impl)
        return y + bias.astype(self.dtype)


class DepthwiseConv3d(nn.Module):
    """One 3x3x3 filter and bias per channel, stride 1."""

    causal: bool = False
    impl: str = "auto"
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Video) -> Video:
        channels = x.shape[-1]
        kernel = self.param("kernel", fan_in_normal, (3, 3, 3, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        y = depthwise_conv3d(x.astype(self.dtype), kernel, temporal=_temporal(self.causal), impl=self.impl)
        return y + bias.astype(self.dtype)


class SubpixelConv3d(nn.Module):
    """3x3x3 convolution to factor * features channels, then depth to space: upsampling by `factors` (Shi et al. 2016).

    All phases start equal, so that the first outputs carry no grid (ICNR, Aitken et al. 2017).
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
            kernel_init=_equal_phases(phases),
            impl=self.impl,
            dtype=self.dtype,
            name="conv",
        )(x)
        return depth_to_space(y, self.factors)


class TransposedConv1x4x4(nn.Module):
    """Transposed convolution 1x4x4 with stride (1, 2, 2) and bias: doubles height and width (appendix B.2)."""

    features: int
    impl: str = "auto"
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Video) -> Video:
        kernel = self.param("kernel", fan_in_normal, (1, 4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = conv_transpose_1x4x4(x.astype(self.dtype), kernel, impl=self.impl)
        return y + bias.astype(self.dtype)


def _temporal(causal: bool) -> str:
    return "causal" if causal else "replicate"


def _equal_phases(phases: int) -> Initializer:
    def init(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
        one_phase = fan_in_normal(key, (*shape[:-1], shape[-1] // phases))
        return jnp.tile(one_phase, phases)

    return init
