"""Videos of any size: padding to whole latent cells, and tiles for what does not fit on a device at once."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from motionaura_jax.models.autoencoders.geometry import Geometry, Size

Apply = Callable[[Array], Array]
Given = Array | np.ndarray
Video = TypeVar("Video", Float[Array, "b t h w c"], Float[np.ndarray, "b t h w c"])


def pad(geometry: Geometry, video: Video) -> tuple[Video, Size]:
    """Repeat the last frame, row and column until the video fills whole latent cells.

    A single image becomes `strides[0]` equal frames; it stays one frame if the autoencoder is causal.  A NumPy video
    stays on the host.

    Returns:
      (padded video, size to `crop` back to).
    """
    size = (video.shape[1], video.shape[2], video.shape[3])
    missing: list[tuple[int, int]] = [(0, new - old) for new, old in zip(geometry.padded_size(size), size, strict=True)]
    if not any(after for _, after in missing):
        return video, size
    widths = [(0, 0), *missing, (0, 0)]
    if isinstance(video, np.ndarray):
        return np.pad(video, widths, mode="edge"), size
    return jnp.pad(video, widths, mode="edge"), size


def crop(video: Video, size: Size) -> Video:
    """Undo `pad`."""
    return video[:, : size[0], : size[1], : size[2]]


def tiled_encode(
    geometry: Geometry,
    apply_fn: Apply,
    video: Float[Given, "b T H W 3"],
    *,
    tile: Size,
    overlap: Size | None = None,
    reach: int = 0,
) -> Float[np.ndarray, "b t h w c"]:
    """Encode a video that fills whole latent cells tile by tile.  Quantize the blended result, not the tiles.

    Args:
      apply_fn: `VideoAutoencoder.features`, jitted; all tiles have one shape.
      video: a NumPy array if it does not fit on the device; then only its tiles go there.
      tile: latent cells (t, h, w) per tile.
      overlap: latent cells that neighbors share; by default half a tile, and in time what `reach` needs.
      reach: latent cells next to a temporal border that the border can affect (`MBQVAEConfig.encoder_reach`).  Tiles do
        not contribute them.  With per-frame statistics and tiles as large as the frame, the result then equals the
        untiled one up to rounding.  0 blends over the whole overlap.

    Space is never exact: GroupNorm and squeeze-excitation average over the whole frame.  Overlaps are blended linearly.

    Raises:
      ValueError: an overlap that is not smaller than the tile, or smaller than `reach` needs.
    """
    return _tiled(geometry, apply_fn, video, tile, overlap, geometry.strides, (1, 1, 1), reach)


def tiled_decode(
    geometry: Geometry,
    apply_fn: Apply,
    z: Float[Given, "b t h w d"],
    *,
    tile: Size,
    overlap: Size | None = None,
    reach: int = 0,
) -> Float[np.ndarray, "b T H W 3"]:
    """Decode latent values tile by tile; `apply_fn` is `VideoAutoencoder.decode_values`, the rest as in `tiled_encode`."""
    return _tiled(geometry, apply_fn, z, tile, overlap, (1, 1, 1), geometry.strides, reach)


class _Axis(NamedTuple):
    """Tiles along one axis, in latent cells.

    Attributes:
      starts: first cell of each tile.
      margin: cells at the start and at the end of a tile that do not contribute.
      unit_in, unit_out: array elements per cell before and after `apply_fn`.
      causal: the first cell holds a single frame.
    """

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
        """Return linear ramps over the overlaps: zero in the margins, flat where the video itself begins or ends."""
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


def _tiled(
    geometry: Geometry,
    apply_fn: Apply,
    x: Given,
    tile: Size,
    overlap: Size | None,
    units_in: Size,
    units_out: Size,
    reach: int,
) -> np.ndarray:
    axes = []
    for index, name in enumerate(("time", "height", "width")):
        causal = geometry.causal and index == 0
        cells = (x.shape[index + 1] - 1) // units_in[index] + 1
        # A causal network looks only back, so only the start of a tile lacks context.
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
    # The sums stay on the host: the whole video may not fit on the device.
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
    """Return the array elements of `cells` cells; the first cell of a causal axis holds a single frame."""
    return 1 + (cells - 1) * unit if causal and cells else cells * unit
