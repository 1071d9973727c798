"""Text-to-video presets: `--config=text_to_video:tiny --config.tokenizer=WORKDIR`; they compose: `:L,hartley`."""

import ml_collections

from motionaura_jax.core.config import compose
from motionaura_jax.models.denoisers.config import FAITHFUL
from motionaura_jax.models.denoisers.config import PRESETS as MODELS

BASE = {"system": "text_to_video"}


def _model(name: str, **overrides: object) -> dict:
    return {f"model.{key}": value for key, value in {**MODELS[name], **overrides}.items()}


# The paper reads T5-XXL features (preset `t5_xxl`); an encoder trained here is narrower.
_TEXT = {"text_dim": 512, "text_len": 192, "dtype": "bfloat16", "remat": "full"}

_RECOMMENDED = {
    "optimizer.learning_rate": 2e-4,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.96,
    "optimizer.weight_decay": 0.045,
    "optimizer.clip_norm": 1.0,
    "optimizer.warmup_steps": 5000,
    "train.steps": 580_000,
    "train.ema_decay": 0.9999,
    "train.log_every": 100,
    "checkpoint.every": 2000,
    "evaluate.every": 5000,
    "text.encoder.layers": 6,
    "text.encoder.heads": 8,
    "data.num_frames": 16,
    "data.height": 256,
    "data.width": 256,
    "data.frame_rates": (8.0, 16.0, 24.0),
    "data.batch_size": 512,
    "train.microbatch": 16,
}

# The paper's text encoder instead of one trained with the denoiser.
_T5_XXL = {"text.tower": "google/t5-v1_1-xxl", "text.limit": 180, "model.text_dim": 4096, "model.text_len": 192}

_PAPER_STEPS = 580_000

# D.2 adjusts resolution and aspect ratio without saying how: two areas, squares and 16:9, all multiples of 16.
_SIZES = ((256, 256, 0.4), (192, 320, 0.2), (320, 192, 0.1), (384, 384, 0.1), (288, 512, 0.2))


def _stage(num_frames: int, batch_size: int, until: int) -> dict:
    """Return one stage of recipe D.2; `until` counts steps from the start of the first stage.

    Each stage continues the previous one in the same workdir (`train --override`). It ends at the value that one linear
    decay over all four stages has at its last step, so the four pieces form one line.
    """
    buckets = tuple(
        {"num_frames": num_frames, "height": height, "width": width, "batch_size": batch_size, "weight": weight}
        for height, width, weight in _SIZES
    )
    return {
        **_T5_XXL,
        "optimizer.learning_rate": 1e-5,
        "optimizer.warmup_steps": 0,
        "optimizer.decay": "linear",
        "optimizer.final_scale": 1.0 - until / _PAPER_STEPS,
        "train.steps": until,
        "data.num_frames": num_frames,
        "data.buckets": buckets,
        "data.frame_rates": (8.0, 16.0, 24.0),
    }


PRESETS = {
    # Sizes, with the recommended recipe.
    "tiny": {
        **_model("tiny"),
        "data.batch_size": 16,
        "optimizer.learning_rate": 1e-3,
        "optimizer.b2": 0.96,
        "optimizer.weight_decay": 0.045,
        "optimizer.warmup_steps": 50,
        "train.steps": 2000,
        "train.ema_decay": 0.99,
    },
    # For devices of 80 GB: S for 1 to 8 of them, M for 8 to 32, L for 8 to 64 (docs/text_to_video.md).
    **{name: {**_model(name, **_TEXT), **_RECOMMENDED} for name in MODELS if name != "tiny"},
    # Recipe D.2 of the paper, for 64 A100. Name it after a size: `:L,paper_16`, then `:L,paper_32` in the same workdir and so
    # on. T5-XXL reads the captions: encode them once with `motionaura encode --text`, and give --config.text.cache=FOLDER.
    "paper_16": _stage(16, 512, 120_000),
    "paper_32": _stage(32, 256, 240_000),
    "paper_48": _stage(48, 256, 390_000),
    "paper_64": _stage(64, 128, 580_000),
    # Rendered scenes on a few processor cores, with the tokenizer of `configs/tokenizer.py:demo`.
    "demo": {
        # Attention to the words themselves, not to their transform: the same loss after fewer steps.
        **_model("tiny", spectral="hartley", cross_spectral=False),
        "model.folded_training": True,
        "token_cache": 8192,
        "data.scenes": 1024,
        "data.scene_style": "few",
        "data.batch_size": 8,
        "optimizer.name": "muon",
        "optimizer.learning_rate": 3e-3,
        "optimizer.b2": 0.96,
        "optimizer.warmup_steps": 30,
        "train.steps": 1200,
        "train.ema_decay": 0.98,
        "checkpoint.every": 100,
        "evaluate.every": 300,
        # Weak guidance and a low temperature: tokens of one video must agree with each other more than with their caption.
        "sample.num_inference_steps": 32,
        "sample.guidance_scale": 1.5,
        "sample.temperature": 0.5,
    },
    # Clips of three shapes for one network.
    "buckets": {
        "data.buckets": (
            {"num_frames": 8, "height": 64, "width": 64, "batch_size": 16, "weight": 0.5},
            {"num_frames": 4, "height": 64, "width": 64, "batch_size": 32, "weight": 0.25},
            {"num_frames": 8, "height": 48, "width": 80, "batch_size": 16, "weight": 0.25},
        )
    },
    # The same text encoder with the recommended recipe. Name it after a size: `:L,t5_xxl`.
    "t5_xxl": _T5_XXL,
    # Images as clips of one frame, in a fifth of the steps. Name it after a size other than `tiny`.
    "images": {
        "data.num_frames": 16,
        "data.buckets": (
            {"num_frames": 16, "height": 256, "width": 256, "batch_size": 512, "weight": 0.8},
            {"num_frames": 1, "height": 256, "width": 256, "batch_size": 1024, "weight": 0.2, "fps": 1.0},
        ),
    },
    # The head of MAGVIT: a LayerNorm before the product with the table, and a bias per code.
    "magvit_head": {"model.head_norm": True, "model.output_bias": True},
    # Adapters on a trained model (recipe D.3). Name it after the model's size: `:L,lora --config.init_from=CHECKPOINT`.
    "lora": {
        "model.lora.rank": 64,
        "optimizer.name": "adam",
        "optimizer.learning_rate": 2e-4,
        "optimizer.warmup_steps": 100,
        "train.steps": 2000,
        "train.ema_decay": 0.0,
        "checkpoint.every": 500,
        "evaluate.every": 500,
    },
    # Variations of the network and the diffusion process.
    **{kind: {"model.spectral": kind} for kind in ("re_fft2", "hartley", "hartley3d", "seq_hartley", "filter", "none")},
    "identity": {"model.residual": "identity"},
    "paper_residual": {"model.residual": "paper"},
    "faithful": {f"model.{key}": value for key, value in FAITHFUL.items()},
    # The likelihood bound. "any_order" has the expectation of "elbo" at a finite variance (docs/fidelity.md).
    "elbo": {"diffusion.objective": "any_order", "diffusion.schedule": "linear"},
    "remask": {"diffusion.corrupt_visible": 0.05, "diffusion.visible_weight": 0.1, "sample.remask": 4},
    "remdm": {"sample.sampler": "ancestral", "sample.num_inference_steps": 64, "sample.remask_rate": 0.2},
    # Latent frames with masked fractions of their own, and clips with known frames, as in windows of long videos.
    "per_frame": {"diffusion.per_frame": 0.5, "diffusion.known_frames": 0.25},
    "halton": {"sample.sampler": "halton"},
    "ancestral": {"sample.sampler": "ancestral", "sample.num_inference_steps": 64},
}


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
    """Return the values that differ from the defaults of `TextToVideoRecipe`."""
    return compose(BASE, PRESETS, variant)
