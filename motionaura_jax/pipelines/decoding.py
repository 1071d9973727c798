"""From latents to frames, whole or in tiles: the one way in which pipelines decode."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from motionaura_jax.core.types import Latent
from motionaura_jax.data.frames import to_uint8
from motionaura_jax.models.autoencoders.padding import crop
from motionaura_jax.models.autoencoders.tiling import tiled_decode
from motionaura_jax.parallel import constraints
from motionaura_jax.parallel.mesh import batch_shards
from motionaura_jax.pipelines.reconstruct import TILE, WHOLE_PIXELS


def decode_video(
    autoencoder: Any, latent: Latent, *, mesh: jax.sharding.Mesh
) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """Yield the videos of a latent one by one on each device, and large ones in tiles; memory does not grow with the batch.

    Args:
      autoencoder: on the devices of `mesh`.
      latent: tokens or values; its `size` is that of the videos.
    """
    in_tiles = math.prod(latent.size) > WHOLE_PIXELS
    shards = 1 if in_tiles else batch_shards(mesh)
    count = len(jax.tree.leaves((latent.values, latent.tokens))[0])
    for start in range(0, count, shards):
        # The last video is repeated to a full batch, so that one program serves all.
        rows = np.minimum(start + np.arange(shards), count - 1)
        part = jax.tree.map(lambda x, rows=rows: jnp.asarray(x[rows]), latent)
        with jax.set_mesh(mesh):
            videos = _decode_tiles(autoencoder, part) if in_tiles else _decode(autoencoder, part)
        yield from map(to_uint8, np.asarray(videos)[: count - start])


def _decode_tiles(autoencoder: Any, latent: Latent) -> np.ndarray:
    geometry = autoencoder.geometry
    tile = tuple(max(2, pixels // stride) for pixels, stride in zip(TILE, geometry.strides, strict=True))
    overlap = tuple(max(1, cells // 4) for cells in tile)
    values = _embed(autoencoder, latent.tokens) if latent.values is None else latent.values
    decode = functools.partial(_decode_values, autoencoder)
    video = tiled_decode(geometry, decode, values, tile=tile, overlap=overlap)
    return np.asarray(crop(jnp.asarray(video), latent.size))


@jax.jit
def _decode(autoencoder: Any, latent: Latent) -> Array:
    return autoencoder.decode(constraints.batch(latent))


@jax.jit
def _decode_values(autoencoder: Any, values: Array) -> Array:
    return autoencoder.decode_values(values)


@jax.jit
def _embed(autoencoder: Any, tokens: Array) -> Array:
    return autoencoder.embed(tokens)
