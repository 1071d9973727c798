"""Blocks of the 3D-MBQ-VAE: squeeze-excitation, MBConv, Inception-Fused-MB, resampling.  MotionAura appendix B."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.layers.conv import Conv3d, DepthwiseConv3d, GroupNorm, NearestConv3d, SubpixelConv3d
from motionaura_jax.models.layers.initializers import fan_in_normal
from motionaura_jax.ops.silu import silu

Video = Float[Array, "b t h w c"]
_EXPANSION = 4
_INCEPTION_KERNELS = ((3, 3, 1), (3, 1, 3), (1, 3, 3))


def conv(config: MBQVAEConfig, features: int, kernel: tuple[int, int, int], **kwargs: Any) -> Conv3d:
    """Return a dense convolution with the causality, precision and implementation of the network."""
    return Conv3d(
        features, kernel, causal=config.causal, impl=config.conv_impl, dtype=jnp.dtype(config.dtype), **kwargs
    )


Part = Callable[[nn.Module, Video], Video]


def recomputed(config: MBQVAEConfig, part: Part, *, of: str = "branch") -> Part:
    """Return `part` of a block or branch so that the backward pass keeps only its input, if `config.remat` says so.

    The block itself is recomputed too, and with "layer" its branches.  So at any time there are the inputs of the parts of
    one block, and the inside of one part alone.
    """
    return nn.remat(part) if config.remat in (of, "layer") else part


class SqueezeExcite(nn.Module):
    """Gate on the channels, computed from their mean over space-time or over each frame."""

    hidden: int
    per_frame: bool

    @nn.compact
    def __call__(self, x: Video) -> Video:
        axes = (2, 3) if self.per_frame else (1, 2, 3)
        pooled = x.mean(axes, keepdims=True, dtype=jnp.float32)
        hidden = silu(nn.Dense(self.hidden, kernel_init=fan_in_normal, name="reduce")(pooled))
        gate = nn.sigmoid(nn.Dense(x.shape[-1], kernel_init=fan_in_normal, name="expand")(hidden))
        return x * gate.astype(x.dtype)


class InvertedBottleneck(nn.Module):
    """GN, pointwise C to 4C, SiLU, squeeze-excitation, depthwise 3x3x3, SiLU, pointwise 4C to C.  No residual."""

    config: MBQVAEConfig

    @nn.compact
    def __call__(self, x: Video) -> Video:
        config, channels = self.config, x.shape[-1]
        init = {"kernel_init": nn.initializers.zeros} if config.zero_init else {}

        def excite(x: Video) -> Video:
            return SqueezeExcite(max(channels // 4, 1), config.per_frame, name="excite")(x)

        def expand(block: nn.Module, x: Video) -> Video:
            x = GroupNorm(config.per_frame, name="norm")(x)
            x = silu(conv(config, _EXPANSION * channels, (1, 1, 1), name="expand")(x))
            # The paper gates before the depthwise convolution, EfficientNet after it.
            return excite(x) if config.se_pos == "before" else x

        def project(block: nn.Module, x: Video) -> Video:
            x = excite(silu(x)) if config.se_pos == "after" else silu(x)
            return conv(config, channels, (1, 1, 1), name="project", **init)(x)

        x = recomputed(config, expand, of="layer")(self, x)
        x = DepthwiseConv3d(
            causal=config.causal, impl=config.depthwise_impl, dtype=jnp.dtype(config.dtype), name="depthwise"
        )(x)
        return recomputed(config, project, of="layer")(self, x)


class MBConv(nn.Module):
    """Dense 3x3x3 to `features`, then an inverted bottleneck, with a residual (appendix B.4).

    `lead='factor'` splits the dense convolution, which holds 27 of about 37 C^2 parameters, into 1x3x3 and 3x1x1.
    """

    config: MBQVAEConfig
    features: int

    @nn.compact
    def __call__(self, x: Video) -> Video:
        config = self.config

        def lead(block: nn.Module, x: Video) -> Video:
            y = silu(GroupNorm(config.per_frame, name="norm")(x))
            if config.lead == "full":
                return conv(config, self.features, (3, 3, 3), name="lead")(y)
            y = conv(config, self.features, (1, 3, 3), name="lead_space")(y)
            return conv(config, self.features, (3, 1, 1), name="lead_time")(y)

        def bottleneck(block: nn.Module, x: Video) -> Video:
            return InvertedBottleneck(config, name="bottleneck")(x)

        y = recomputed(config, bottleneck)(self, recomputed(config, lead)(self, x))
        if x.shape[-1] != self.features:
            x = conv(config, self.features, (1, 1, 1), name="shortcut")(x)
        return x + y


class InceptionFusedMB(nn.Module):
    """Three planar 3-D branches, each with its own inverted bottleneck, concatenated and fused (appendix B.5)."""

    config: MBQVAEConfig

    @nn.compact
    def __call__(self, x: Video) -> Video:
        config, channels = self.config, x.shape[-1]
        width = max(int(channels * config.inception_width), 1)
        y = silu(GroupNorm(config.per_frame, name="norm")(x))

        def branch(index: int, block: nn.Module, y: Video) -> Video:
            planar = conv(config, width, _INCEPTION_KERNELS[index], name=f"branch_{index}")(y)
            return planar + InvertedBottleneck(config, name=f"bottleneck_{index}")(planar)

        parts = [functools.partial(branch, index) for index in range(len(_INCEPTION_KERNELS))]
        branches = [recomputed(config, part)(self, y) for part in parts]
        fused = conv(config, channels, (config.inception_final,) * 3, name="fuse")(jnp.concatenate(branches, axis=-1))
        return x + fused


class Level(nn.Module):
    """`num_mb` MBConv blocks and `num_inception` Inception-Fused-MB blocks at one resolution."""

    config: MBQVAEConfig
    num_mb: int
    num_inception: int

    @nn.compact
    def __call__(self, x: Video) -> Video:
        wrap = nn.remat if self.config.remat != "none" else lambda block: block
        for index in range(self.num_mb):
            x = wrap(MBConv)(self.config, x.shape[-1], name=f"mb_{index}")(x)
        for index in range(self.num_inception):
            x = wrap(InceptionFusedMB)(self.config, name=f"inception_{index}")(x)
        return x


class Upsample(nn.Module):
    """Upsampling by 2 in space and by `time_factor` in time; if causal, 1 + k frames become 1 + time_factor * k."""

    config: MBQVAEConfig
    features: int
    time_factor: int

    @nn.compact
    def __call__(self, x: Video) -> Video:
        config = self.config
        settings: dict[str, Any] = {
            "causal": config.causal,
            "impl": config.conv_impl,
            "dtype": jnp.dtype(config.dtype),
            "name": "conv",
        }
        if config.upsample == "nearest":
            return NearestConv3d(self.features, self.time_factor, **settings)(x)
        x = SubpixelConv3d(self.features, (self.time_factor, 2, 2), **settings)(x)
        # The first latent frame of a causal tokenizer stands for one video frame: drop the copies before it.
        return x[:, self.time_factor - 1 :] if config.causal else x
