"""Video through a tokenizer and back, whole or in tiles."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from motionaura_jax.data.frames import to_float, to_uint8
from motionaura_jax.metrics.frame import psnr, ssim
from motionaura_jax.models.autoencoders.padding import crop, pad_to_multiple
from motionaura_jax.models.autoencoders.quantizers import continuous_values
from motionaura_jax.models.autoencoders.tiling import tiled_decode, tiled_encode
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer

Triple = tuple[int, int, int]

WHOLE_PIXELS = 4_000_000  # pixels x frames up to which a video goes through in one piece
TILE = (16, 256, 256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What a tokenizer keeps of a video; frames are uint8 `(t, h, w, 3)`, metrics are against the input on [0, 1]."""

    frames: np.ndarray
    continuous: np.ndarray
    tokens: np.ndarray | None

    def metrics(self, video: np.ndarray) -> dict[str, float]:
        """PSNR in dB and SSIM with and without quantization, as means over frames; SSIM is NaN for sides under 11."""
        versions = {"": self.frames, "_continuous": self.continuous}
        return {
            f"{name}{suffix}": measure(video, frames)
            for suffix, frames in versions.items()
            for name, measure in (("psnr", psnr), ("ssim", ssim))
        }


def reconstruct(tokenizer: Tokenizer, video: np.ndarray, *, tile: Triple | None = None) -> Reconstruction:
    """Encodes and decodes a uint8 video `(t, h, w, 3)` of any size.

    Args:
      tile: frames, height and width that go through at once; by default the whole video if it is small, else `TILE`.
        Tiles overlap by a quarter and are blended.
    """
    if tile is None and math.prod(video.shape[:3]) > WHOLE_PIXELS:
        tile = TILE
    tokenizer = jax.device_put(tokenizer)  # once for all tiles
    # The whole video, before and after, stays on the host; the device sees tiles, and the latent, which is small.
    padded, size = pad_to_multiple(tokenizer.config, to_float(video)[None])
    z = _features(tokenizer, padded, tile)
    values, continuous, tokens = _bottleneck(tokenizer, z)
    return Reconstruction(
        frames=_decode(tokenizer, values, size, tile),
        continuous=_decode(tokenizer, continuous, size, tile),
        tokens=None if tokens is None else np.asarray(tokens[0]),
    )


@jax.jit
def _encode_piece(tokenizer: Tokenizer, padded: jax.Array) -> jax.Array:
    return tokenizer.features(padded)


@jax.jit
def _decode_piece(tokenizer: Tokenizer, values: jax.Array) -> jax.Array:
    return tokenizer.decode_values(values)


@jax.jit
def _bottleneck(tokenizer: Tokenizer, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    code = tokenizer.quantize(z)
    return code.values, continuous_values(tokenizer.config, z), code.codes


def _features(tokenizer: Tokenizer, padded: np.ndarray, tile: Triple | None) -> jax.Array:
    encode = functools.partial(_encode_piece, tokenizer)
    if tile is None:
        return encode(jnp.asarray(padded))
    cells, overlap = _cells(tokenizer, tile)
    return jnp.asarray(tiled_encode(tokenizer.config, encode, padded, tile=cells, overlap=overlap))


def _decode(tokenizer: Tokenizer, values: jax.Array, size: Triple, tile: Triple | None) -> np.ndarray:
    decode = functools.partial(_decode_piece, tokenizer)
    if tile is None:
        video = np.asarray(decode(values))
    else:
        cells, overlap = _cells(tokenizer, tile)
        video = tiled_decode(tokenizer.config, decode, values, tile=cells, overlap=overlap)
    return to_uint8(crop(video, size)[0])


def _cells(tokenizer: Tokenizer, tile: Triple) -> tuple[Triple, Triple]:
    """Tile and overlap in latent cells."""
    cells = tuple(max(2, length // stride) for length, stride in zip(tile, tokenizer.config.strides, strict=True))
    return cells, tuple(max(1, length // 4) for length in cells)  # type: ignore[return-value]
