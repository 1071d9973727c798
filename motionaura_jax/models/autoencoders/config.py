"""Settings of the 3D-MBQ-VAE and their presets, without jax.  MotionAura appendix B, sizes fitted to its counts."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Mapping
from typing import Any, Literal

from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.core.limits import (
    MAX_CODES,
    MAX_LEVELS,
    Batch,
    Checked,
    Codes,
    Count,
    Layers,
    NonNegative,
    Pixel,
    Positive,
    Ratio,
    Several,
    Share,
    ShareBelowOne,
    Side,
    Width,
)
from motionaura_jax.models.autoencoders.geometry import Geometry

IMPLEMENTATION_KEYS = ("conv_impl", "depthwise_impl", "transpose_impl", "nearest_impl", "remat", "matmul_precision")
"""Keys of MBQVAEConfig that change speed, memory and rounding only, not the meaning of weights and latents."""
TRAINING_KEYS = ("channel_reduction",)
"""Keys of MBQVAEConfig that shape the training only, and that no hash of a latent space may hold."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MBQVAEConfig(Checked):
    """Settings of the network and its quantizer; the defaults are the `paper` preset.

    Attributes:
      channels: of level i, which works at 1 / (stem_space * 2 ** i) of the input's height and width.
      stem: first layer of the encoder and last of the decoder. "conv" is the paper: strided convolutions, which halve height
        and width. "patch" and "haar" work on patches (`ops.patches`): pixels as channels, plain or as Haar wavelet packets.
      stem_time, stem_space: frames, and rows and columns, of a patch.
      remat: what the backward pass computes again instead of keeping it: nothing (`none`), the inside of each block (`full`),
        also that of each branch of a block (`branch`), and that of each layer of a branch (`layer`). Each keeps less at
        once and repeats the forward pass once more.
      channel_reduction: how the codebook and commitment terms treat the channels of a latent.  "mean" gives `beta` the meaning
        that it has in the literature; under "sum" the same `beta` weighs `latent_dim` times as much.
      entropy_temperature: of the code probabilities in LFQ's entropy; MAGVIT-v2 uses 0.01.
      continuous_until: fraction of training in which the decoder reads unquantized latents; the codebook starts after it.

    Raises:
      UserError: values that contradict each other.
    """

    # Trunk (appendix B.1-B.5).
    channels: tuple[Width, ...] = (64, 128, 256, 512)
    enc_mb: tuple[Layers, ...] = (1, 2, 3, 3)
    enc_inc: tuple[Layers, ...] = (1, 1, 2, 2)
    dec_mb: tuple[Layers, ...] = (2, 2, 2, 7)
    dec_inc: tuple[Layers, ...] = (1, 1, 2, 2)
    t_stride: Literal[1, 2, 4] = 4
    stem: Literal["conv", "patch", "haar"] = "conv"
    stem_time: Literal[1, 2, 4] = 1
    stem_space: Literal[2, 4, 8] = 2
    latent_dim: Width = 16
    z_channels: Width = 256
    causal: bool = False
    norm: Literal["group", "frame_gn"] = "group"
    se_pos: Literal["before", "after"] = "before"
    lead: Literal["full", "factor"] = "full"
    inception_width: Ratio = 1.0
    inception_final: Literal[1, 3] = 3
    upsample: Literal["nearest", "subpixel"] = "nearest"
    zero_init: bool = False
    mfi_hidden: Width = 256
    dtype: Literal["float32", "bfloat16"] = "float32"
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"

    # Choices among equal implementations (`IMPLEMENTATION_KEYS`), see `ops`.
    conv_impl: Literal["auto", "taps2d", "lax"] = "auto"
    depthwise_impl: Literal["auto", "shift", "lax"] = "auto"
    transpose_impl: Literal["auto", "polyphase", "lax"] = "auto"
    nearest_impl: Literal["auto", "blocks", "argmin"] = "auto"
    remat: Literal["none", "full", "branch", "layer"] = "none"

    # Quantizer.
    quantizer: Literal["vq", "vq_ema", "fsq", "lfq", "none"] = "vq"
    codebook_size: Codes = 16384
    l2: bool = True
    beta: NonNegative = 0.25
    channel_reduction: Literal["sum", "mean"] = "sum"
    continuous_until: ShareBelowOne = 0.0
    ema_decay: ShareBelowOne = 0.99
    ema_epsilon: NonNegative = 1e-5
    usage_decay: ShareBelowOne = 0.95
    restart_threshold: NonNegative = 0.03
    restart_patience: Count = 50
    restart_until: Share = 0.8
    restart_pool: Batch = 64
    fsq_levels: tuple[Several, ...] = (8, 5, 5, 5)
    entropy_weight: NonNegative = 0.1
    entropy_boost: NonNegative = 10.0
    entropy_boost_until: Positive = 0.1
    entropy_temperature: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.channels)
        if levels > MAX_LEVELS:
            raise UserError(f"MBQVAEConfig.channels has {levels} entries; use at most {MAX_LEVELS}")
        for name in ("enc_mb", "enc_inc", "dec_mb", "dec_inc"):
            if len(getattr(self, name)) != levels:
                raise UserError(f"MBQVAEConfig.{name} has {len(getattr(self, name))} entries; channels has {levels}")
        if self.stem == "conv" and (self.stem_time, self.stem_space) != (1, 2):
            raise UserError(
                f"MBQVAEConfig.stem=conv has no patches, but stem_time={self.stem_time} and stem_space={self.stem_space}; "
                f"set stem=patch or stem=haar, or leave these two at 1 and 2"
            )
        if self.stem_time > self.t_stride:
            raise UserError(
                f"MBQVAEConfig.stem_time={self.stem_time} exceeds t_stride={self.t_stride}, the frames per latent frame; "
                f"lower it or raise t_stride"
            )
        if (stages := int(math.log2(self.t_stride // self.stem_time))) > levels - 1:
            raise UserError(
                f"MBQVAEConfig.t_stride={self.t_stride} needs {stages} stages between levels, "
                f"but {levels} channel levels have {levels - 1}; add a level or lower t_stride"
                + ("" if self.stem == "conv" else ", or raise stem_time")
            )
        if self.quantizer == "fsq" and len(self.fsq_levels) != self.latent_dim:
            raise UserError(
                f"MBQVAEConfig.fsq_levels={self.fsq_levels} needs latent_dim={len(self.fsq_levels)}, "
                f"got {self.latent_dim}"
            )
        if self.quantizer == "fsq" and self.vocab_size > MAX_CODES:
            raise UserError(f"MBQVAEConfig.fsq_levels={self.fsq_levels} means more than {MAX_CODES} codes; lower them")
        if self.quantizer == "lfq" and self.latent_dim > 20:
            raise UserError(f"MBQVAEConfig.latent_dim={self.latent_dim} means 2 ** {self.latent_dim} codes; use <= 20")

    @property
    def s_stride(self) -> int:
        """Return the pixels per latent cell along height and width."""
        return self.stem_space * 2 ** (len(self.channels) - 1)

    @property
    def patch(self) -> tuple[int, int, int]:
        """Return the frames, rows and columns of a patch."""
        return (self.stem_time, self.stem_space, self.stem_space)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Return the frames, rows and columns per latent cell."""
        return (self.t_stride, self.s_stride, self.s_stride)

    @property
    def time_factors(self) -> tuple[int, ...]:
        """Return the temporal strides between levels: the deepest stages shrink time."""
        stages, halvings = len(self.channels) - 1, int(math.log2(self.t_stride // self.stem_time))
        return (1,) * (stages - halvings) + (2,) * halvings

    @property
    def per_frame(self) -> bool:
        """Return True if GroupNorm and squeeze-excitation pool over one frame; causality forces it."""
        return self.causal or self.norm == "frame_gn"

    @property
    def vocab_size(self) -> int:
        """Return the number of codes; 0 for the continuous bottleneck."""
        sizes = {"fsq": math.prod(self.fsq_levels), "lfq": 2**self.latent_dim, "none": 0}
        return sizes.get(self.quantizer, self.codebook_size)

    def first_quantized_step(self, total_steps: int) -> int:
        """Return the first step that decodes quantized latents; 0 without a continuous phase."""
        return round(self.continuous_until * total_steps)

    @property
    def geometry(self) -> Geometry:
        """Return how sizes of videos and latents relate."""
        return Geometry(strides=self.strides, causal=self.causal, channels=self.latent_dim)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the token grid (t, h, w) of a video of this size, after padding."""
        return self.geometry.latent_shape(frames, height, width)

    @property
    def encoder_reach(self) -> int:
        """Return how many latent cells a temporal border of the encoder's input can affect; an upper bound."""
        return self._reach(self.enc_mb, self.enc_inc)

    @property
    def decoder_reach(self) -> int:
        """Return how many latent cells a temporal border of the decoder's input can affect; an upper bound."""
        return self._reach(self.dec_mb, self.dec_inc)

    def _reach(self, num_mb: tuple[int, ...], num_inception: tuple[int, ...]) -> int:
        # Count temporal kernels of radius 1, in video frames: two per MBConv, two or three per inception block, one per
        # resampling, one next to the latent.  Causal kernels reach twice as far, into the past alone, and the first
        # cell is short.
        inception = 3 if self.inception_final == 3 else 2
        spacings = list(itertools.accumulate((self.stem_time, *self.time_factors), operator.mul))
        blocks = sum(n * (2 * mb + inception * inc) for n, mb, inc in zip(spacings, num_mb, num_inception, strict=True))
        frames = blocks + sum(spacings[1:]) + spacings[-1]
        return 1 + -(-2 * frames // self.t_stride) if self.causal else -(-frames // self.t_stride)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskConfig(Checked):
    """Masking during training (section 3.1); the ratios are ours, the paper gives none.

    Attributes:
      frame_probability: share of clips that lose a frame; 1.0 is the paper.
      frame_fill: replacement of the masked frame: the fill color, its neighbor, or another frame of the clip.
      learned_fill: train the fill color; without it masked pixels have the value `fill`.
      fill: from -1 (black, as in figure 2) to 1.
      patch_probability, patch_ratio, patch_sizes: share of clips that lose patches, share of their patches, and the sides
        in pixels to choose from.
      anneal: last part of training in which masking fades out.
    """

    frame_probability: Share = 0.5
    frame_fill: Literal["fill", "copy_neighbour", "shuffle"] = "fill"
    learned_fill: bool = True
    fill: Pixel = 0.0
    patch_probability: Share = 0.5
    patch_ratio: Share = 0.15
    patch_sizes: tuple[Side, ...] = (16, 32)
    anneal: Share = 0.15


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(Checked):
    """PatchGAN for the optional adversarial loss: `2d` judges single frames, `3d` space-time patches.

    `weight` multiplies the weight of its generator term, for recipes with several discriminators.
    """

    kind: Literal["2d", "3d"] = "3d"
    channels: tuple[Width, ...] = (64, 128, 256)
    dtype: Literal["float32", "bfloat16"] = "float32"
    weight: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.channels) > MAX_LEVELS:
            raise UserError(f"DiscriminatorConfig.channels has {len(self.channels)} entries; use at most {MAX_LEVELS}")


_BASE: dict[str, Any] = {
    "channels": (64, 128, 256, 512),
    "enc_mb": (1, 1, 1, 1),
    "enc_inc": (0, 1, 1, 1),
    "dec_mb": (1, 1, 1, 2),
    "dec_inc": (0, 1, 1, 1),
    "z_channels": 512,
}
_SMALL: dict[str, Any] = {
    "channels": (32, 64, 128, 256),
    "enc_mb": (1, 1, 1, 2),
    "enc_inc": (0, 1, 1, 1),
    "dec_mb": (1, 1, 1, 2),
    "dec_inc": (0, 1, 1, 1),
    "z_channels": 256,
}
_TINY: dict[str, Any] = {
    "channels": (24, 48, 96),
    "enc_mb": (0, 1, 1),
    "enc_inc": (0, 0, 1),
    "dec_mb": (0, 1, 1),
    "dec_inc": (0, 0, 1),
    "z_channels": 16,
    "t_stride": 2,
    "inception_width": 0.5,
    "inception_final": 1,
    "upsample": "subpixel",
    "codebook_size": 512,
}
_PAPER: dict[str, Any] = {
    "channels": (64, 128, 256, 512),
    "enc_mb": (1, 2, 3, 3),
    "enc_inc": (1, 1, 2, 2),
    "dec_mb": (2, 2, 2, 7),
    "dec_inc": (1, 1, 2, 2),
    "z_channels": 256,
}
_PAPER_F1: dict[str, Any] = {
    **_PAPER,
    "enc_mb": (1, 2, 2, 7),
    "enc_inc": (1, 1, 2, 3),
    "dec_mb": (1, 1, 3, 9),
    "dec_inc": (0, 1, 2, 4),
    "inception_final": 1,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": _TINY,
    "small": _SMALL,
    "base": _BASE,
    "paper": _PAPER,
    "paper_f1": _PAPER_F1,
}


def preset(name: str, **overrides: Any) -> MBQVAEConfig:
    """Return the settings of a named preset with fields replaced.  Raises UserError for an unknown preset."""
    if name not in PRESETS:
        raise UserError(f"unknown tokenizer preset {name!r}{nearest(name, PRESETS)}")
    return MBQVAEConfig(**{**PRESETS[name], **overrides})
