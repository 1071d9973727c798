"""Quantizers: closed-form losses and gradients, index round trips."""

import itertools
import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core.config import read
from motionaura_jax.models.autoencoders import scalar_quantizers as scalar
from motionaura_jax.models.autoencoders.codebook import init_quantizer
from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.autoencoders.quantizers import (
    auxiliary_loss,
    code_metrics,
    codes_to_values,
    continuous_values,
    normalize,
    quantize,
)
from motionaura_jax.models.autoencoders.tokenizer import fingerprint

ALL = [
    {"quantizer": "vq", "l2": True},
    {"quantizer": "vq", "l2": False},
    {"quantizer": "vq_ema", "l2": True},
    {"quantizer": "vq_ema", "l2": False},
    {"quantizer": "fsq", "fsq_levels": (8, 5, 4, 3)},
    {"quantizer": "lfq"},
]


def _setup(**overrides: Any) -> tuple[MBQVAEConfig, dict, dict, jax.Array]:
    config = MBQVAEConfig(**{"latent_dim": 4, "codebook_size": 16, **overrides})
    params, extra = init_quantizer(config, jax.random.key(0))
    return config, params, extra, jax.random.normal(jax.random.key(1), (2, 2, 3, 3, 4))


@pytest.mark.parametrize("overrides", ALL)
def test_codes_give_back_the_decoder_input(overrides: dict) -> None:
    config, params, extra, z = _setup(**overrides)
    result = quantize(config, params, extra, z)
    assert result.codes is not None
    assert result.codes.shape == z.shape[:-1]
    assert result.codes.dtype == jnp.int32
    assert int(result.codes.min()) >= 0
    assert int(result.codes.max()) < config.vocab_size
    np.testing.assert_array_equal(codes_to_values(config, params, extra, result.codes), result.values)
    assert int(result.stats["counts"].sum()) == result.codes.size


@pytest.mark.parametrize("l2", [False, True])
def test_nearest_code_by_exhaustion(l2: bool) -> None:
    config, params, extra, z = _setup(l2=l2)
    space = [np.asarray(v, np.float64) for v in (z, params["codebook"])]
    if l2:
        space = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in space]
    distance = np.square(space[0][..., None, :] - space[1]).sum(-1)
    np.testing.assert_array_equal(quantize(config, params, extra, z).codes, distance.argmin(-1))


@pytest.mark.parametrize("overrides", [o for o in ALL if o["quantizer"] != "fsq"])
def test_straight_through_gradient_is_the_identity(overrides: dict) -> None:
    config, params, extra, z = _setup(**overrides)
    weights = jax.random.normal(jax.random.key(2), z.shape)
    gradient = jax.grad(lambda z: (quantize(config, params, extra, z).values * weights).sum())(z)
    spherical = config.l2 and config.quantizer != "lfq"
    expected = jax.vjp(lambda z: normalize(config, z), z)[1](weights)[0] if spherical else weights
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)


def test_codebook_learns_from_the_codebook_loss_only() -> None:
    config, params, extra, z = _setup(l2=False)

    def losses(book: jax.Array) -> dict[str, jax.Array]:
        result = quantize(config, {"codebook": book}, extra, z)
        return {**result.losses, "values": result.values.sum()}

    gradients = jax.jacrev(losses)(params["codebook"])
    np.testing.assert_array_equal(gradients["values"], 0.0)
    np.testing.assert_array_equal(gradients["commitment"], 0.0)
    codes = np.asarray(quantize(config, params, extra, z).codes).reshape(-1)
    vectors, expected = np.asarray(z).reshape(-1, 4), np.zeros((16, 4))
    for code, vector in zip(codes, vectors, strict=True):
        expected[code] += 2.0 * (np.asarray(params["codebook"])[code] - vector) / len(codes)
    np.testing.assert_allclose(gradients["codebook"], expected, rtol=1e-4, atol=1e-6)


def test_commitment_gradient_is_closed_form() -> None:
    config, params, extra, z = _setup(l2=False)
    result = quantize(config, params, extra, z)
    gradient = jax.grad(lambda z: quantize(config, params, extra, z).losses["commitment"])(z)
    np.testing.assert_allclose(gradient, 2.0 * (z - result.values) / math.prod(z.shape[:-1]), rtol=1e-5, atol=1e-7)
    zero = jax.grad(lambda z: quantize(config, params, extra, z).losses["codebook"])(z)
    np.testing.assert_array_equal(zero, 0.0)


@pytest.mark.parametrize("quantizer", ["vq", "vq_ema", "lfq"])
def test_beta_weighs_a_mean_over_channels_as_in_the_literature(quantizer: str) -> None:
    """VQ-VAE, VQGAN and MAGVIT average (z - e)^2 over positions and channels; a sum is `latent_dim` times as much."""
    terms = {}
    for reduction in ("sum", "mean"):
        config, params, extra, z = _setup(quantizer=quantizer, l2=False, channel_reduction=reduction)
        result = quantize(config, params, extra, z)
        terms[reduction] = {
            name: float(result.losses[name]) for name in {"commitment", "codebook"} & set(result.losses)
        }
    distance = np.square(np.asarray(z, np.float64) - np.asarray(result.values)).mean()
    assert terms["mean"] == {name: pytest.approx(distance, rel=1e-5) for name in terms["mean"]}
    assert terms["sum"] == {name: pytest.approx(4 * distance, rel=1e-5) for name in terms["sum"]}


def test_presets_use_the_settings_of_the_literature() -> None:
    found = {name: read(f"configs/tokenizer.py:tiny,{name}")["model"] for name in ("euclidean", "lfq")}
    for model in found.values():
        assert (model["beta"], model["channel_reduction"]) == (0.25, "mean")
    assert found["lfq"]["entropy_temperature"] == 0.01  # MAGVIT-v2
    assert MBQVAEConfig().channel_reduction == "sum"  # what configs saved before the key existed mean


def test_how_channels_are_reduced_is_no_part_of_the_latent_space() -> None:
    found = set()
    for reduction in ("sum", "mean"):
        settings, params, extra, _ = _setup(channel_reduction=reduction)
        found.add(fingerprint(settings, params, extra))
    assert len(found) == 1


def test_spherical_codes_have_unit_norm() -> None:
    config, params, extra, z = _setup(l2=True)
    values = quantize(config, {"codebook": 7.0 * params["codebook"]}, extra, z).values
    np.testing.assert_allclose(jnp.linalg.norm(values, axis=-1), 1.0, rtol=1e-5)


def test_ema_codebook_has_no_gradient_and_reports_sums() -> None:
    config, params, extra, z = _setup(quantizer="vq_ema", l2=False)
    result = quantize(config, params, extra, z)
    assert params == {} and set(result.losses) == {"commitment"}
    one_hot = jax.nn.one_hot(result.codes.reshape(-1), 16)
    np.testing.assert_allclose(result.stats["sums"], one_hot.T @ z.reshape(-1, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 6, 5), (2, 3, 4)])
def test_fsq_enumerates_its_whole_grid(levels: tuple[int, ...]) -> None:
    codes = jnp.arange(math.prod(levels), dtype=jnp.int32)
    values = scalar.fsq_values(codes, levels)
    integers = values * np.asarray([size // 2 for size in levels], np.float32)
    np.testing.assert_array_equal(scalar.fsq_codes(integers, levels), codes)
    assert len(np.unique(np.asarray(values), axis=0)) == len(codes)
    assert float(jnp.abs(values).max()) <= 1.0


@hypothesis.given(st.floats(-1e3, 1e3), st.sampled_from([2, 3, 4, 5, 8]))
@hypothesis.settings(max_examples=30)
def test_fsq_stays_on_its_levels(value: float, size: int) -> None:
    integer = float(scalar.fsq_round(jnp.full((1, 1), value), (size,))[0, 0])
    assert integer == round(integer)
    assert -(size // 2) <= integer <= (size - 1) // 2


@pytest.mark.parametrize("size", [2, 4, 5, 8])
def test_fsq_reaches_every_level_and_passes_the_bound_gradient(size: int) -> None:
    z = jnp.linspace(-4.0, 4.0, 801)[:, None]
    assert len(np.unique(np.asarray(scalar.fsq_round(z, (size,))))) == size
    assert float(scalar.fsq_round(jnp.zeros((1, 1)), (size,))[0, 0]) == 0.0
    gradient = jax.grad(lambda z: scalar.fsq_round(z, (size,)).sum())(z)
    assert bool((gradient > 0).all())


def test_lfq_index_round_trip() -> None:
    codes = jnp.arange(2**6, dtype=jnp.int32)
    np.testing.assert_array_equal(scalar.lfq_codes(scalar.lfq_values(codes, 6)), codes)


@pytest.mark.parametrize("dim", [1, 4, 5])
def test_lfq_entropy_equals_the_sum_over_all_codes(dim: int) -> None:
    z = np.random.default_rng(0).normal(size=(7, dim))
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=dim)))
    logits = -np.square(z[:, None] - corners).sum(-1) / 0.7
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    average = p.mean(0)
    expected = -(p * np.log(p)).sum(1).mean() + (average * np.log(average)).sum()
    np.testing.assert_allclose(scalar.lfq_entropy(jnp.asarray(z, jnp.float32), 0.7), expected, rtol=1e-4, atol=1e-5)


def test_lfq_entropy_gradient_is_finite_where_bits_are_certain() -> None:
    gradient = jax.grad(lambda z: scalar.lfq_entropy(z, 0.01))(jnp.array([[50.0, -50.0], [0.0, 3.0]]))
    assert bool(jnp.isfinite(gradient).all())


def test_continuous_bottleneck_passes_through() -> None:
    config, params, extra, z = _setup(quantizer="none")
    result = quantize(config, params, extra, z)
    np.testing.assert_array_equal(result.values, z)
    assert result.codes is None and result.losses == {} and result.stats == {}
    with pytest.raises(ValueError, match="has no codes"):
        codes_to_values(config, params, extra, jnp.zeros((1,), jnp.int32))


def test_continuous_values_are_what_quantization_rounds() -> None:
    config, params, extra, z = _setup(quantizer="fsq", fsq_levels=(8, 5, 4, 3))
    steps = np.array([1 / 4, 1 / 2, 1 / 2, 1.0])
    error = jnp.abs(continuous_values(config, z) - quantize(config, params, extra, z).values)
    assert bool((error <= 0.5 * steps + 1e-6).all())
    sphere = continuous_values(_setup(l2=True)[0], z)
    np.testing.assert_allclose(jnp.linalg.norm(sphere, axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(continuous_values(_setup(l2=False)[0], z), z)


def test_auxiliary_loss_weighs_the_terms() -> None:
    config = MBQVAEConfig(beta=0.5, entropy_weight=0.1, entropy_boost=11.0, entropy_boost_until=0.2)
    losses = {"codebook": jnp.float32(1.0), "commitment": jnp.float32(4.0), "entropy": jnp.float32(-2.0)}
    assert float(auxiliary_loss(config, losses, 0.0)) == pytest.approx(1.0 + 2.0 - 2.2)
    assert float(auxiliary_loss(config, losses, 0.1)) == pytest.approx(1.0 + 2.0 - 1.2)
    assert float(auxiliary_loss(config, losses, 0.9)) == pytest.approx(1.0 + 2.0 - 0.2)
    assert float(auxiliary_loss(config, {}, 0.9)) == 0.0


def test_code_metrics() -> None:
    metrics = code_metrics(jnp.array([5.0, 5.0, 0.0, 0.0]))
    assert float(metrics["perplexity"]) == pytest.approx(2.0)
    assert float(metrics["usage"]) == 0.5


@pytest.mark.parametrize("overrides", ALL)
def test_bfloat16_latents_are_quantized_in_float32(overrides: dict) -> None:
    config, params, extra, z = _setup(**overrides)
    low = quantize(config, params, extra, z.astype(jnp.bfloat16))
    high = quantize(config, params, extra, z.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(low.codes, high.codes)
    assert low.values.dtype == jnp.float32
