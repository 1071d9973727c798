"""Long and large videos in tiles: linear blending, and exact temporal chunks."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from motionaura_jax.models.autoencoders.config import MBQVAEConfig

Triple = tuple[int, int, int]
Apply = Callable[[Array], Array]
Given = Array | np.ndarray


class _Axis(NamedTuple):
    """One axis in latent cells; `unit_in` and `unit_out` are array elements per cell before and after `apply_fn`."""

    starts: tuple[int, ...]
    tile: int
    overlap: int
    margin: tuple[int, int]
    unit_in: int
    unit_out: int
    causal: bool

    def window(self, start: int, unit: int) -> slice:
        return slice(start * unit, start * unit + _elements(self.tile, unit, self.causal))

    def weights(self, start: int) -> np.ndarray:
        """Ramps over the overlap on both sides, zero in the margins, flat where the video itself ends."""
        size = _elements(self.tile, self.unit_out, self.causal)
        before, after, overlap = (_elements(n, self.unit_out, self.causal) for n in (*self.margin, self.overlap))
        slope = 1.0 / max(overlap - before - after, 1)
        rising, falling = np.arange(size) + 0.5 - before, np.arange(size)[::-1] + 0.5 - after
        weights = np.ones(size, np.float32)
        if start != self.starts[0]:
            weights *= np.clip(rising * slope, 0.0, 1.0)
        if start != self.starts[-1]:
            weights *= np.clip(falling * slope, 0.0, 1.0)
        return weights


def tiled_encode(
    config: MBQVAEConfig,
    apply_fn: Apply,
    video: Float[Given, "b T H W 3"],
    *,
    tile: Triple,
    overlap: Triple | None = None,
    exact_time: bool = False,
) -> Float[np.ndarray, "b t h w d"]:
    """Encodes `video` (padded, see `padding`) tile by tile; quantize the blended latent, not the tiles.

    Args:
      apply_fn: `MBQVAE.encode` bound to weights; jit it, all tiles have one shape.
      video: NumPy for one that does not fit on the device; only tiles of it go there then.
      tile: latent cells (t, h, w) per tile.
      overlap: latent cells that neighbors share; by default half a tile, in time what `exact_time` needs.
      exact_time: each tile contributes only frames that its temporal borders cannot reach.  With `config.per_frame`
        statistics and tiles as large as the frame the result equals the whole up to rounding.

    Space is never exact: GroupNorm and squeeze-excitation average over the whole frame; overlaps are blended linearly.
    Raises ValueError for an overlap that is not smaller than the tile, or too small for `exact_time`.
    """
    reach = receptive_cells(config, config.enc_mb, config.enc_inc) if exact_time else 0
    return _tiled(config, apply_fn, video, tile, overlap, config.strides, (1, 1, 1), reach)


def tiled_decode(
    config: MBQVAEConfig,
    apply_fn: Apply,
    z: Float[Given, "b t h w d"],
    *,
    tile: Triple,
    overlap: Triple | None = None,
    exact_time: bool = False,
) -> Float[np.ndarray, "b T H W 3"]:
    """Decodes latents tile by tile with `apply_fn`, `MBQVAE.decode` bound to weights; the rest as in `tiled_encode`."""
    reach = receptive_cells(config, config.dec_mb, config.dec_inc) if exact_time else 0
    return _tiled(config, apply_fn, z, tile, overlap, (1, 1, 1), config.strides, reach)


def receptive_cells(config: MBQVAEConfig, num_mb: tuple[int, ...], num_inception: tuple[int, ...]) -> int:
    """Latent cells next to a temporal border that the border can reach, for the given blocks per level; an upper bound.

    An MBConv has two temporal kernels of radius 1, an inception block two or three, each resampling one, and so has the
    convolution next to the latent.  Causal kernels reach twice as far, into the past only, and the first cell is short.
    """
    inception = 3 if config.inception_final == 3 else 2
    spacings = np.cumprod([1, *config.time_factors])
    blocks = sum(n * (2 * mb + inception * inc) for n, mb, inc in zip(spacings, num_mb, num_inception, strict=True))
    frames = int(blocks + spacings[1:].sum() + spacings[-1])
    return 1 + -(-2 * frames // config.t_stride) if config.causal else -(-frames // config.t_stride)


def _tiled(
    config: MBQVAEConfig,
    apply_fn: Apply,
    x: Given,
    tile: Triple,
    overlap: Triple | None,
    units_in: Triple,
    units_out: Triple,
    reach: int,
) -> np.ndarray:
    axes = []
    for index, name in enumerate(("time", "height", "width")):
        causal = config.causal and index == 0
        cells = (x.shape[index + 1] - 1) // units_in[index] + 1
        margin = (reach, 0 if causal else reach) if index == 0 else (0, 0)
        shared = overlap[index] if overlap else sum(margin) or tile[index] // 2
        starts = _starts(name, cells, tile[index], shared, sum(margin))
        axes.append(_Axis(starts, min(tile[index], cells), shared, margin, units_in[index], units_out[index], causal))
    return _blend(axes, apply_fn, x)


def _blend(axes: list[_Axis], apply_fn: Apply, x: Given) -> np.ndarray:
    corners = list(itertools.product(*(axis.starts for axis in axes)))

    def window(corner: tuple[int, ...]) -> Any:
        return x[:, *(axis.window(start, axis.unit_in) for axis, start in zip(axes, corner, strict=True))]

    channels = jax.eval_shape(apply_fn, window(corners[0])).shape[-1]
    shape = [_elements(axis.starts[-1] + axis.tile, axis.unit_out, axis.causal) for axis in axes]
    # On the host: the whole video may not fit on the device, which is why it is cut into tiles.
    total = np.zeros((x.shape[0], *shape, channels), np.float32)
    weight_sum = np.zeros((1, *shape, 1), np.float32)
    for corner in corners:
        ramps = [axis.weights(start) for axis, start in zip(axes, corner, strict=True)]
        weights = np.einsum("t,h,w->thw", *ramps)[None, ..., None]
        place = (slice(None), *(axis.window(start, axis.unit_out) for axis, start in zip(axes, corner, strict=True)))
        total[place] += weights * np.asarray(apply_fn(window(corner)))
        weight_sum[place] += weights
    return np.divide(total, weight_sum, out=total)


def _starts(name: str, cells: int, tile: int, overlap: int, needed: int) -> tuple[int, ...]:
    if tile >= cells:
        return (0,)
    if not 0 <= overlap < tile or overlap < needed:
        raise ValueError(
            f"tiling along {name}: tile {tile}, overlap {overlap} latent cells; the overlap must be smaller than "
            "the tile" + (f" and at least {needed} to be exact" if needed else "")
        )
    # The last tile moves back to end with the video, so that all tiles have one shape and compile once.
    regular = range(0, cells - tile, tile - overlap)
    return (*regular, cells - tile)


def _elements(cells: int, unit: int, causal: bool) -> int:
    """Array elements of `cells` cells; the first cell of a causal axis holds a single frame."""
    return 1 + (cells - 1) * unit if causal and cells else cells * unit
