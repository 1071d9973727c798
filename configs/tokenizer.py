"""Presets of the 3D-MBQ-VAE tokenizer: `--config=tokenizer:tiny`; they compose, e.g. `:small,causal`."""

import ml_collections

from motionaura_jax.core.config import compose
from motionaura_jax.models.autoencoders.config import PRESETS as MODELS
from motionaura_jax.models.autoencoders.config import MBQVAEConfig

BASE = {"system": "mbq_vae"}


def _model(name: str) -> dict:
    return {f"model.{key}": value for key, value in MODELS[name].items()}


# A short run has no time to learn much inpainting, so it masks little; preset `paper` has the paper's share.
# It has no time for a codebook to catch up either: codes start from latents that already carry meaning and follow them by
# averages, and the commitment loss, a sum over channels, must not outweigh an error averaged over pixels.
_TINY = {
    **_model("tiny"),
    "model.quantizer": "vq_ema",
    "model.l2": False,
    "model.beta": 0.003,
    "model.ema_decay": 0.9,
    "model.continuous_until": 0.05,
    "model.restart_patience": 10,
    "model.restart_pool": 256,
    "masking.frame_probability": 0.1,
    "masking.patch_probability": 0.1,
    "optimizer.learning_rate": 2e-3,
}

# Optimizer of recipe D.1. Warm-up, weight decay, clipping and the average are ours; the paper does not mention them.
_RECIPE = {
    "optimizer.learning_rate": 1e-4,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.99,
    "optimizer.weight_decay": 1e-4,
    "optimizer.warmup_steps": 2000,
    "train.steps": 800_000,
    "train.log_every": 100,
    "checkpoint.every": 2000,
    "evaluate.every": 5000,
}

# What video tokenizers are trained with (MAGVIT, VidTok): 64 to 256 clips a step, a learning rate of 1e-4, several frame
# rates, an adversarial term.  Their perceptual term needs a file of weights: preset `perceptual`.
_RECOMMENDED = {
    **_RECIPE,
    "model.dtype": "bfloat16",
    "model.remat": "full",
    "data.num_frames": 16,
    "data.frame_rates": (8.0, 16.0, 24.0),
    "loss.adversarial": 0.1,
    "discriminator.dtype": "bfloat16",
}

_PAPER = {
    **_RECIPE,
    # One clip of 32x720x1280 in float32 is too large for 80 GB with remat=branch (docs/training.md).
    "model.remat": "layer",
    "train.microbatch": 1,
    "masking.frame_probability": 1.0,
    "masking.learned_fill": False,
    "masking.fill": -1.0,
    "masking.anneal": 0.0,
    "loss.l1": 0.0,
    "loss.mfi": 1.0,
    "data.frame_rates": (8.0, 16.0, 24.0),
    "data.buckets": (
        {"num_frames": 32, "height": 256, "width": 256, "batch_size": 2048, "weight": 0.40},
        {"num_frames": 16, "height": 512, "width": 512, "batch_size": 1024, "weight": 0.10},
        {"num_frames": 32, "height": 720, "width": 1280, "batch_size": 512, "weight": 0.25},
        {"num_frames": 48, "height": 480, "width": 640, "batch_size": 1024, "weight": 0.25},
    ),
    "train.accumulation": 8,
}

PRESETS = {
    # Sizes. Each says which devices it is meant for; `motionaura estimate` says whether it fits.
    # A few processor cores.
    "tiny": {**_TINY, "optimizer.warmup_steps": 50, "train.steps": 2000, "train.ema_decay": 0.99},
    # One card of 24 GB. A step has 64 clips of 256 tokens and hits each of 16384 codes once.
    "small": {
        **_model("small"),
        **_RECOMMENDED,
        "data.height": 128,
        "data.width": 128,
        "data.batch_size": 64,
        "train.microbatch": 8,
        "train.steps": 100_000,
    },
    # 8 devices of 80 GB. A step has 128 clips of 1024 tokens and hits each of 16384 codes 8 times.
    "base": {
        **_model("base"),
        **_RECOMMENDED,
        "data.height": 256,
        "data.width": 256,
        "data.batch_size": 128,
        "train.microbatch": 4,
        "train.steps": 200_000,
    },
    # 32 A100 of 80 GB, as in the paper; not shown to fit at 1280x720 in float32 (docs/training.md). A step hits each of 16384
    # codes 256 to 900 times.
    "paper": {**_model("paper"), **_PAPER},
    # Another size that fits the published parameter counts, and the temporal latent rate that section 3.1 states.
    "paper_f1": {**_model("paper_f1"), **_PAPER},
    "paper_text": {**_model("paper"), **_PAPER, "model.t_stride": 1},
    # The tokenizer that `motionaura demo` trains in a few minutes on two processor cores.  Patches and few blocks make a step
    # several times cheaper than that of `tiny`, and its program compiles faster.
    "demo": {
        **_TINY,
        "model.stem": "patch",
        "model.stem_space": 4,
        "model.channels": (32, 64),
        "model.enc_mb": (1, 1),
        "model.enc_inc": (0, 0),
        "model.dec_mb": (1, 2),
        "model.dec_inc": (0, 0),
        "data.scenes": 1024,
        "data.scene_style": "few",
        "data.batch_size": 4,
        "optimizer.name": "muon",
        "optimizer.warmup_steps": 30,
        "train.steps": 300,
        "train.ema_decay": 0.98,
        "checkpoint.every": 100,
        "evaluate.every": 100,
        "evaluate.pictures": 6,
    },
    # Images as clips of one frame, in a fifth of the steps. Name it after `base`.
    "images": {
        "data.num_frames": 16,
        "data.buckets": (
            {"num_frames": 16, "height": 256, "width": 256, "batch_size": 128, "weight": 0.8},
            {"num_frames": 1, "height": 256, "width": 256, "batch_size": 512, "weight": 0.2, "fps": 1.0},
        ),
    },
    # The perceptual term of MAGVIT. Give --config.loss.perceptual_weights=FILE as well.
    "perceptual": {"loss.perceptual": 0.1},
    # Variations. Name them after a size.
    "causal": {"model.causal": True},
    "fsq": {"model.quantizer": "fsq", "model.latent_dim": 4, "model.fsq_levels": (8, 5, 5, 5)},
    # MAGVIT-v2: temperature 0.01, entropy weight 0.1, and a commitment term of weight 0.25 averaged over channels.
    "lfq": {
        "model.quantizer": "lfq",
        "model.latent_dim": 14,
        "model.beta": 0.25,
        "model.channel_reduction": "mean",
        "model.entropy_temperature": 0.01,
    },
    "vq": {"model.quantizer": "vq"},
    "vq_ema": {"model.quantizer": "vq_ema"},
    "euclidean": {
        "model.l2": False,
        "model.latent_dim": 256,
        "model.beta": 0.25,
        "model.channel_reduction": "mean",  # as in VQ-VAE and MAGVIT; a sum would make beta 256 times as large
    },
    "continuous": {"model.quantizer": "none"},
    # Patches of 4x4 pixels take the place of the first level (`get_config` drops it), so strides stay those of the size.
    "patch": {"model.stem": "patch", "model.stem_space": 4, "model.stem_time": 2},
    "haar": {"model.stem": "haar", "model.stem_space": 4, "model.stem_time": 2},
}
_PATCHES = {"patch", "haar"}
_OF_LEVELS = ("channels", "enc_mb", "enc_inc", "dec_mb", "dec_inc")


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the values that differ from the defaults of `MBQVAERecipe`."""
    values = compose(BASE, PRESETS, variant)
    names = set(filter(None, variant.split(",")))
    already = any("model.stem" in PRESETS[name] for name in names - _PATCHES)  # as in `demo`
    if names & _PATCHES and not already:
        for name in _OF_LEVELS:
            values.model[name] = tuple(values.model.get(name, getattr(MBQVAEConfig, name)))[1:]
    return values
