"""Predictions, dense and factored."""

import jax
import numpy as np

from motionaura_jax.ops.prediction import Prediction


def test_a_factored_prediction_is_the_product_on_its_grid():
    rng = np.random.default_rng(0)
    features, table = rng.standard_normal((2, 12, 4), np.float32), rng.standard_normal((5, 4), np.float32)
    dense = jax.jit(Prediction.dense)(Prediction(values=features, table=table, grid=(3, 2, 2)))
    np.testing.assert_allclose(dense, (features @ table.T).reshape(2, 3, 2, 2, 5), rtol=1e-4, atol=1e-5)
    bias = rng.standard_normal(5, np.float32)
    biased = Prediction(values=features, table=table, bias=bias, grid=(3, 2, 2)).dense()
    np.testing.assert_allclose(biased, np.asarray(dense) + bias, rtol=1e-4, atol=1e-5)


def test_a_dense_prediction_is_itself():
    values = np.zeros((1, 2, 3, 4, 5), np.float32)
    assert Prediction(values=values).dense() is values
