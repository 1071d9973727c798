"""Settings of the jointly trained text encoder, without jax imports.  T5 (Raffel et al. 2020), section 2.1."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """A small T5 encoder; its width is `model.text_dim` of the denoiser that reads it.

    Attributes:
      layers, heads: transformer layers, and attention heads in each.
      mlp_ratio: hidden width of the gated MLP over the width.
      buckets, max_distance: relative distances share `buckets` learned biases, logarithmic up to `max_distance` words.
    """

    layers: int = 2
    heads: int = 4
    mlp_ratio: float = 2.0
    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        if min(self.layers, self.heads) < 1 or self.mlp_ratio <= 0:
            raise ValueError("layers and heads must be at least 1, mlp_ratio positive")
        if self.buckets < 4 or self.buckets % 4 or self.max_distance <= self.buckets // 4:
            raise ValueError("buckets must be a multiple of 4, and max_distance larger than a quarter of it")
