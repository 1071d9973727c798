"""The recipe of a tokenizer run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from motionaura_jax.core.limits import NonNegative
from motionaura_jax.models.autoencoders.config import MaskConfig, MBQVAEConfig
from motionaura_jax.systems.autoencoder import AutoencoderRecipe, LossConfig


@dataclass(frozen=True, kw_only=True)
class MBQVAELossConfig(LossConfig):
    """Weights of Eq. 1 and of the optional losses, which the paper does not have: it sets `l1` to 0 and `mfi` to 1.

    Attributes:
      mfi: of the masked-frame-index loss.
    """

    mfi: NonNegative = 0.05


@dataclass(frozen=True, kw_only=True)
class MBQVAERecipe(AutoencoderRecipe):
    """A tokenizer training run."""

    meaning: ClassVar[Mapping[str, str]] = {
        f"model.{key}": "give that value" for key in ("stem", "stem_time", "stem_space")
    }

    model: MBQVAEConfig = field(default_factory=MBQVAEConfig)
    masking: MaskConfig = field(default_factory=MaskConfig)
    loss: MBQVAELossConfig = field(default_factory=MBQVAELossConfig)
