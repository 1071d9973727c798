"""Schedules and sampled times, against float64 derivatives and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.diffusion.process import stratified
from motionaura_jax.diffusion.schedules import Cosine, Discrete, Linear, schedule

CLOSED_FORM = {"linear": lambda u: u, "cosine": lambda u: np.sin(np.pi * u / 2)}


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_weight_is_the_logarithmic_derivative(name):
    u, h = np.linspace(0.01, 0.999, 57), 1e-6
    m = CLOSED_FORM[name]
    np.testing.assert_allclose(schedule(name).masked(u), m(u), rtol=1e-5)
    np.testing.assert_allclose(schedule(name).weight(u), (m(u + h) - m(u - h)) / (2 * h * m(u)), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ends(name):
    chosen = schedule(name)
    assert chosen.masked(0.0) == 0.0
    assert chosen.masked(1.0) == 1.0
    assert chosen.weight(1.0) >= 0.0


@pytest.mark.parametrize("base", [Linear(), Cosine()])
def test_discrete_steps_are_those_of_the_base(base):
    discrete, t = Discrete(base=base, T=1000), np.arange(1, 1001)
    edges = jnp.arange(1, 1001) / 1000  # step t ends at t / T, also where float32 rounds t / T up
    np.testing.assert_array_equal(discrete.masked(edges), base.masked(jnp.float32(t) / 1000))
    np.testing.assert_array_equal(discrete.masked((t - 0.5) / 1000), discrete.masked(edges))
    m = CLOSED_FORM["cosine" if isinstance(base, Cosine) else "linear"](np.arange(1001) / 1000)
    np.testing.assert_allclose(discrete.weight(edges), 1000 * np.diff(m) / m[1:], rtol=1e-3, atol=5e-5)
    assert discrete.masked(0.0) == 0.0


def test_registry_finds_the_nearest_name():
    assert schedule("cosine") == Cosine()
    assert schedule("linear:50") == Discrete(base=Linear(), T=50)
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        schedule("cosin")
    with pytest.raises(UserError, match="linear:1000"):
        schedule("linear:many")
    with pytest.raises(UserError, match="at least 1"):
        schedule("linear:0")


def test_times_fill_every_stratum_once_whatever_the_microbatches():
    key, size = jax.random.key(3), 48
    u = np.asarray(stratified(key, jnp.arange(size), size))
    np.testing.assert_array_equal(np.sort(np.ceil(u * size - 1e-4)), np.arange(1, size + 1))
    assert (u > 0).all() and (u <= 1).all()
    parts = [stratified(key, rows, size) for rows in jnp.arange(size).reshape(4, -1)]
    np.testing.assert_array_equal(np.concatenate(parts), u)
    assert not np.array_equal(stratified(jax.random.key(4), jnp.arange(size), size), u)


def test_time_of_one_sample_is_uniform_over_steps():
    draw = jax.jit(jax.vmap(lambda key: stratified(key, jnp.array([2]), 8)[0]))
    u = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # 99.9 % point of chi-square with 19 degrees of freedom
