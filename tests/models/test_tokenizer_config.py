"""Presets, parameter counts and contradictions in the settings of the tokenizer."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.models.autoencoders.config import PRESETS, MaskConfig, MBQVAEConfig, preset
from motionaura_jax.models.autoencoders.mbq_vae import MBQVAE


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("paper", 140.17, 176.93),
        ("paper_f1", 139.98, 176.99),
        ("base", 72.56, 82.32),
        ("small", 20.71, 20.71),
        ("tiny", 0.868, 1.833),
    ],
)
def test_parameter_counts(name: str, encoder: float, decoder: float) -> None:
    """Paper table 1 gives 140M and 177M; the other rows are their closed form."""
    config = preset(name)
    video = jax.ShapeDtypeStruct((1, *config.strides, 3), jnp.float32)
    variables = jax.eval_shape(MBQVAE(config).init, jax.random.key(0), video)
    millions = {
        part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) / 1e6
        for part, tree in variables["params"].items()
    }
    assert millions["encoder"] == pytest.approx(encoder, rel=1e-3)
    assert millions["decoder"] == pytest.approx(decoder, rel=1e-3)


def test_defaults_are_the_paper() -> None:
    assert preset("paper") == MBQVAEConfig()
    assert preset("paper").strides == (4, 16, 16)
    assert set(PRESETS) == {"tiny", "small", "base", "paper", "paper_f1"}


@pytest.mark.parametrize(
    ("t_stride", "causal", "frames", "expected"),
    [
        (4, False, 16, 4),
        (4, False, 1, 1),
        (4, False, 17, 5),
        (4, True, 17, 5),
        (4, True, 1, 1),
        (4, True, 18, 6),
        (1, True, 3, 3),
    ],
)
def test_latent_shape(t_stride: int, causal: bool, frames: int, expected: int) -> None:
    config = preset("paper", t_stride=t_stride, causal=causal)
    assert config.latent_shape(frames, 30, 64) == (expected, 2, 4)


def test_time_is_shrunk_in_the_deepest_stages() -> None:
    assert preset("paper").time_factors == (1, 2, 2)
    assert preset("paper", t_stride=1).time_factors == (1, 1, 1)
    assert preset("tiny").time_factors == (1, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"quantizer": "vq_emma"}, "did you mean 'vq_ema'"),
        ({"enc_mb": (1, 1)}, "enc_mb has 2 entries; channels has 4"),
        ({"t_stride": 3}, "t_stride=3 is not one of"),
        ({"quantizer": "fsq", "fsq_levels": (8, 8)}, "needs latent_dim=2, got 16"),
        ({"quantizer": "lfq", "latent_dim": 24}, "use <= 20"),
        ({"stem": "harr"}, "did you mean 'haar'"),
        ({"stem": "patch", "stem_space": 3}, "stem_space=3 is not one of"),
        ({"stem": "haar", "stem_time": 4, "t_stride": 2}, "exceeds t_stride=2, .*; lower it or raise t_stride"),
        ({"stem_space": 4}, "stem=conv has no patches, .* set stem=patch or stem=haar, or leave these two at 1 and 2"),
    ],
)
def test_contradictions_are_one_line(overrides: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MBQVAEConfig(**overrides)


def test_too_few_levels_for_the_temporal_stride() -> None:
    blocks = dict.fromkeys(("enc_mb", "enc_inc", "dec_mb", "dec_inc"), (1, 1))
    with pytest.raises(UserError, match="add a level or lower t_stride"):
        MBQVAEConfig(channels=(8, 16), t_stride=4, **blocks)


def test_patches_take_over_strides_of_the_levels() -> None:
    blocks = dict.fromkeys(("enc_mb", "enc_inc", "dec_mb", "dec_inc"), (1, 1))
    patches = {"stem": "haar", "stem_space": 8, "channels": (8, 16), **blocks}
    assert MBQVAEConfig(**patches, t_stride=4, stem_time=4).time_factors == (1,)
    assert MBQVAEConfig(**patches, t_stride=4, stem_time=2).time_factors == (2,)
    assert MBQVAEConfig(**patches, t_stride=4, stem_time=2).strides == (4, 16, 16)
    with pytest.raises(UserError, match="add a level or lower t_stride, or raise stem_time"):
        MBQVAEConfig(**patches, t_stride=4)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="did you mean 'paper'"):
        preset("papr")
    with pytest.raises(UserError, match="frame_fill"):
        MaskConfig(frame_fill="blank")


def test_vocabulary_sizes() -> None:
    assert preset("tiny").vocab_size == 512
    assert preset("tiny", quantizer="fsq", latent_dim=4).vocab_size == 1000
    assert preset("tiny", quantizer="lfq", latent_dim=10).vocab_size == 1024
    assert preset("tiny", quantizer="none").vocab_size == 0


def test_settings_load_without_jax() -> None:
    load = "import sys, motionaura_jax.models.autoencoders.config"
    code = f"{load}; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
