"""Settings of the jointly trained text encoder, without jax imports.  T5 (Raffel et al. 2020), section 2.1."""

import dataclasses
from typing import Annotated

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Checked, Count, Positive, at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(Checked):
    """A small T5 encoder; its width is `model.text_dim` of the denoiser that reads it.

    Attributes:
      layers, heads: transformer layers, and attention heads in each.
      mlp_ratio: hidden width of the gated MLP over the width.
      buckets, max_distance: relative distances share `buckets` learned biases, logarithmic up to `max_distance` words.
    """

    layers: Count = 2
    heads: Count = 4
    mlp_ratio: Positive = 2.0
    buckets: Annotated[int, at_least(4)] = 32
    max_distance: Count = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buckets % 4 or self.max_distance <= self.buckets // 4:
            raise UserError(
                f"TextEncoderConfig.buckets={self.buckets}: must be a multiple of 4, and max_distance "
                f"({self.max_distance}) larger than a quarter of it"
            )
