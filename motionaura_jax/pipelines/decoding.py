"""Decoding of latents to frames, whole or in tiles, for all pipelines."""

import contextlib
import functools
import math
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from motionaura_jax.core.types import Latent, PyTree
from motionaura_jax.data.frames import to_uint8
from motionaura_jax.models.autoencoders.base import VideoAutoencoder, check_latent
from motionaura_jax.models.autoencoders.geometry import Geometry, Size
from motionaura_jax.models.autoencoders.tiling import crop, tiled_decode
from motionaura_jax.parallel import constraints
from motionaura_jax.parallel.mesh import batch_shards

WHOLE_PIXELS = 4_000_000  # frames x height x width up to which a video passes through an autoencoder whole
TILE = (16, 256, 256)  # frames, height and width of a tile of larger videos


def decode_video(
    autoencoder: VideoAutoencoder,
    latent: Latent,
    *,
    aux: PyTree = None,
    tile: Size | None = None,
    mesh: Mesh | None = None,
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """Yield the videos of a latent one by one, so that memory does not grow with the batch.

    Args:
      autoencoder: on the devices of `mesh`, if one is given.
      latent: tokens or values; its `size` is that of the videos.
      aux: further inputs of the decoder, arrays with the leading axis of the latent; such videos are never tiled.
      tile: frames, height and width of a tile. By default small videos are decoded whole and larger ones in tiles of
        `TILE`. Tiles overlap by a quarter and are blended.
      mesh: devices that share the videos; each decodes one video at a time.

    Raises:
      ValueError: the latent comes from another latent space, or both `tile` and `aux` are given.
    """
    check_latent(autoencoder, latent)
    if aux is not None and tile:
        raise ValueError("a decoder with further inputs cannot decode in tiles")
    tile = fitting_tile(latent.size, tile) if aux is None else None
    shards = 1 if tile or mesh is None else batch_shards(mesh)
    count = len(jax.tree.leaves((latent.values, latent.tokens))[0])
    for start in range(0, count, shards):
        # Repeat the last video to fill the batch, so that one program serves all batches.
        rows = np.minimum(start + np.arange(shards), count - 1)
        part, part_aux = jax.tree.map(lambda x, rows=rows: x[rows], (latent, aux))
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            videos = _decode_tiles(autoencoder, part, tile) if tile else _decode_whole(autoencoder, part, part_aux)
        yield from map(to_uint8, np.asarray(videos)[: count - start])


def fitting_tile(size: Size, tile: Size | None = None) -> Size | None:
    """Return `tile`, or the default for a video of `size`: None if it is small enough to decode whole."""
    return TILE if tile is None and math.prod(size) > WHOLE_PIXELS else tile


def tile_cells(geometry: Geometry, tile: Size) -> tuple[Size, Size]:
    """Return a tile and the overlap of tiles in latent cells, at least 2 and 1 along each axis."""
    cells = tuple(max(2, length // stride) for length, stride in zip(tile, geometry.strides, strict=True))
    return cells, tuple(max(1, length // 4) for length in cells)  # type: ignore[return-value]


def _decode_tiles(autoencoder: VideoAutoencoder, latent: Latent, tile: Size) -> Float[np.ndarray, "b t h w 3"]:
    values = _embed(autoencoder, latent.tokens) if latent.values is None else latent.values
    decode = functools.partial(_decode_values, autoencoder)
    cells, overlap = tile_cells(autoencoder.geometry, tile)
    return crop(tiled_decode(autoencoder.geometry, decode, values, tile=cells, overlap=overlap), latent.size)


@jax.jit
def _decode_whole(autoencoder: VideoAutoencoder, latent: Latent, aux: PyTree) -> Float[Array, "b t h w 3"]:
    return autoencoder.decode(*constraints.batch((latent, aux)))


@jax.jit
def _decode_values(autoencoder: VideoAutoencoder, values: Float[Array, "b t h w d"]) -> Float[Array, "b t h w 3"]:
    return autoencoder.decode_values(values)


@jax.jit
def _embed(autoencoder: VideoAutoencoder, tokens: Int[Array, "b t h w"]) -> Float[Array, "b t h w d"]:
    return autoencoder.embed(tokens)
