"""Process-independent sampling: the scan, clamping, and guidance with any number of branches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.diffusion.sampling import Clamped, guided, progress_of, sample, stacked, uniform_times


class State(NamedTuple):
    x: jax.Array


class Euler:
    """Sampler that moves along the prediction."""

    def timesteps(self, steps):
        return uniform_times(steps)

    def init(self, keys, x):
        return State(x)

    def step(self, denoise, state, index, times):
        level = jnp.full(len(state.x), times[index])
        return State(state.x + (times[index] - times[index + 1]) * denoise(state.x, level, progress_of(index, 4)))

    def trace(self, state):
        return state.x.mean()


X = jnp.zeros((2, 1, 2, 2, 3))
KEYS = jax.random.split(jax.random.key(0), 2)


def test_the_scan_goes_through_all_steps_and_records_each():
    result = sample(lambda x, level, progress: jnp.ones_like(x), Euler(), KEYS, X, steps=4)
    np.testing.assert_allclose(result.x, 1.0)
    np.testing.assert_allclose(result.trace, [0.25, 0.5, 0.75, 1.0])
    with pytest.raises(UserError, match="num_inference_steps=0"):
        sample(lambda *_: X, Euler(), KEYS, X, steps=0)


def test_known_positions_are_restored_after_every_step():
    known = jnp.zeros(X.shape[:4], bool).at[:, :, 0].set(True)
    seen = []

    def denoise(x, level, progress):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
        return jnp.ones_like(x)

    clean = jnp.full_like(X, 7.0)
    result = sample(denoise, Clamped(sampler=Euler(), clean=clean, known=known), KEYS, X, steps=4)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert all((x[:, :, 0] == 7.0).all() for x in [*seen, np.asarray(result.x)])
    np.testing.assert_allclose(result.x[:, :, 1], 1.0)


def test_any_number_of_branches_is_weighted():
    class Three:
        def weights(self, progress):
            return 2.0 * progress, -0.5 * progress, 0.25 * progress

        def active(self, progress):
            return True

    shift = stacked(jnp.array([1.0, 2.0]), jnp.array([10.0, 20.0]), jnp.array([100.0]))
    np.testing.assert_array_equal(shift, [1, 2, 10, 20, 100, 100])
    denoise = guided(lambda x, level: x + shift[:, None, None, None, None], Three())
    found = denoise(X, jnp.ones(2), jnp.float32(1.0))
    np.testing.assert_allclose(found[:, 0, 0, 0, 0], [2 - 5 + 25, 4 - 10 + 25])
