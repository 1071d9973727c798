"""GroupNorm over space-time or over single frames, in float32.  Wu and He 2018; group rule in docs/fidelity.md."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_EPSILON = 1e-6


def num_groups(channels: int) -> int:
    """Largest divisor of gcd(32, channels) that leaves at least 8 channels per group, or 1."""
    groups = math.gcd(32, channels)
    while groups > 1 and channels // groups < 8:
        groups //= 2
    return groups


class GroupNorm(nn.Module):
    """Normalizes groups of channels; returns the dtype of the input, computes in float32.

    With `per_frame` the statistics of frame t see frame t only, which causal and chunked coding need.
    """

    per_frame: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        axes = (2, 3) if self.per_frame else (1, 2, 3)
        values = x.astype(jnp.float32)
        # Channel means first, groups second: the large reductions then keep channels minor, which vectorizes.
        centered = values - _over_groups(values.mean(axes, keepdims=True))
        variance = _over_groups(jnp.square(centered).mean(axes, keepdims=True))
        return (centered * (jax.lax.rsqrt(variance + _EPSILON) * scale) + bias).astype(x.dtype)


def _over_groups(per_channel: Float[Array, "b t 1 1 c"]) -> Float[Array, "b t 1 1 c"]:
    channels = per_channel.shape[-1]
    groups = num_groups(channels)
    grouped = per_channel.reshape(*per_channel.shape[:-1], groups, channels // groups)
    return jnp.repeat(grouped.mean(-1), channels // groups, axis=-1, total_repeat_length=channels)
