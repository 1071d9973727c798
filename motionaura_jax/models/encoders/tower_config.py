"""Settings of published encoders under the names of their `config.json`, without jax imports.

What a file leaves out has the default that the transformers library gives it.
"""

import dataclasses
from typing import Literal

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Checked, Count, Positive, Several

Activation = Literal["gelu_pytorch_tanh", "gelu_new", "gelu", "quick_gelu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(Checked):
    """The encoder of T5 ("relu") or T5 v1.1 ("gated-gelu").  Raffel et al. 2020; Shazeer 2020."""

    vocab_size: Count = 32128
    d_model: Count = 512
    d_kv: Count = 64
    d_ff: Count = 2048
    num_layers: Count = 6
    num_heads: Count = 8
    relative_attention_num_buckets: Count = 32
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
class TransformerConfig(Checked):
    """What the towers of SigLIP and CLIP share."""

    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
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
    """Pictures of `image_size` squared pixels, cut into squares of `patch_size`."""

    image_size: Count = 224
    patch_size: Count = 16
    num_channels: Literal[3] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise UserError(f"{type(self).__name__}.patch_size={self.patch_size}: is larger than a picture")

    @property
    def patches(self) -> int:
        """Patches in one picture."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipVisionConfig(VisionConfig):
    """SigLIP's picture tower (Zhai et al. 2023); `vision_use_head` pools with a learned query."""

    vision_use_head: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipTextConfig(TransformerConfig):
    """SigLIP's text tower; 0 for `projection_size` means `hidden_size`."""

    vocab_size: Count = 32000
    max_position_embeddings: Count = 64
    projection_size: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(VisionConfig):
    """CLIP's picture tower (Radford et al. 2021); 0 for `projection_dim` is a tower without projection."""

    patch_size: Count = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    projection_dim: int = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(TransformerConfig):
    """CLIP's text tower, which pools at `eos_token_id`.

    The first checkpoints say 2 there and mean the highest id of a text.
    """

    hidden_size: Count = 512
    intermediate_size: Count = 2048
    num_attention_heads: Count = 8
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    vocab_size: Several = 49408
    max_position_embeddings: Count = 77
    eos_token_id: int = 49407
    projection_dim: int = 512
