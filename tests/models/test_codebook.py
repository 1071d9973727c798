"""k-means, exponential averages and restarts of dead codes."""

import functools
import itertools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.models.autoencoders.codebook import advance, init_quantizer, kmeans, set_codebook
from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.autoencoders.quantizers import code_vectors, quantize

fit = jax.jit(kmeans, static_argnums=0, static_argnames="iterations")
assign = jax.jit(quantize, static_argnums=0)
move = jax.jit(advance, static_argnums=(0, 6))


def _config(**overrides: Any) -> MBQVAEConfig:
    return MBQVAEConfig(**{"latent_dim": 3, "codebook_size": 8, "restart_patience": 2, "restart_pool": 4, **overrides})


def _distortion(vectors: jax.Array, centers: jax.Array) -> float:
    return float(jnp.square(vectors[:, None] - centers).sum(-1).min(1).mean())


@hypothesis.given(st.integers(0, 1000), st.booleans())
@hypothesis.settings(max_examples=6)
def test_lloyd_never_increases_the_distortion(seed: int, l2: bool) -> None:
    config = _config(l2=l2)
    vectors = jax.random.normal(jax.random.key(seed), (60, 3)) * jnp.array([3.0, 1.0, 0.3])
    if l2:
        vectors = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    run = functools.partial(fit, config, jax.random.key(seed), vectors)
    values = [_distortion(vectors, run(iterations=count)) for count in (0, 1, 5)]
    assert all(after <= before + 1e-5 for before, after in itertools.pairwise(values))


def test_kmeans_finds_separated_clusters() -> None:
    true = np.array([[x, y, z] for x in (-9, 9) for y in (-9, 9) for z in (-9, 9)], np.float32)
    vectors = jnp.asarray(np.repeat(true, 20, 0) + 0.01 * np.random.default_rng(0).normal(size=(160, 3)))
    centers = fit(_config(l2=False), jax.random.key(2), vectors, iterations=10)
    # Centers that start in one cluster stay there; Lloyd only guarantees to stay well below a single center (243).
    assert _distortion(vectors, centers) < 80.0


def test_kmeans_with_fewer_vectors_than_codes() -> None:
    vectors = jax.random.normal(jax.random.key(0), (3, 3))
    centers = fit(_config(l2=False), jax.random.key(1), vectors)
    assert centers.shape == (8, 3)
    assert _distortion(vectors, centers) < 1e-4
    assert len(np.unique(np.asarray(centers), axis=0)) == 8


def test_spherical_kmeans_returns_unit_vectors() -> None:
    centers = fit(_config(l2=True), jax.random.key(1), jax.random.normal(jax.random.key(0), (40, 3)))
    np.testing.assert_allclose(jnp.linalg.norm(centers, axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("quantizer", ["vq", "vq_ema"])
def test_set_codebook(quantizer: str) -> None:
    config = _config(quantizer=quantizer, l2=False)
    params, extra = init_quantizer(config, jax.random.key(0))
    codes = jax.random.normal(jax.random.key(3), (8, 3))
    np.testing.assert_array_equal(code_vectors(config, *set_codebook(config, params, extra, codes)), codes)


def _stack(*stats: dict) -> dict:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *stats)


@pytest.mark.parametrize("quantizer", ["vq", "vq_ema"])
def test_microbatches_equal_the_large_batch(quantizer: str) -> None:
    config = _config(quantizer=quantizer, restart_patience=1, restart_threshold=0.5)
    params, extra = init_quantizer(config, jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (4, 2, 2, 2, 3))
    whole = _stack(assign(config, params, extra, z).stats)
    parts = _stack(*(assign(config, params, extra, z[i : i + 2]).stats for i in (0, 2)))
    results = [move(config, params, extra, stats, jax.random.key(5), 3, 100) for stats in (whole, parts)]
    assert float(results[0][2]["restarts"]) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def _unused_code_run(config: MBQVAEConfig, steps: range, total: int) -> tuple[dict, dict, list[float]]:
    """Run updates with vectors near code 0 only."""
    params, extra = init_quantizer(config, jax.random.key(0))
    codes = jnp.concatenate([jnp.ones((1, 3)), -jnp.eye(3), -jnp.ones((4, 3)) * jnp.arange(1, 5)[:, None]])
    params, extra = set_codebook(config, params, extra, codes)
    restarts = []
    for step in steps:
        z = 1.0 + 0.01 * jax.random.normal(jax.random.key(step), (1, 1, 4, 4, 3))
        stats = _stack(assign(config, params, extra, z).stats)
        params, extra, metrics = move(config, params, extra, stats, jax.random.key(step), step, total)
        restarts.append(float(metrics["restarts"]))
    return params, extra, restarts


@pytest.mark.parametrize("quantizer", ["vq", "vq_ema"])
def test_dead_codes_restart_at_current_vectors(quantizer: str) -> None:
    config = _config(quantizer=quantizer, l2=False)
    params, extra, restarts = _unused_code_run(config, range(3), 100)
    # Seven codes are dead after two steps; the pool holds four vectors, so three codes wait another step.
    assert restarts == [0.0, 4.0, 3.0]
    np.testing.assert_allclose(code_vectors(config, params, extra), 1.0, atol=0.1)


@pytest.mark.parametrize("tokens", [64, 4096])
def test_healthy_codes_stay_however_few_positions_a_batch_has(tokens: int) -> None:
    """1024 codes in uniform use, hit 0.06 or 4 times per step."""
    config = MBQVAEConfig(latent_dim=3, codebook_size=1024, restart_pool=16)

    @jax.jit
    def run(extra: dict) -> jax.Array:
        def one(extra: dict, key: jax.Array) -> tuple[dict, jax.Array]:
            counts = jnp.zeros(1024).at[jax.random.randint(key, (tokens,), 0, 1024)].add(1.0)
            stats = {"counts": counts[None], "candidates": jnp.ones((1, 16, 3))}
            _, extra, metrics = advance(config, params, extra, stats, key, 0, 10)
            return extra, metrics["restarts"]

        return jax.lax.scan(one, extra, jax.random.split(jax.random.key(0), 2000))[1].sum()

    params, extra = init_quantizer(config, jax.random.key(0))
    assert float(run(extra)) <= 1


def test_used_codes_stay() -> None:
    config = _config(l2=False)
    params, _, _ = _unused_code_run(config, range(3), 100)
    np.testing.assert_array_equal(params["codebook"][0], 1.0)


def test_restarts_stop_late_in_training() -> None:
    config = _config(l2=False)
    assert sum(_unused_code_run(config, range(80, 84), 100)[2]) == 0.0


@pytest.mark.parametrize("quantizer", ["vq", "vq_ema"])
def test_the_codebook_starts_when_the_continuous_phase_ends(quantizer: str) -> None:
    config = _config(quantizer=quantizer, l2=False, continuous_until=0.03, restart_patience=10**6, restart_pool=64)
    params, extra = init_quantizer(config, jax.random.key(0))
    z = 7.0 + jax.random.normal(jax.random.key(1), (1, 4, 4, 4, 3))
    distances = []
    for step in range(3):
        stats = _stack(assign(config, params, extra, z).stats)
        params, extra, _ = move(config, params, extra, stats, jax.random.key(step), step, 100)
        distances.append(_distortion(z.reshape(-1, 3), code_vectors(config, params, extra)))
    assert min(distances[:2]) > 20.0
    assert distances[2] < 2.0
    assert float(extra["usage"].sum()) == 0.0


def test_ema_codebook_moves_to_the_mean_of_its_vectors() -> None:
    config = _config(quantizer="vq_ema", l2=False, ema_decay=0.5, restart_patience=10**6)
    params, extra = init_quantizer(config, jax.random.key(0))
    z = 2.0 + 0.01 * jax.random.normal(jax.random.key(1), (1, 1, 4, 4, 3))
    code = int(assign(config, params, extra, z).codes[0, 0, 0, 0])
    for step in range(30):
        stats = _stack(assign(config, params, extra, z).stats)
        params, extra, _ = move(config, params, extra, stats, jax.random.key(0), step, 100)
    np.testing.assert_allclose(extra["codebook"][code], 2.0, atol=0.05)
    np.testing.assert_allclose(float(extra["count"][code]), 16.0, rtol=0.05)


@pytest.mark.parametrize(("quantizer", "dim"), [("fsq", 4), ("lfq", 3)])
def test_quantizers_without_codebook_only_report(quantizer: str, dim: int) -> None:
    config = MBQVAEConfig(quantizer=quantizer, latent_dim=dim)
    params, extra = init_quantizer(config, jax.random.key(0))
    stats = _stack(assign(config, params, extra, jax.random.normal(jax.random.key(1), (2, 1, 2, 2, dim))).stats)
    params, extra, metrics = move(config, params, extra, stats, jax.random.key(0), 0, 10)
    assert params == {} and extra == {}
    assert set(metrics) == {"perplexity", "usage"}
