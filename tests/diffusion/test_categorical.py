"""Sampling from categorical distributions against exact laws and sorted references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from motionaura_jax.diffusion.categorical import gumbel, log_prob, sample_codes

RNG = np.random.default_rng(1)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def repeated(logits, count):
    return jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (4, 1, 1, count, len(logits)))


jitted = jax.jit(sample_codes)


@pytest.mark.parametrize("codes", [1, 7, 16])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_codes_follow_the_softmax(codes, temperature):
    logits = RNG.normal(size=codes) * 1.5
    tokens = np.asarray(jitted(keys(4), repeated(logits, 2000), temperature=temperature))
    counts = np.bincount(tokens.ravel(), minlength=codes)
    assert stats.chisquare(counts, 8000 * special.softmax(logits / temperature)).pvalue > 1e-3 or codes == 1
    assert counts.sum() == 8000 and len(counts) == codes


def test_rare_codes_of_a_large_vocabulary_appear_as_often_as_they_should():
    logits = np.full(4096, -20.0)
    logits[1000] = 0.0  # the other 4095 codes share a probability of 8e-6
    logits[[7, 4095]] = np.log(2e-3)
    tokens = np.asarray(jitted(keys(4), repeated(logits, 2048)))
    hits = (tokens == 7).sum(), (tokens == 4095).sum()
    law = np.array([2e-3, 2e-3, 1.0]) / 1.004
    assert stats.chisquare([*hits, tokens.size - sum(hits)], tokens.size * law).pvalue > 1e-3


def test_gumbel_noise_has_its_upper_tail():
    noise = np.asarray(jax.jit(gumbel, static_argnums=1)(keys(4), (1 << 19,))).ravel()
    assert noise.dtype == np.float32
    for threshold in (0.0, 4.0, 8.0, 11.0):
        expected = noise.size * -np.expm1(-np.exp(-threshold))
        assert abs((noise > threshold).sum() - expected) < 4 * np.sqrt(expected)
    # 23 random bits would put the tail beyond 9 on about a thousand points, so one value in ten would repeat.
    tail = noise[noise > 9.0]
    assert len(np.unique(tail)) > 0.99 * len(tail) > 200


def test_zero_temperature_picks_the_most_likely():
    logits = jnp.asarray(RNG.normal(size=(3, 1, 2, 5, 37)))
    tokens = jitted(keys(3), logits, temperature=0.0)
    np.testing.assert_array_equal(tokens, jnp.argmax(logits, -1))
    assert tokens.dtype == jnp.int32
    np.testing.assert_allclose(
        log_prob(logits, tokens, temperature=0.0), special.log_softmax(logits, -1).max(-1), rtol=1e-5
    )


def test_log_prob_is_that_of_the_tempered_distribution():
    logits, tokens = RNG.normal(size=(2, 1, 1, 3, 6)), RNG.integers(0, 6, (2, 1, 1, 3))
    want = np.take_along_axis(special.log_softmax(logits / 0.7, -1), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_prob(jnp.asarray(logits), tokens, temperature=0.7), want, rtol=1e-5)


def nucleus(logits, top_k, top_p):
    """Return the codes that may be sampled, by sorting in float64."""
    order = np.argsort(-logits, kind="stable")[:top_k]
    mass = np.cumsum(special.softmax(logits[order]))
    return set(order[: np.searchsorted(mass, top_p) + 1])


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 14), st.floats(0.01, 0.99), st.floats(0.3, 3.0))
def test_never_samples_outside_top_k_and_top_p(seed, top_k, top_p, temperature):
    logits = np.random.default_rng(seed).normal(size=11) * 2
    allowed = nucleus(logits / temperature, top_k, top_p)
    tokens = jitted(keys(4, seed), repeated(logits, 500), temperature=temperature, top_k=top_k, top_p=top_p)
    sampled = set(np.unique(tokens).tolist())
    assert sampled <= allowed
    assert sampled if len(allowed) > 1 else sampled == allowed


def test_filters_renormalize_and_keep_everything_at_their_ends():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    tokens = jitted(keys(4), repeated(logits, 2000), top_p=0.65)
    assert stats.chisquare(np.bincount(np.ravel(tokens)), np.array([4, 3]) / 7 * 8000).pvalue > 1e-3
    free = jitted(keys(4), repeated(logits, 2000))
    np.testing.assert_array_equal(jitted(keys(4), repeated(logits, 2000), top_p=1.0, top_k=4), free)
    np.testing.assert_array_equal(jitted(keys(4), repeated(logits, 2000), top_p=0.0), 0)


def test_codes_of_a_sample_depend_on_its_key_alone():
    logits = jnp.asarray(RNG.normal(size=(5, 1, 2, 3, 9)))
    whole, order = jitted(keys(5), logits), jnp.array([3, 1, 0, 4, 2])
    np.testing.assert_array_equal(jitted(keys(5)[order], logits[order]), whole[order])
