"""Rotary embedding: products depend only on position differences, on every grid."""

import jax
import numpy as np
import pytest

from motionaura_jax.models.layers.embeddings import rotary_angles, rotary_positions, rotate


def test_products_depend_on_the_difference_of_positions():
    rng = np.random.default_rng(0)
    query, key = (np.tile(rng.standard_normal((1, 1, 2, 6)).astype(np.float32), (1, 9, 1, 1)) for _ in range(2))
    angle = rotary_angles(rotary_positions("flat1d", (1, 3, 3), signed=False), 6)
    rotated = [jax.jit(rotate)(x, angle) for x in (query, key)]
    products = np.einsum("bqhd,bkhd->hqk", *rotated)
    for offset in range(-8, 9):
        for head in products:
            diagonal = np.diagonal(head, offset)
            np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(rotated[0], axis=-1), np.linalg.norm(query, axis=-1), rtol=1e-5)
    assert np.ptp(products[0, 0]) > 0.1


@pytest.mark.parametrize("head_dim", [2, 6, 16, 70, 110])
def test_axial_angles_follow_each_axis(head_dim):
    grid = (3, 2, 5)
    angle = np.asarray(rotary_angles(rotary_positions("axial", grid, signed=False), head_dim)).reshape(*grid, -1)
    assert angle.shape[-1] == head_dim // 2
    moved = [np.abs(np.diff(angle, axis=axis)).sum((0, 1, 2)) > 0 for axis in range(3)]
    assert (np.sum(moved, axis=0) == 1).all()
    assert abs(moved[0].sum() - head_dim / 4) <= 1
    assert moved[1].sum() == moved[2].sum()


def test_signed_positions_are_frequencies():
    assert rotary_positions("flat1d", (1, 2, 3), signed=True)[:, 0].tolist() == [0, 1, 2, 3, -2, -1]
    assert rotary_positions("flat1d", (1, 1, 5), signed=True)[:, 0].tolist() == [0, 1, 2, -2, -1]
    assert rotary_positions("axial", (1, 3, 2), signed=True).tolist() == [
        [0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, -1, 0], [0, -1, 1],
    ]  # fmt: skip
