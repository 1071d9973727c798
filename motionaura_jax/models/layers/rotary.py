"""Rotary position embedding of frequency bins or grid cells.  Su et al. 2021; MotionAura 3.3, D.4."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_BASE = 10000.0


def positions(kind: str, grid: tuple[int, int, int], *, signed: bool) -> np.ndarray:
    """Returns the coordinates of t * h * w tokens in row-major order, `(s, axes)`.

    `flat1d` counts tokens 0..s-1 (as in the paper).  `axial` gives (t, h, w).  With `signed`, index u means bin u of a
    Fourier transform, hence frequency u up to n // 2 and u - n above it: neighbors in frequency become neighbors.
    """
    sizes = (int(np.prod(grid)),) if kind == "flat1d" else grid
    axes = [np.arange(n) for n in sizes]
    if signed:
        axes = [np.where(index > n // 2, index - n, index) for index, n in zip(axes, sizes, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(sizes))


def angles(coordinates: np.ndarray, head_dim: int) -> Float[Array, "s half"]:
    """Returns rotation angles for half of an even `head_dim`; three coordinates share it as t:h:w = 2:1:1."""
    per_axis = _split(head_dim) if coordinates.shape[-1] == 3 else (head_dim,)
    columns = [
        jnp.asarray(coordinates[:, i, None], jnp.float32) * _BASE ** (-jnp.arange(0, size, 2) / size)
        for i, size in enumerate(per_axis)
        if size
    ]
    return jnp.concatenate(columns, axis=-1)


def rotate(x: Float[Array, "b s h d"], angle: Float[Array, "s half"]) -> Float[Array, "b s h d"]:
    """Rotates the pairs (x[i], x[i + d/2]) by `angle`: products then depend on differences of positions."""
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _split(head_dim: int) -> tuple[int, int, int]:
    side = 2 * round(head_dim / 8)
    return (head_dim - 2 * side, side, side)
