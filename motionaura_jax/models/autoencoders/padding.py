"""Any frame count, height and width: edge replication up to the tokenizer's strides, and the crop back."""

from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from motionaura_jax.models.autoencoders.config import MBQVAEConfig

Size = tuple[int, int, int]
Video = TypeVar("Video", Float[Array, "b t h w c"], Float[np.ndarray, "b t h w c"])


def padded_size(config: MBQVAEConfig, size: Size) -> Size:
    """Smallest (frames, height, width) >= `size` that the encoder takes; causal models need 1 + k * t_stride frames."""
    strides = config.strides
    latent = config.latent_shape(*size)
    frames = 1 + (latent[0] - 1) * strides[0] if config.causal else latent[0] * strides[0]
    return (frames, latent[1] * strides[1], latent[2] * strides[2])


def pad_to_multiple(config: MBQVAEConfig, video: Video) -> tuple[Video, Size]:
    """Replicates the last frame, row and column; returns the padded video and the size to `crop` back to.

    A single image (t = 1) becomes t_stride equal frames, or stays one frame when the model is causal.  A NumPy video
    stays on the host.
    """
    size = (video.shape[1], video.shape[2], video.shape[3])
    widths = _missing(padded_size(config, size), size)
    if not any(after for _, after in widths):
        return video, size
    if isinstance(video, np.ndarray):
        return np.pad(video, widths, mode="edge"), size
    return jnp.pad(video, widths, mode="edge"), size


def _missing(target: Size, size: Size) -> list[tuple[int, int]]:
    return [(0, 0), *((0, new - old) for new, old in zip(target, size, strict=True)), (0, 0)]


def crop(video: Video, size: Size) -> Video:
    """Undoes `pad_to_multiple`."""
    return video[:, : size[0], : size[1], : size[2]]


def check_size(config: MBQVAEConfig, size: Size) -> None:
    """Raises ValueError where `size` is not what `padded_size` would give."""
    if padded_size(config, size) != size:
        rule = f"1 + k * {config.t_stride}" if config.causal else f"k * {config.t_stride}"
        raise ValueError(
            f"video of {size} (frames, height, width): frames must be {rule}, height and width multiples of "
            f"{config.s_stride}; call pad_to_multiple first"
        )
