"""Cross entropy of a linear head in chunks of codes: float64 closed forms, gradients, precision, memory, sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from motionaura_jax.ops.cross_entropy import linear_cross_entropy

entropy = jax.jit(linear_cross_entropy, static_argnames=("chunk", "label_smoothing"))


def draw(batch, length, width, codes, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    hidden, table = (
        jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((batch, length, width), (codes, width))
    )
    return hidden, table, rng.integers(0, codes, (batch, length)), rng.standard_normal((batch, length))


def reference(hidden, table, target, weights, smoothing=0.0):
    """Return values, and gradients of their weighted sum with respect to hidden and table, in float64."""
    hidden, table = (np.asarray(x, np.float64) for x in (hidden, table))
    codes = len(table)
    logs = special.log_softmax(hidden @ table.T, -1)
    truth = (1 - smoothing) * np.eye(codes)[target] + smoothing / codes
    slope = weights[..., None] * (np.exp(logs) - truth)
    return -(truth * logs).sum(-1), slope @ table, np.einsum("bsk,bsd->kd", slope, hidden)


@functools.partial(jax.jit, static_argnames=("chunk", "smoothing"))
def computed(hidden, table, target, weights, chunk, smoothing=0.0):
    def total(hidden, table):
        values = linear_cross_entropy(hidden, table, target, chunk=chunk, label_smoothing=smoothing)
        return (weights * values).sum(), values

    (_, values), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, table)
    return values, *gradients


@settings(max_examples=12)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 7),
    codes=st.integers(1, 40),
    chunk=st.integers(0, 45),
    smoothing=st.sampled_from([0.0, 0.1]),
)
def test_values_and_gradients_of_any_size_are_the_closed_form(batch, length, codes, chunk, smoothing):
    inputs = draw(batch, length, 5, codes, seed=codes)
    for got, want in zip(computed(*inputs, chunk, smoothing), reference(*inputs, smoothing), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_chunks_change_rounding_only():
    inputs = draw(2, 33, 16, 1000)
    for got, want in zip(computed(*inputs, 96), computed(*inputs, 0), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [0, 7, 41])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_bias_equals_one_more_channel(chunk, smoothing):
    """Logits with a bias are products with a table that has the bias as a column, and features that are 1 there."""
    hidden, table, target, weights = draw(2, 5, 6, 41)
    bias = np.random.default_rng(3).standard_normal(41)
    longer = np.concatenate([hidden, np.ones((2, 5, 1))], -1), np.concatenate([table, bias[:, None]], -1)
    values, of_hidden, of_table = reference(*longer, target, weights, smoothing)

    @jax.jit
    def total(hidden, table, bias):
        found = linear_cross_entropy(hidden, table, target, chunk=chunk, bias=bias, label_smoothing=smoothing)
        return (weights * found).sum(), found

    (_, found), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(hidden, table, jnp.asarray(bias, "f4"))
    np.testing.assert_allclose(found, values, rtol=2e-5, atol=2e-5)
    for got, want in zip(gradients, (of_hidden[..., :-1], of_table[:, :-1], of_table[:, -1]), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_large_logits_neither_overflow_nor_lose_the_rest():
    hidden, table, target, weights = draw(1, 6, 4, 50)
    inputs = 1e2 * hidden, 1e2 * table, target, weights
    assert float(jnp.abs(inputs[0] @ inputs[1].T).max()) > 1e4
    values, of_hidden, of_table = computed(*inputs, 7)
    np.testing.assert_allclose(values, reference(*inputs)[0], rtol=1e-5, atol=1e-2)
    assert np.isfinite(of_hidden).all() and np.isfinite(of_table).all()


def test_a_value_that_is_not_finite_is_not_hidden():
    hidden, table, target, _ = draw(1, 4, 3, 20)
    values = entropy(hidden.at[0, 2, 1].set(jnp.nan), table, target, chunk=6)
    np.testing.assert_array_equal(np.isnan(values), [[False, False, True, False]])


def test_bfloat16_features_have_float32_losses_and_table_gradients():
    hidden, table, target, weights = draw(2, 64, 32, 300, dtype=jnp.bfloat16)
    table = table.astype(jnp.float32)  # parameters are float32 and rounded like the features
    values, of_hidden, of_table = computed(hidden, table, target, weights, 64)
    assert (values.dtype, of_hidden.dtype, of_table.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    want = reference(hidden, table, target, weights)
    np.testing.assert_allclose(values, want[0], rtol=1e-5, atol=1e-5)  # products of bfloat16 are exact in float32
    for got, expected in zip((of_hidden, of_table), want[1:], strict=True):
        np.testing.assert_allclose(got, expected, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_never_holds_the_logits_of_all_codes(dtype):
    batch, length, width, codes, chunk = 4, 2048, 64, 16384, 512
    arguments = [
        jax.ShapeDtypeStruct(shape, kind)
        for shape, kind in (
            ((batch, length, width), dtype),
            ((codes, width), jnp.float32),
            ((batch, length), jnp.int32),
            ((batch, length), jnp.float32),
        )
    ]
    bytes_of_logits = batch * length * codes * 4
    temporary = {
        chunk: computed.lower(*arguments, chunk=chunk).compile().memory_analysis().temp_size_in_bytes
        for chunk in (0, chunk)
    }
    assert temporary[0] > bytes_of_logits
    assert temporary[chunk] < bytes_of_logits / 8
