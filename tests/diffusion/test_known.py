"""Latent cells of the pixels to generate, against a loop over pixels."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from motionaura_jax.diffusion.known import latent_mask
from motionaura_jax.models.autoencoders.geometry import Geometry


@settings(max_examples=10)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    strides=st.sampled_from([(1, 2, 2), (2, 4, 4), (4, 3, 2)]),
    causal=st.booleans(),
    grow=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_a_cell_is_generated_if_one_of_its_pixels_or_neighbors_is(size, strides, causal, grow, seed):
    mask = np.random.default_rng(seed).random((1, *size)) < 0.05
    shape = Geometry(strides=strides, causal=causal).latent_shape(*size)
    expected = np.zeros(shape, bool)
    for frame, row, column in zip(*np.nonzero(mask[0]), strict=True):
        t = -(-frame // strides[0]) if causal else frame // strides[0]
        i, j = row // strides[1], column // strides[2]
        expected[t, max(0, i - grow) : i + grow + 1, max(0, j - grow) : j + grow + 1] = True
    np.testing.assert_array_equal(latent_mask(mask, strides, causal=causal, grow=grow)[0], expected)
