"""Tiled coding: exact in time with per-frame statistics, blended in space."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.autoencoders.mbq_vae import MBQVAE, init_tokenizer
from motionaura_jax.models.autoencoders.tiling import tiled_decode, tiled_encode


def _config(**overrides: Any) -> MBQVAEConfig:
    defaults: dict[str, Any] = {
        "channels": (8, 8),
        "enc_mb": (0, 1),
        "enc_inc": (0, 0),
        "dec_mb": (0, 1),
        "dec_inc": (0, 0),
        "t_stride": 2,
        "latent_dim": 2,
        "z_channels": 8,
        "norm": "frame_gn",
        "conv_impl": "lax",
        "depthwise_impl": "lax",
    }
    return MBQVAEConfig(**{**defaults, **overrides})


@pytest.mark.parametrize(
    ("causal", "upsample", "blocks", "patches"),
    [
        (False, "nearest", "mb", {}),
        (False, "subpixel", "mb", {}),
        (True, "nearest", "mb", {}),
        (True, "subpixel", "mb", {}),
        (False, "subpixel", "inc", {}),
        (True, "subpixel", "inc", {}),
        (False, "nearest", "mb", {"stem": "patch", "stem_time": 2}),
        (True, "nearest", "mb", {"stem": "haar", "stem_time": 2}),
    ],
)
def test_temporal_chunks_equal_the_whole(causal: bool, upsample: str, blocks: str, patches: dict) -> None:
    none = {f"{part}_{kind}": (0, 0) for part in ("enc", "dec") for kind in ("mb", "inc")}
    inside = {**none, f"enc_{blocks}": (0, 1), f"dec_{blocks}": (0, 1)}
    config = _config(causal=causal, upsample=upsample, **inside, **patches)
    params, _ = jax.jit(lambda key: init_tokenizer(config, key))(jax.random.key(0))
    model, weights = MBQVAE(config), {"params": params["network"]}
    encode = jax.jit(lambda v: model.apply(weights, v, method="encode"))
    decode = jax.jit(lambda z: model.apply(weights, z, method="decode"))
    video = jax.random.uniform(jax.random.key(1), (1, 81 if causal else 80, 8, 8, 3), minval=-1.0, maxval=1.0)
    z = encode(video)
    reach = config.encoder_reach
    assert config.decoder_reach == reach
    tile = (2 * reach + 5, 2, 2)
    assert tile[0] < z.shape[1]
    np.testing.assert_allclose(tiled_encode(config.geometry, encode, video, tile=tile, reach=reach), z, atol=2e-5)
    np.testing.assert_allclose(tiled_decode(config.geometry, decode, z, tile=tile, reach=reach), decode(z), atol=2e-5)


def test_chunks_without_margin_are_close_but_not_equal() -> None:
    config = _config(enc_mb=(0, 0))
    params, _ = jax.jit(lambda key: init_tokenizer(config, key))(jax.random.key(0))
    model = MBQVAE(config)
    encode = jax.jit(lambda v: model.apply({"params": params["network"]}, v, method="encode"))
    video = jax.random.uniform(jax.random.key(1), (1, 16, 8, 8, 3), minval=-1.0, maxval=1.0)
    difference = np.abs(tiled_encode(config.geometry, encode, video, tile=(4, 2, 2)) - encode(video))
    assert 1e-4 < difference.max() < 2.0


def _mean_pool(x: jax.Array) -> jax.Array:
    b, t, h, w, c = x.shape
    return x.reshape(b, t // 2, 2, h // 4, 4, w // 4, 4, c).mean((2, 4, 6))


def test_blending_is_exact_for_a_local_function() -> None:
    """For a function whose receptive field is one cell, blending is exact if the weights sum to one."""
    config = _config()
    video = jax.random.normal(jax.random.key(0), (2, 14, 36, 28, 3))
    result = tiled_encode(config.geometry, _mean_pool, video, tile=(3, 4, 5), overlap=(1, 2, 3))
    np.testing.assert_allclose(result, _mean_pool(video), atol=1e-6)


def test_overlap_is_blended_linearly() -> None:
    config = _config()
    calls: list[int] = []

    def constant(z: jax.Array) -> jax.Array:
        if not isinstance(z, jax.core.Tracer):
            calls.append(0)
        return jnp.full((1, 2, 4 * z.shape[2], 4 * z.shape[3], 3), float(len(calls)))

    result = tiled_decode(config.geometry, constant, jnp.zeros((1, 1, 4, 6, 2)), tile=(1, 4, 4), overlap=(0, 0, 2))
    assert len(calls) == 2
    row = result[0, 0, 0, :, 0]
    np.testing.assert_allclose(row[:8], 1.0)
    np.testing.assert_allclose(row[8:16], 1.0 + (np.arange(8) + 0.5) / 8, rtol=1e-6)
    np.testing.assert_allclose(row[16:], 2.0)


def test_impossible_overlaps_are_named() -> None:
    config = _config()
    video = jnp.zeros((1, 40, 8, 8, 3))
    with pytest.raises(ValueError, match="along time: tile 4, overlap 4"):
        tiled_encode(config.geometry, _mean_pool, video, tile=(4, 2, 2), overlap=(4, 0, 0))
    with pytest.raises(ValueError, match="to be exact"):
        tiled_encode(config.geometry, _mean_pool, video, tile=(12, 2, 2), overlap=(2, 0, 0), reach=2)
