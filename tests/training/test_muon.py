"""The cheap form of Muon against optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from motionaura_jax.ops.orthogonal import gram_newton_schulz, orthogonalize
from motionaura_jax.training.muon import muon

COEFFICIENTS = jnp.array((3.4445, -4.7750, 2.0315))
Numbers = optax.contrib.MuonDimensionNumbers


def draw(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def exact(x, steps=5):
    """Apply the scalar iteration to the singular values in float64."""
    u, s, v = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    a, b, c = map(float, COEFFICIENTS)
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u * s @ v


@pytest.mark.parametrize("spread", [0, 6])
def test_gram_form_matches_the_singular_values(spread):
    x = draw((6, 40)) * jnp.logspace(0, -spread, 6)[:, None]
    x /= jnp.linalg.norm(x)
    np.testing.assert_allclose(gram_newton_schulz(x, COEFFICIENTS), exact(x), atol=2e-4)


@pytest.mark.parametrize(
    ("shape", "inputs"), [((3, 3, 3, 4, 6), 4), ((1, 1, 1, 4, 32), 4), ((5, 6), 1), ((2, 4, 20), 1)]
)
def test_every_shape_matches_the_singular_values(shape, inputs):
    x = draw(shape)
    matrices = x.reshape(-1, int(np.prod(shape[-1 - inputs : -1])), shape[-1])
    expected = np.stack([exact(matrix / jnp.linalg.norm(matrix)) for matrix in matrices]).reshape(shape)
    np.testing.assert_allclose(orthogonalize(x, COEFFICIENTS, inputs), expected, atol=1e-4)


def test_a_zero_gradient_stays_zero():
    assert not orthogonalize(jnp.zeros((4, 40)), COEFFICIENTS, 1).any()


@pytest.mark.parametrize("mu_dtype", [None, jnp.bfloat16])
def test_updates_and_state_are_those_of_optax(mu_dtype):
    params = {"a": draw((3, 3, 3, 4, 6)), "b": draw((4,), 1), "c": draw((4, 8), 2)}
    axes = lambda tree: jax.tree.map(  # noqa: E731
        lambda x: None if x.ndim == 1 else Numbers(tuple(range(x.ndim - 1)), x.ndim - 1), tree
    )
    rate = optax.constant_schedule(1e-3)
    ours = muon(rate, axes, weight_decay=0.1, b1=0.9, b2=0.99, mu_dtype=mu_dtype)
    theirs = optax.contrib.muon(
        rate, weight_decay=0.1, adam_b1=0.9, adam_b2=0.99, mu_dtype=mu_dtype, consistent_rms=0.2,
        muon_weight_dimension_numbers=axes,
    )  # fmt: skip
    states = [ours.init(params), theirs.init(params)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for seed in range(3):
        gradient = jax.tree.map(lambda x, seed=seed: draw(x.shape, 10 + seed), params)
        updates = []
        for index, optimizer in enumerate((ours, theirs)):
            update, states[index] = jax.jit(optimizer.update)(gradient, states[index], params)
            updates.append(update)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *states)
