"""Reconstruction of a video by an autoencoder, whole or in tiles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from motionaura_jax.core.types import Latent
from motionaura_jax.data.frames import to_float
from motionaura_jax.metrics.frame import psnr, ssim
from motionaura_jax.models.autoencoders.base import VideoAutoencoder
from motionaura_jax.models.autoencoders.geometry import Size
from motionaura_jax.models.autoencoders.tiling import pad, tiled_encode
from motionaura_jax.pipelines.decoding import decode_video, fitting_tile, tile_cells


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Reconstruction of a video.

    Attributes:
      frames: the reconstruction.
      continuous: the reconstruction without quantization; the same as `frames` if there is no codebook.
      tokens: token ids; None if there is no codebook.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    continuous: UInt8[np.ndarray, "t h w 3"]
    tokens: Int[np.ndarray, "t h w"] | None

    def metrics(self, video: UInt8[np.ndarray, "t h w 3"]) -> dict[str, float]:
        """Return PSNR in dB and SSIM against the input, with and without quantization, as means over frames.

        SSIM is NaN for sides under 11 pixels.
        """
        versions = {"": self.frames, "_continuous": self.continuous}
        return {
            f"{name}{suffix}": measure(video, frames)
            for suffix, frames in versions.items()
            for name, measure in (("psnr", psnr), ("ssim", ssim))
        }


def reconstruct(
    autoencoder: VideoAutoencoder, video: UInt8[np.ndarray, "t h w 3"], *, tile: Size | None = None
) -> Reconstruction:
    """Encode and decode a video of any size.

    Args:
      tile: frames, height and width of a tile; default as in `decode_video`.
    """
    tile = fitting_tile(video.shape[:3], tile)
    autoencoder = jax.device_put(autoencoder)  # once for all tiles
    # The input and output videos stay on the host; the device holds only tiles and the latent, which is small.
    padded, size = pad(autoencoder.geometry, to_float(video)[None])
    features = _features(autoencoder, padded, tile)

    def decoded(quantized: bool) -> tuple[Latent, np.ndarray]:
        latent = _bottleneck(autoencoder, features, size, quantized)
        return latent, next(decode_video(autoencoder, latent, tile=tile))

    latent, frames = decoded(True)
    continuous = decoded(False)[1] if autoencoder.vocab_size else frames
    return Reconstruction(
        frames=frames, continuous=continuous, tokens=None if latent.tokens is None else np.asarray(latent.tokens[0])
    )


def _features(autoencoder: VideoAutoencoder, padded: np.ndarray, tile: Size | None) -> Float[Array, "1 t h w c"]:
    encode = functools.partial(_encode_piece, autoencoder)
    if tile is None:
        return encode(jnp.asarray(padded))
    cells, overlap = tile_cells(autoencoder.geometry, tile)
    return jnp.asarray(tiled_encode(autoencoder.geometry, encode, padded, tile=cells, overlap=overlap))


@jax.jit
def _encode_piece(autoencoder: VideoAutoencoder, padded: Float[Array, "1 T H W 3"]) -> Float[Array, "1 t h w c"]:
    return autoencoder.features(padded)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _bottleneck(
    autoencoder: VideoAutoencoder, features: Float[Array, "1 t h w c"], size: Size, quantized: bool
) -> Latent:
    return autoencoder.bottleneck(features, size, quantized=quantized)
