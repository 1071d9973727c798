"""Settings of the 3D-MBQ-VAE and their presets, without jax.  MotionAura appendix B, sizes fitted to its counts."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from motionaura_jax.errors import UserError, nearest

_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "t_stride": (1, 2, 4),
    "norm": ("group", "frame_gn"),
    "se_pos": ("before", "after"),
    "lead": ("full", "factor"),
    "inception_final": (1, 3),
    "upsample": ("nearest", "subpixel"),
    "quantizer": ("vq", "vq_ema", "fsq", "lfq", "none"),
    "dtype": ("float32", "bfloat16"),
    "frame_fill": ("fill", "copy_neighbour", "shuffle"),
    "kind": ("2d", "3d"),
}


def _check_choices(settings: Any) -> None:
    for field in dataclasses.fields(settings):
        allowed = _CHOICES.get(field.name)
        value = getattr(settings, field.name)
        if allowed is not None and value not in allowed:
            hint = nearest(str(value), map(str, allowed))
            raise UserError(f"{type(settings).__name__}.{field.name}={value!r} is not one of {allowed}{hint}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MBQVAEConfig:
    """Everything that fixes the network and its quantizer; the defaults are the `paper` preset.

    Level i works on `channels[i]` at 1 / 2 ** (i + 1) of the input height and width (the stem has the first factor 2).
    For the fraction `continuous_until` of training the decoder reads unquantized latents, and the codebook starts after it.
    Raises UserError for values that contradict each other.
    """

    # Trunk (appendix B.1-B.5).
    channels: tuple[int, ...] = (64, 128, 256, 512)
    enc_mb: tuple[int, ...] = (1, 2, 3, 3)
    enc_inc: tuple[int, ...] = (1, 1, 2, 2)
    dec_mb: tuple[int, ...] = (2, 2, 2, 7)
    dec_inc: tuple[int, ...] = (1, 1, 2, 2)
    t_stride: int = 4
    latent_dim: int = 16
    z_channels: int = 256
    causal: bool = False
    norm: str = "group"
    se_pos: str = "before"
    lead: str = "full"
    inception_width: float = 1.0
    inception_final: int = 3
    upsample: str = "nearest"
    zero_init: bool = False
    mfi_hidden: int = 256
    dtype: str = "float32"
    conv_impl: str = "auto"
    depthwise_impl: str = "auto"

    # Quantizer.
    quantizer: str = "vq"
    codebook_size: int = 16384
    l2: bool = True
    beta: float = 0.25
    continuous_until: float = 0.0
    ema_decay: float = 0.99
    ema_epsilon: float = 1e-5
    usage_decay: float = 0.95
    restart_threshold: float = 0.03
    restart_patience: int = 50
    restart_until: float = 0.8
    restart_pool: int = 64
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    entropy_weight: float = 0.1
    entropy_boost: float = 10.0
    entropy_boost_until: float = 0.1
    entropy_temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_choices(self)
        levels = len(self.channels)
        for name in ("enc_mb", "enc_inc", "dec_mb", "dec_inc"):
            if len(getattr(self, name)) != levels:
                raise UserError(f"MBQVAEConfig.{name} has {len(getattr(self, name))} entries; channels has {levels}")
        if self.t_stride > 2 ** (levels - 1):
            raise UserError(
                f"MBQVAEConfig.t_stride={self.t_stride} needs {int(math.log2(self.t_stride))} stages between levels, "
                f"but {levels} channel levels have {levels - 1}; add a level or lower t_stride"
            )
        if not 0 <= self.continuous_until < 1:
            raise UserError(f"MBQVAEConfig.continuous_until={self.continuous_until} is a fraction of training below 1")
        if self.quantizer == "fsq" and len(self.fsq_levels) != self.latent_dim:
            raise UserError(
                f"MBQVAEConfig.fsq_levels={self.fsq_levels} needs latent_dim={len(self.fsq_levels)}, "
                f"got {self.latent_dim}"
            )
        if self.quantizer == "lfq" and self.latent_dim > 20:
            raise UserError(f"MBQVAEConfig.latent_dim={self.latent_dim} means 2 ** {self.latent_dim} codes; use <= 20")

    @property
    def s_stride(self) -> int:
        """Pixels per latent cell along height and width."""
        return 2 ** len(self.channels)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Frames, rows and columns per latent cell."""
        return (self.t_stride, self.s_stride, self.s_stride)

    @property
    def time_factors(self) -> tuple[int, ...]:
        """Temporal stride between level i and i + 1: the deepest stages shrink time (spec A.4)."""
        stages, halvings = len(self.channels) - 1, int(math.log2(self.t_stride))
        return (1,) * (stages - halvings) + (2,) * halvings

    @property
    def per_frame(self) -> bool:
        """Whether GroupNorm and squeeze-excitation pool over one frame; causality forces it (spec A.1)."""
        return self.causal or self.norm == "frame_gn"

    @property
    def vocab_size(self) -> int:
        """Number of codes; 0 for the continuous bottleneck."""
        sizes = {"fsq": math.prod(self.fsq_levels), "lfq": 2**self.latent_dim, "none": 0}
        return sizes.get(self.quantizer, self.codebook_size)

    def first_quantized_step(self, total_steps: int) -> int:
        """Training steps before this one decode unquantized latents; 0 where there is no such phase."""
        return round(self.continuous_until * total_steps)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Token grid (t, h, w) of a video of this size, after `padding.pad_to_multiple`."""
        time = 1 + -(-(frames - 1) // self.t_stride) if self.causal else -(-frames // self.t_stride)
        return (time, -(-height // self.s_stride), -(-width // self.s_stride))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Training-time masking (section 3.1); the ratios are ours, the paper gives none.

    `frame_probability` 1.0 is the paper, 0.5 leaves half of the clips whole in time.  `frame_fill` says what stands in
    for the masked frame: the fill color, its neighbor, or another frame of the clip.  `learned_fill` trains the fill
    color; without it masked pixels are 0, the paper's reading.  `anneal` is the last part of training in which masking
    fades out.
    """

    frame_probability: float = 0.5
    frame_fill: str = "fill"
    learned_fill: bool = True
    patch_probability: float = 0.5
    patch_ratio: float = 0.15
    patch_sizes: tuple[int, ...] = (16, 32)
    anneal: float = 0.15

    def __post_init__(self) -> None:
        _check_choices(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """PatchGAN for the optional adversarial term: `2d` judges single frames, `3d` space-time patches."""

    kind: str = "3d"
    channels: tuple[int, ...] = (64, 128, 256)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_choices(self)


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
    """Settings of a named preset with fields replaced.  Raises UserError for an unknown preset."""
    if name not in PRESETS:
        raise UserError(f"unknown tokenizer preset {name!r}{nearest(name, PRESETS)}")
    return MBQVAEConfig(**{**PRESETS[name], **overrides})
