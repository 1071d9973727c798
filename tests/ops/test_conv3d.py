"""Dense 3-D convolution against a float64 sum over windows, its adjoint, and the library call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionaura_jax.core.errors import UserError
from motionaura_jax.ops.conv3d import conv3d

SHAPE = (2, 3, 5, 4, 3)


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def windows(x, window, strides, temporal):
    """Return float64 windows (b t h w c kt kh kw) of the padded video at every stride."""
    kt, kh, kw = window
    times = {"replicate": ((kt - 1) // 2, kt // 2), "causal": (kt - 1, 0), "valid": (0, 0)}[temporal]
    x = np.pad(x, ((0, 0), times, (0, 0), (0, 0), (0, 0)), mode="edge")
    x = np.pad(x, ((0, 0), (0, 0), ((kh - 1) // 2, kh // 2), ((kw - 1) // 2, kw // 2), (0, 0)))
    every = np.lib.stride_tricks.sliding_window_view(x, window, axis=(1, 2, 3))
    return every[:, :: strides[0], :: strides[1], :: strides[2]]


def reference(x, kernel, strides, temporal):
    return np.einsum("bthwcijk,ijkco->bthwo", windows(x, kernel.shape[:3], strides, temporal), kernel)


def reference_gradients(x, kernel, grad, strides, temporal):
    """Return both gradients; the operation is linear in x, so its adjoint is read off the unit videos."""
    units = np.eye(x[:1].size).reshape(-1, *x.shape[1:])
    responses = reference(units, kernel, strides, temporal)
    grad_x = np.einsum("nthwo,bthwo->bn", responses, grad).reshape(x.shape)
    grad_kernel = np.einsum("bthwcijk,bthwo->ijkco", windows(x, kernel.shape[:3], strides, temporal), grad)
    return grad_x, grad_kernel


@functools.partial(jax.jit, static_argnames=("strides", "temporal", "impl"))
def value_and_gradients(x, kernel, grad, strides, temporal="replicate", impl="taps2d"):
    function = functools.partial(conv3d, strides=strides, temporal=temporal, impl=impl)
    y, pullback = jax.vjp(function, x, kernel)
    return y, *pullback(grad)


def check_against_float64(shape, window, strides, temporal, impl="taps2d", features=2):
    x, kernel = draw(shape), draw((*window, shape[-1], features), 1)
    expected = reference(x, kernel, strides, temporal)
    grad = draw(expected.shape, 2)
    arguments = [jnp.asarray(value, jnp.float32) for value in (x, kernel, grad)]
    actual = value_and_gradients(*arguments, strides=strides, temporal=temporal, impl=impl)
    exact = (expected, *reference_gradients(x, kernel, grad, strides, temporal))
    for ours, wide in zip(actual, exact, strict=True):
        np.testing.assert_allclose(ours, wide, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("impl", ["taps2d", "lax"])
@pytest.mark.parametrize(
    ("window", "strides", "temporal"),
    [
        ((3, 3, 3), (1, 1, 1), "replicate"),
        ((3, 3, 3), (2, 2, 2), "causal"),
        ((1, 3, 3), (1, 2, 2), "replicate"),
        ((1, 1, 1), (2, 2, 1), "replicate"),
    ],
)
def test_values_and_gradients_match_float64(window, strides, temporal, impl):
    check_against_float64(SHAPE, window, strides, temporal, impl)


@pytest.mark.parametrize("window", [(3, 3, 1), (3, 1, 3), (3, 1, 1)])
def test_flat_windows(window):
    check_against_float64(SHAPE, window, (1, 1, 1), "valid")


@settings(max_examples=4)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 5),
    window=st.tuples(*[st.integers(1, 4)] * 3),
    strides=st.tuples(*[st.integers(1, 2)] * 3),
    temporal=st.sampled_from(["replicate", "causal"]),
)
def test_any_shape_window_and_stride(shape, window, strides, temporal):
    check_against_float64(shape, window, strides, temporal)


def test_length_is_the_ceiling_of_the_quotient():
    kernel = jnp.zeros((3, 3, 3, 1, 1))
    for frames in (1, 2, 5, 8):
        x = jnp.zeros((1, frames, 7, 6, 1))
        for temporal in ("replicate", "causal"):
            y = jax.eval_shape(functools.partial(conv3d, strides=(2, 2, 2), temporal=temporal), x, kernel)
            assert y.shape == (1, (frames + 1) // 2, 4, 3, 1)


def test_bf16_stays_close_and_keeps_its_type():
    shape = (1, 4, 6, 6, 16)
    x, grad = (jnp.asarray(draw(shape, seed), jnp.bfloat16) for seed in (0, 2))
    kernel = jnp.asarray(draw((3, 3, 3, 16, 16), 1), jnp.bfloat16).astype(jnp.float32)
    actual = value_and_gradients(x, kernel, grad, strides=(1, 1, 1))
    assert [value.dtype for value in actual] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    exact = value_and_gradients(x.astype(jnp.float32), kernel, grad.astype(jnp.float32), strides=(1, 1, 1))
    for ours, wide in zip(actual, exact, strict=True):
        assert jnp.abs(ours.astype(jnp.float32) - wide).max() <= 1e-2 * jnp.abs(wide).max()


def test_vmap():
    x, kernel = jnp.float32(draw((2, 1, 2, 3, 3, 2))), jnp.float32(draw((3, 3, 3, 2, 2), 1))
    np.testing.assert_allclose(jax.vmap(conv3d, (0, None))(x, kernel)[:, 0], conv3d(x[:, 0], kernel), atol=1e-5)


@pytest.mark.parametrize("window", [(1, 1, 1), (3, 1, 1)])
def test_pointwise_windows_need_no_convolution(window):
    jaxpr = jax.make_jaxpr(functools.partial(conv3d, impl="taps2d"))(jnp.zeros(SHAPE), jnp.zeros((*window, 3, 2)))
    assert "dot_general" in str(jaxpr)
    assert "conv_general_dilated" not in str(jaxpr)


def test_faults_are_named():
    with pytest.raises(ValueError, match="2 frames are fewer than the window of 3"):
        conv3d(jnp.zeros((1, 2, 4, 4, 1)), jnp.zeros((3, 1, 1, 1, 1)), temporal="valid")
    with pytest.raises(UserError, match="conv3d impl: unknown value 'taps'; did you mean 'taps2d'"):
        conv3d(jnp.zeros((1, 2, 4, 4, 1)), jnp.zeros((1, 1, 1, 1, 1)), impl="taps")
