"""Settings that the exporter writes to the `config.json` of each network: all that its outputs depend on.  No torch."""

import dataclasses
from typing import Any

from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig
from motionaura_jax.models.encoders.config import TextEncoderConfig

_TOKENIZER = (
    "channels",
    "enc_mb",
    "enc_inc",
    "dec_mb",
    "dec_inc",
    "t_stride",
    "stem",
    "stem_time",
    "stem_space",
    "latent_dim",
    "z_channels",
    "causal",
    "norm",
    "se_pos",
    "lead",
    "inception_width",
    "inception_final",
    "upsample",
    "mfi_hidden",
    "quantizer",
    "codebook_size",
    "l2",
    "fsq_levels",
)
_DENOISER = (
    "vocab_size",
    "width",
    "heads",
    "blocks",
    "mlp_ratio",
    "attention_ratio",
    "spectral",
    "cross_spectral",
    "residual",
    "abs_pos",
    "adaln",
    "time_cond",
    "learned_null",
    "head_norm",
    "output_bias",
    "text_dim",
    "text_len",
)


def tokenizer_settings(config: MBQVAEConfig) -> dict[str, Any]:
    """Return the settings of `modeling_mbq_vae.MBQVAE`."""
    return _chosen(config, _TOKENIZER)


def denoiser_settings(config: SpectralTransformerConfig) -> dict[str, Any]:
    """Return the settings of `SpectralTransformer`, with `rope` resolved and without the settings of disabled adapters."""
    lora = dataclasses.asdict(config.lora) if config.lora.rank else {}
    adapters = {f"lora_{name}": value for name, value in lora.items()}
    return {**_chosen(config, _DENOISER), **adapters, "rope": config.rotary}


def text_settings(config: TextEncoderConfig, vocab_size: int, width: int) -> dict[str, Any]:
    """Return the settings of `modeling_text_encoder.TextEncoder`."""
    return {"vocab_size": vocab_size, "width": width, **dataclasses.asdict(config)}


def _chosen(config: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}
