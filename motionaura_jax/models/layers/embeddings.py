"""Embeddings of numbers and positions: sinusoids and rotations.  Vaswani et al. 2017; Su et al. 2021; MotionAura 3.3, D.4."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_BASE = 10000.0  # ratio of the longest wavelength to the shortest
_FEATURES = 256


def sinusoid(x: Float[Array, "*n"], features: int) -> Float[Array, "*n f"]:
    """Return cosines and sines of x at `features` / 2 geometric frequencies from 1 to nearly 1 / 10000."""
    half = (features + 1) // 2
    phase = jnp.asarray(x, jnp.float32)[..., None] * _BASE ** (-jnp.arange(half) / half)
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1)[..., :features]


class ScalarEmbedding(nn.Module):
    """Embedding of one number per sample: sinusoid, Linear, SiLU, Linear, in float32.

    Scale the number so that a meaningful difference is about 1.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, " b"]) -> Float[Array, "b d"]:
        hidden = nn.silu(nn.Dense(self.features, name="in")(sinusoid(x, _FEATURES)))
        return nn.Dense(self.features, name="out")(hidden)


class GridEmbedding(nn.Module):
    """Absolute position of each cell of a (t, h, w) grid of any size: three sinusoids through a linear map.

    Entries start with standard deviation `stddev`, like those of the token embedding they are added to.
    """

    features: int
    stddev: float = 0.02

    @nn.compact
    def __call__(self, grid: tuple[int, int, int]) -> Float[Array, "t h w d"]:
        axes = [sinusoid(jnp.arange(size), _FEATURES) for size in grid]
        # A cosine or sine has mean square 1/2, and each output sums 3 * _FEATURES of them.
        init = nn.initializers.normal(self.stddev * (2 / (3 * _FEATURES)) ** 0.5)
        kernel = self.param("kernel", init, (3, _FEATURES, self.features))
        t, h, w = (axis @ kernel[i] for i, axis in enumerate(axes))
        return t[:, None, None] + h[:, None] + w


def rotary_positions(kind: str, grid: tuple[int, int, int], *, signed: bool) -> np.ndarray:
    """Return the coordinates of t * h * w tokens in row-major order, `(s, axes)`.

    Args:
      kind: `flat1d` counts tokens 0..s-1, as the paper does; `axial` gives (t, h, w).
      signed: treat index u as a Fourier bin: its position is the signed frequency, u up to n // 2 and u - n above, so
        that neighbors in frequency are neighbors in position.
    """
    sizes = (int(np.prod(grid)),) if kind == "flat1d" else grid
    axes = [np.arange(n) for n in sizes]
    if signed:
        axes = [np.where(index > n // 2, index - n, index) for index, n in zip(axes, sizes, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(sizes))


def rotary_angles(coordinates: np.ndarray, head_dim: int) -> Float[Array, "s half"]:
    """Return the angles of the head_dim / 2 pairs of each token; three coordinates share the pairs as t:h:w = 2:1:1."""
    side = 2 * round(head_dim / 8)
    per_axis = (head_dim - 2 * side, side, side) if coordinates.shape[-1] == 3 else (head_dim,)
    columns = [
        jnp.asarray(coordinates[:, i, None], jnp.float32) * _BASE ** (-jnp.arange(0, size, 2) / size)
        for i, size in enumerate(per_axis)
        if size
    ]
    return jnp.concatenate(columns, axis=-1)


def rotate(x: Float[Array, "b s h d"], angle: Float[Array, "s half"]) -> Float[Array, "b s h d"]:
    """Rotate the pairs (x[i], x[i + d/2]) by `angle`, so that query-key products depend only on position differences."""
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
