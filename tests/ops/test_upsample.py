"""Transposed convolution against explicit float64 loops, the library call and PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionaura_jax.core.errors import UserError
from motionaura_jax.ops.upsample import conv_transpose_1x4x4, depth_to_space, nearest_conv3d, nearest_upsample


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def scatter(x, kernel, grad):
    """Return output and both gradients of the definition, one product at a time."""
    _, _, height, width, _ = x.shape
    y, grad_x, grad_kernel = np.zeros(grad.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    for h, w, j, k in np.ndindex(height, width, 4, 4):
        row, column = 2 * h + j - 1, 2 * w + k - 1
        if 0 <= row < 2 * height and 0 <= column < 2 * width:
            y[:, :, row, column] += x[:, :, h, w] @ kernel[0, j, k]
            grad_x[:, :, h, w] += grad[:, :, row, column] @ kernel[0, j, k].T
            grad_kernel[0, j, k] += np.einsum("bti,bto->io", x[:, :, h, w], grad[:, :, row, column])
    return y, grad_x, grad_kernel


@functools.partial(jax.jit, static_argnames="impl")
def value_and_gradients(x, kernel, grad, impl):
    y, pullback = jax.vjp(functools.partial(conv_transpose_1x4x4, impl=impl), x, kernel)
    return y, *pullback(grad)


def inputs(shape, features):
    batch, frames, height, width, _ = shape
    grad_shape = (batch, frames, 2 * height, 2 * width, features)
    return draw(shape), draw((1, 4, 4, shape[-1], features), 1), draw(grad_shape, 2)


def check_against_float64(shape, features, impl):
    arguments = inputs(shape, features)
    actual = value_and_gradients(*(jnp.asarray(value, jnp.float32) for value in arguments), impl=impl)
    for ours, exact in zip(actual, scatter(*arguments), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["polyphase", "lax"])
def test_values_and_gradients_match_float64(impl):
    check_against_float64((2, 2, 3, 5, 4), 3, impl)


@settings(max_examples=3)
@given(shape=st.tuples(*[st.integers(1, 3)] * 5), features=st.integers(1, 3))
def test_any_shape(shape, features):
    check_against_float64(shape, features, "auto")


def test_matches_torch():
    torch = pytest.importorskip("torch")
    x, kernel, _ = inputs((1, 2, 3, 4, 5), 2)
    layer = torch.nn.ConvTranspose3d(5, 2, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel).permute(3, 4, 0, 1, 2))
        exact = layer(torch.from_numpy(x).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).numpy()
    actual = conv_transpose_1x4x4(jnp.float32(x), jnp.float32(kernel))
    np.testing.assert_allclose(actual, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["polyphase", "lax"])
def test_bf16_keeps_its_type_and_its_gradients_are_close(impl):
    x, kernel, grad = (jnp.float32(value) for value in inputs((1, 1, 4, 4, 8), 3))
    ours = value_and_gradients(x.astype(jnp.bfloat16), kernel, grad.astype(jnp.bfloat16), impl=impl)
    assert [value.dtype for value in ours] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for value, exact in zip(ours, value_and_gradients(x, kernel, grad, impl=impl), strict=True):
        assert jnp.abs(value.astype(jnp.float32) - exact).max() <= 2e-2 * jnp.abs(exact).max()


def test_faults_are_named():
    with pytest.raises(ValueError, match=r"the kernel is \(1, 3, 3\)"):
        conv_transpose_1x4x4(jnp.zeros((1, 1, 2, 2, 1)), jnp.zeros((1, 3, 3, 1, 1)))
    with pytest.raises(UserError, match="transposed conv impl: unknown value 'poly'"):
        conv_transpose_1x4x4(jnp.zeros((1, 1, 2, 2, 1)), jnp.zeros((1, 4, 4, 1, 1)), impl="poly")


def test_depth_to_space_orders_channels_last():
    x = draw((2, 2, 3, 2, 2 * 3 * 2 * 5))
    y = np.asarray(depth_to_space(jnp.float32(x), (2, 3, 2)))
    blocks = x.reshape(2, 2, 3, 2, 2, 3, 2, 5)
    assert y.shape == (2, 4, 9, 4, 5)
    for i, j, k in np.ndindex(2, 3, 2):
        np.testing.assert_array_equal(y[:, i::2, j::3, k::2], np.float32(blocks[..., i, j, k, :]))


def test_nearest_upsample_repeats():
    x = draw((1, 2, 3, 2, 2)).astype(np.float32)
    exact = x.repeat(2, axis=1).repeat(3, axis=2).repeat(4, axis=3)
    np.testing.assert_array_equal(nearest_upsample(jnp.asarray(x), (2, 3, 4)), exact)


@functools.partial(jax.jit, static_argnames=("factor", "causal", "impl"))
def nearest_and_gradients(x, kernel, grad, factor, causal, impl):
    y, pullback = jax.vjp(lambda x, k: nearest_conv3d(x, k, factor, causal=causal, impl=impl), x, kernel)
    return y, *pullback(grad)


def nearest_reference(x, kernel, factor, causal):
    """Repeat, pad and sum over windows in float64."""
    x = x.repeat(factor, 1).repeat(2, 2).repeat(2, 3)[:, factor - 1 if causal else 0 :]
    x = np.pad(x, ((0, 0), (2, 0) if causal else (1, 1), (0, 0), (0, 0), (0, 0)), mode="edge")
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3, 3), axis=(1, 2, 3))
    return np.einsum("bthwcijk,ijkco->bthwo", windows, kernel)


@pytest.mark.parametrize("impl", ["polyphase", "plain"])
@pytest.mark.parametrize(("factor", "causal"), [(1, False), (2, False), (1, True), (2, True)])
def test_convolution_behind_nearest_upsampling(factor, causal, impl):
    """The operation is linear in each argument, so the pullbacks are checked by inner products."""
    x, kernel = draw((2, 3, 3, 5, 4)), draw((3, 3, 3, 4, 2), 1)
    expected = nearest_reference(x, kernel, factor, causal)
    grad, dx, dk = draw(expected.shape, 2), draw(x.shape, 3), draw(kernel.shape, 4)
    arguments = [jnp.float32(value) for value in (x, kernel, grad)]
    y, grad_x, grad_kernel = nearest_and_gradients(*arguments, factor, causal, impl)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-5)
    exact_x = np.vdot(nearest_reference(dx, kernel, factor, causal), grad)
    exact_kernel = np.vdot(nearest_reference(x, dk, factor, causal), grad)
    np.testing.assert_allclose(np.vdot(grad_x, dx), exact_x, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(np.vdot(grad_kernel, dk), exact_kernel, rtol=1e-5, atol=1e-3)


def test_one_pixel_and_bf16_behind_nearest_upsampling():
    x, kernel = jnp.bfloat16(draw((1, 1, 1, 1, 8))), jnp.float32(draw((3, 3, 3, 8, 4), 1))
    y = nearest_conv3d(x, kernel, 2, impl="polyphase")
    assert y.dtype == jnp.bfloat16
    exact = nearest_reference(np.float64(x), np.float64(kernel), 2, False)
    np.testing.assert_allclose(np.float64(y), exact, atol=2e-2 * np.abs(exact).max())


def test_faults_of_nearest_upsampling_are_named():
    with pytest.raises(ValueError, match="time factor 4"):
        nearest_conv3d(jnp.zeros((1, 1, 2, 2, 1)), jnp.zeros((3, 3, 3, 1, 1)), 4)
