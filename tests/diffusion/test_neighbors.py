"""Neighbor copying: probabilities against loops in float64, recovered weights, and its bound by masking level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from motionaura_jax.diffusion.neighbors import Neighbors, fit

VOCABULARY = 5


def _slow(model, x_t, x0):
    """Return -log p(x0) token by token."""
    result = np.zeros(x0.shape)
    for place in np.ndindex(x0.shape):
        total, share = model.weights[0], model.weights[0] * model.unigram[x0[place]]
        moves = [(axis, step) for axis in (1, 2, 3) for step in (-1, 1)]
        for weight, (axis, step) in zip(model.weights[1:], moves, strict=True):
            other = list(place)
            other[axis] += step
            if 0 <= other[axis] < x0.shape[axis] and x_t[tuple(other)] != VOCABULARY:
                total += weight
                share += weight * (x_t[tuple(other)] == x0[place])
        result[place] = -np.log(share / total)
    return result


def _clips(rng, count):
    """Return clips whose frames mostly repeat, so that the neighbors in time know most."""
    first = rng.integers(0, VOCABULARY, (count, 1, 4, 3))
    fresh = rng.integers(0, VOCABULARY, (count, 4, 4, 3))
    return np.where(rng.random(fresh.shape) < 0.9, first, fresh)


def test_entropy_equals_the_definition_and_is_normalized():
    rng = np.random.default_rng(0)
    weights, unigram = rng.random(7), rng.random(VOCABULARY)
    model = Neighbors(weights=weights / weights.sum(), unigram=unigram / unigram.sum())
    x0 = _clips(rng, 3)
    x_t = np.where(rng.random(x0.shape) < 0.5, VOCABULARY, x0)
    np.testing.assert_allclose(jax.jit(model.entropy)(x_t, x0), _slow(model, x_t, x0), rtol=1e-5)
    total = sum(np.exp(-np.asarray(model.entropy(x_t, np.full_like(x0, k)))) for k in range(VOCABULARY))
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_the_fit_is_the_maximum_of_the_likelihood():
    rng = np.random.default_rng(1)
    tokens = _clips(rng, 40)
    model = fit(tokens, VOCABULARY)
    assert model.weights[1:3].min() > 3 * model.weights[3:].max() and model.weights.sum() == pytest.approx(1)
    masked = np.random.default_rng(0)
    where = masked.random(tokens.shape) < masked.random((len(tokens), 1, 1, 1))
    x_t = np.where(where, VOCABULARY, tokens)

    def loss(logits):
        weights = np.exp(np.concatenate([[0.0], logits]))
        trial = Neighbors(weights=weights / weights.sum(), unigram=model.unigram)
        return float(np.asarray(trial.entropy(x_t, tokens))[where].mean())

    best = optimize.minimize(loss, np.full(6, -1.0), method="Powell", options={"maxiter": 6}).fun
    assert loss(np.log(model.weights[1:] / model.weights[0])) <= best + 1e-3


def test_the_bound_falls_as_more_is_visible():
    rng = np.random.default_rng(2)
    model = fit(_clips(rng, 60), VOCABULARY)
    keys = jax.random.split(jax.random.key(0), 20)
    levels = np.asarray(model.loss_by_level(jnp.asarray(_clips(rng, 20)), keys, levels=4)).mean(axis=1)
    assert (np.diff(levels) > 0).all() and levels[-1] < np.log(VOCABULARY) < 3 * levels[0]
