"""Reveal orders: Halton against scipy and against chance."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from motionaura_jax.diffusion.orders import halton_order, halton_ranks, random_order


@settings(max_examples=15)
@given(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)))
def test_ranks_are_a_permutation(shape):
    np.testing.assert_array_equal(np.sort(halton_ranks(shape), axis=None), np.arange(np.prod(shape)))


def test_order_is_that_of_first_visits_of_the_halton_sequence():
    points = qmc.Halton(2, scramble=False).random(4000)[1:] * [8, 7]
    first = list(dict.fromkeys(map(tuple, points.astype(int).tolist())))
    ranks = halton_ranks((8, 7))
    assert [int(ranks[cell]) for cell in first] == list(range(56))


def test_an_image_is_ordered_as_in_two_dimensions():
    np.testing.assert_array_equal(halton_ranks((1, 6, 8))[0], halton_ranks((6, 8)))


def test_prefixes_cover_space_and_time_evenly():
    """Spread over the 8 octants of 4x8x8 cells: far less than what independent positions show."""

    def spread(ranks):
        octants = [(ranks < prefix).reshape(2, 2, 2, 4, 2, 4).sum((1, 3, 5)) for prefix in range(8, 256, 8)]
        return np.std(octants, axis=(1, 2, 3)).mean()

    chance = np.random.default_rng(0)
    shuffled = np.mean([spread(chance.permutation(256).reshape(4, 8, 8)) for _ in range(20)])
    assert spread(halton_ranks((4, 8, 8))) < 0.6 * shuffled


def test_orders_differ_between_samples_and_depend_on_their_keys_alone():
    keys = jax.random.split(jax.random.key(0), 6)
    for order in (halton_order, random_order):
        run = jax.jit(order, static_argnums=1)
        whole = np.asarray(run(keys, (2, 3, 4)))
        np.testing.assert_array_equal(run(keys[::-1], (2, 3, 4)), whole[::-1])
        assert len(np.unique(whole.reshape(6, -1), axis=0)) > 1
        assert all(len(np.unique(grid)) == 24 for grid in whole)
