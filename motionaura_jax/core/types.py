"""Values that the parts of the package exchange."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

PyTree = Any
"""Nested dicts of arrays."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent:
    """Encoding of a video by an autoencoder.

    Attributes:
      values: continuous (or quantized) latents, `(batch, t, h, w, channel)`, or None.
      tokens: code indices, `(batch, t, h, w)`, or None for an autoencoder without a codebook.
      size: frames, height and width of the video before padding, to which `decode` crops.
      latent_space: identifier of the meaning of the numbers; a consumer refuses any other latent space.
    """

    values: Float[Array, "b t h w d"] | None = None
    tokens: Int[Array, "b t h w"] | None = None
    size: tuple[int, int, int] = dataclasses.field(metadata={"static": True}, default=(0, 0, 0))
    latent_space: str = dataclasses.field(metadata={"static": True}, default="")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cond:
    """Conditioning of a denoiser; absent fields are None.

    Attributes:
      tokens: embedded context sequence (text), `(batch, length, channel)`.
      token_mask: True where `tokens` holds content, `(batch, length)`.
      scalars: one number per sample by name, e.g. `{"fps": (batch,)}`.
      frame_pos: position of each latent frame, `(batch, t)`.
      concat: extra channels to concatenate to the input, `(batch, t, h, w, channel)`.
      temporal_gate: strength of temporal layers, `(batch,)`; 0 treats frames as images.
    """

    tokens: Float[Array, "b l d"] | None = None
    token_mask: Bool[Array, "b l"] | None = None
    scalars: Mapping[str, Float[Array, " b"]] = dataclasses.field(default_factory=dict)
    frame_pos: Float[Array, "b t"] | None = None
    concat: Float[Array, "b t h w c"] | None = None
    temporal_gate: Float[Array, " b"] | None = None
