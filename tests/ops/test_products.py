"""Products of many rows with a matrix, against numpy in float64 and against `lax.dot_general`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.ops.products import dense, dot_general

LAST_AND_FIRST = (((2,), (0,)), ((), ()))


def arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in ((3, 5, 7), (7, 11), (3, 5, 11))]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_values_and_gradients_equal_numpy_in_float64(dtype, tolerance):
    x, kernel, grad = arrays(dtype)
    value, pull = jax.vjp(dense, x, kernel)
    wide = [np.asarray(a, np.float64) for a in (x, kernel, grad)]
    expected = (
        wide[0] @ wide[1],
        wide[2] @ wide[1].T,
        np.einsum("bsi,bso->io", wide[0], wide[2]),
    )
    for ours, reference in zip((value, *pull(grad)), expected, strict=True):
        assert ours.dtype == dtype and ours.shape == reference.shape
        np.testing.assert_allclose(np.asarray(ours, np.float64), reference, atol=tolerance * np.abs(reference).max())


def test_the_gradient_of_the_matrix_contracts_one_axis():
    x, kernel, grad = arrays()
    text = str(jax.make_jaxpr(lambda x, g: jax.vjp(lambda k: dense(x, k), kernel)[1](g))(x, grad))
    assert "(([0], [0]), ([], []))" in text and "(([0, 1], [0, 1]), ([], []))" not in text


def test_other_products_are_those_of_lax():
    x, kernel, _ = arrays()
    batched = (((2,), (1,)), ((0,), (0,)))
    for numbers, right in (
        (LAST_AND_FIRST, kernel),
        (batched, jnp.moveaxis(x, 1, 2)),
        ((((2,), (1,)), ((), ())), kernel.T),
    ):
        np.testing.assert_allclose(
            dot_general(x, right, numbers), jax.lax.dot_general(x, right, numbers), rtol=1e-6, atol=1e-6
        )
