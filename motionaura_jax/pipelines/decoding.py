"""From latents back to video: whole, or in tiles if the video is large."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num, UInt8

from motionaura_jax.core.types import Latent
from motionaura_jax.data.frames import to_uint8
from motionaura_jax.models.autoencoders.base import VideoAutoencoder
from motionaura_jax.models.autoencoders.padding import crop
from motionaura_jax.models.autoencoders.tiling import tiled_decode
from motionaura_jax.parallel import constraints, rules
from motionaura_jax.parallel.mesh import batch_shards
from motionaura_jax.pipelines.reconstruct import TILE, WHOLE_PIXELS

Size = tuple[int, int, int]


class Decoder:
    """An autoencoder placed on a mesh, ready to decode latents of any size."""

    def __init__(self, autoencoder: VideoAutoencoder, mesh: jax.sharding.Mesh):
        self._mesh = mesh
        self._autoencoder = jax.device_put(autoencoder, rules.shardings(autoencoder, mesh))

    def __call__(self, latents: Num[np.ndarray, "b t h w *c"], size: Size) -> Iterator[UInt8[np.ndarray, "T H W 3"]]:
        """Decode latents to videos of `size` (frames, height, width).

        Each device decodes one video at a time, and large videos go in tiles, so memory does not grow with the batch.
        """
        if math.prod(size) > WHOLE_PIXELS:
            for one in latents[:, None]:
                yield to_uint8(np.asarray(crop(jnp.asarray(self._in_tiles(one)), size)[0]))
            return
        shards = batch_shards(self._mesh)
        for start in range(0, len(latents), shards):
            part = latents[start : start + shards]
            # Filled up to one size, so that one program serves all.
            filled = part[np.minimum(np.arange(shards), len(part) - 1)]
            with jax.set_mesh(self._mesh):
                videos = _decode(self._autoencoder, self._latent(jnp.asarray(filled), size))
            yield from map(to_uint8, np.asarray(videos)[: len(part)])

    def _latent(self, x: Array, size: Size) -> Latent:
        values = {"tokens" if jnp.issubdtype(x.dtype, jnp.integer) else "values": x}
        return Latent(**values, size=size, latent_space=self._autoencoder.latent_space)

    def _in_tiles(self, one: Num[np.ndarray, "1 t h w *c"]) -> np.ndarray:
        geometry = self._autoencoder.geometry
        tile = tuple(max(2, pixels // stride) for pixels, stride in zip(TILE, geometry.strides, strict=True))
        overlap = tuple(max(1, cells // 4) for cells in tile)

        def decode(piece: Array) -> Array:
            t, h, w = (cells * stride for cells, stride in zip(piece.shape[1:4], geometry.strides, strict=True))
            # The first latent frame of a causal autoencoder holds one video frame alone.
            frames = t - geometry.strides[0] + 1 if geometry.causal else t
            return _decode(self._autoencoder, self._latent(jnp.asarray(piece), (frames, h, w)))

        with jax.set_mesh(self._mesh):
            return tiled_decode(
                geometry,  # type: ignore[arg-type]
                decode,
                one,
                tile=tile,  # type: ignore[arg-type]
                overlap=overlap,  # type: ignore[arg-type]
            )


@jax.jit
def _decode(autoencoder: VideoAutoencoder, latent: Latent) -> Array:
    return autoencoder.decode(constraints.batch(latent))
