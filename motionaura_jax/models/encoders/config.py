"""Settings of text and picture encoders, without jax imports.

Published encoders have the field names of their `config.json`; a value that a file leaves out has the default that the
transformers library gives it.
"""

import dataclasses
from typing import Annotated, Literal

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import (
    MAX_CODES,
    Checked,
    Codes,
    Count,
    Depth,
    Length,
    Positive,
    Ratio,
    Side,
    Width,
    between,
)

Activation = Literal["gelu_pytorch_tanh", "gelu_new", "gelu", "quick_gelu"]
OptionalWidth = Annotated[int, between(0, 2**20)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(Checked):
    """The encoder of T5 ("relu") or T5 v1.1 ("gated-gelu").  Raffel et al. 2020; Shazeer 2020."""

    vocab_size: Codes = 32128
    d_model: Width = 512
    d_kv: Width = 64
    d_ff: Width = 2048
    num_layers: Depth = 6
    num_heads: Width = 8
    relative_attention_num_buckets: Length = 32
    relative_attention_max_distance: Count = 128
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"
    layer_norm_epsilon: Positive = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets % 4 or distance <= buckets // 4:
            raise UserError(
                f"T5Config.relative_attention_num_buckets={buckets}: must be a multiple of 4, and "
                f"relative_attention_max_distance ({distance}) larger than a quarter of it"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(Checked):
    """A small T5 v1.1 encoder that trains with a denoiser; its width is `model.text_dim` of that denoiser.

    Attributes:
      layers, heads: transformer layers, and attention heads in each.
      mlp_ratio: hidden width of the gated MLP over the width.
      buckets, max_distance: relative distances share `buckets` learned biases, logarithmic up to `max_distance` words.
    """

    layers: Depth = 2
    heads: Width = 4
    mlp_ratio: Ratio = 2.0
    buckets: Annotated[int, between(4, 2**14)] = 32
    max_distance: Count = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buckets % 4 or self.max_distance <= self.buckets // 4:
            raise UserError(
                f"TextEncoderConfig.buckets={self.buckets}: must be a multiple of 4, and max_distance "
                f"({self.max_distance}) larger than a quarter of it"
            )

    def t5(self, vocab_size: int, width: int) -> T5Config:
        """Return the same settings under T5's names; heads that do not divide the width are rounded up."""
        return T5Config(
            vocab_size=vocab_size,
            d_model=width,
            d_kv=-(-width // self.heads),
            d_ff=round(self.mlp_ratio * width),
            num_layers=self.layers,
            num_heads=self.heads,
            relative_attention_num_buckets=self.buckets,
            relative_attention_max_distance=self.max_distance,
            feed_forward_proj="gated-gelu",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(Checked):
    """Settings that the towers of SigLIP and CLIP share."""

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Width = 12
    hidden_act: Activation = "gelu_pytorch_tanh"
    layer_norm_eps: Positive = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"{type(self).__name__}.hidden_size={self.hidden_size}: must divide by num_attention_heads "
                f"({self.num_attention_heads})"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(TransformerConfig):
    """A picture tower: pictures of `image_size` squared pixels, cut into squares of `patch_size`."""

    image_size: Side = 224
    patch_size: Side = 16
    num_channels: Literal[3] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise UserError(f"{type(self).__name__}.patch_size={self.patch_size}: is larger than a picture")

    @property
    def patches(self) -> int:
        """Return the number of patches in one picture."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipVisionConfig(VisionConfig):
    """SigLIP's picture tower (Zhai et al. 2023); `vision_use_head` pools with a learned query."""

    vision_use_head: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipTextConfig(TransformerConfig):
    """SigLIP's text tower; 0 for `projection_size` means `hidden_size`."""

    vocab_size: Codes = 32000
    max_position_embeddings: Length = 64
    projection_size: OptionalWidth = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(VisionConfig):
    """CLIP's picture tower (Radford et al. 2021); 0 for `projection_dim` means a tower without projection."""

    patch_size: Side = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    projection_dim: OptionalWidth = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(TransformerConfig):
    """CLIP's text tower, which pools at `eos_token_id`.

    The first published checkpoints have 2 there and mean the highest id of a text.
    """

    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_attention_heads: Width = 8
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    vocab_size: Annotated[int, between(2, MAX_CODES)] = 49408
    max_position_embeddings: Length = 77
    eos_token_id: int = 49407
    projection_dim: OptionalWidth = 512
