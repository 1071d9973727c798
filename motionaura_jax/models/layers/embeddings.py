"""Sinusoidal embeddings of time, frame rate and position.  Vaswani et al. 2017; MotionAura 3.3."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

_BASE = 10000.0
_FEATURES = 256


def sinusoid(x: Float[Array, "*n"], features: int) -> Float[Array, "*n f"]:
    """Returns cosines and sines of x at `features` / 2 geometric frequencies from 1 to nearly 1 / 10000."""
    half = (features + 1) // 2
    phase = jnp.asarray(x, jnp.float32)[..., None] * _BASE ** (-jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)[..., :features]


class ScalarEmbedding(nn.Module):
    """Embeds one number per sample: sinusoid, Linear, SiLU, Linear, in float32.

    The caller scales the number so that a meaningful difference is about 1.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, " b"]) -> Float[Array, "b d"]:
        hidden = nn.silu(nn.Dense(self.features, name="in")(sinusoid(x, _FEATURES)))
        return nn.Dense(self.features, name="out")(hidden)


class GridEmbedding(nn.Module):
    """Absolute position of each cell of a (t, h, w) grid: three sinusoids through a linear map; any size.

    Starts with the standard deviation of the token embedding it is added to.
    """

    features: int
    stddev: float = 0.02

    @nn.compact
    def __call__(self, grid: tuple[int, int, int]) -> Float[Array, "t h w d"]:
        axes = [sinusoid(jnp.arange(size), _FEATURES) for size in grid]
        # A sinusoid has mean square 1/2.
        init = nn.initializers.normal(self.stddev * (2 / (3 * _FEATURES)) ** 0.5)
        kernel = self.param("kernel", init, (3, _FEATURES, self.features))
        t, h, w = (axis @ kernel[i] for i, axis in enumerate(axes))
        return t[:, None, None] + h[:, None] + w
