"""Blocks of the 3D-MBQ-VAE: squeeze-excitation, MBConv, Inception-Fused-MB, resampling.  MotionAura appendix B."""

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
        excite = SqueezeExcite(max(channels // 4, 1), config.per_frame, name="excite")
        depthwise = DepthwiseConv3d(
            causal=config.causal, impl=config.depthwise_impl, dtype=jnp.dtype(config.dtype), name="depthwise"
        )
        x = GroupNorm(config.per_frame, name="norm")(x)
        x = silu(conv(config, _EXPANSION * channels, (1, 1, 1), name="expand")(x))
        # The paper gates before the depthwise convolution, EfficientNet after it.
        x = silu(depthwise(excite(x))) if config.se_pos == "before" else excite(silu(depthwise(x)))
        init = {"kernel_init": nn.initializers.zeros} if config.zero_init else {}
        return conv(config, channels, (1, 1, 1), name="project", **init)(x)


class MBConv(nn.Module):
    """Dense 3x3x3 to `features`, then an inverted bottleneck, with a residual (appendix B.4).

    `lead='factor'` splits the dense convolution, which holds 27 of about 37 C^2 parameters, into 1x3x3 and 3x1x1.
    """

    config: MBQVAEConfig
    features: int

    @nn.compact
    def __call__(self, x: Video) -> Video:
        config = self.config
        y = silu(GroupNorm(config.per_frame, name="norm")(x))
        if config.lead == "full":
            y = conv(config, self.features, (3, 3, 3), name="lead")(y)
        else:
            y = conv(config, self.features, (1, 3, 3), name="lead_space")(y)
            y = conv(config, self.features, (3, 1, 1), name="lead_time")(y)
        y = InvertedBottleneck(config, name="bottleneck")(y)
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
        branches = []
        for index, kernel in enumerate(_INCEPTION_KERNELS):
            branch = conv(config, width, kernel, name=f"branch_{index}")(y)
            branches.append(branch + InvertedBottleneck(config, name=f"bottleneck_{index}")(branch))
        fused = conv(config, channels, (config.inception_final,) * 3, name="fuse")(jnp.concatenate(branches, axis=-1))
        return x + fused


class Level(nn.Module):
    """`num_mb` MBConv blocks and `num_inception` Inception-Fused-MB blocks at one resolution."""

    config: MBQVAEConfig
    num_mb: int
    num_inception: int

    @nn.compact
    def __call__(self, x: Video) -> Video:
        wrap = nn.remat if self.config.remat == "full" else lambda block: block
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
