"""Depthwise 3-D convolution against a float64 sum over windows, its adjoint, and the library call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from motionaura_jax.core.errors import UserError
from motionaura_jax.ops.conv3d import pad3d, pad_time
from motionaura_jax.ops.depthwise import depthwise_conv3d, kernel_gradient, stacked_kernel_gradient

SHAPE = (2, 3, 5, 4, 6)
WINDOW = (3, 3, 3)


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def windows(x, window, temporal):
    """Return float64 windows (b t h w c kt kh kw) of the padded video."""
    kt, kh, kw = window
    times = {"replicate": ((kt - 1) // 2, kt // 2), "causal": (kt - 1, 0), "valid": (0, 0)}[temporal]
    x = np.pad(x, ((0, 0), times, (0, 0), (0, 0), (0, 0)), mode="edge")
    x = np.pad(x, ((0, 0), (0, 0), ((kh - 1) // 2, kh // 2), ((kw - 1) // 2, kw // 2), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(x, window, axis=(1, 2, 3))


def reference(x, kernel, temporal):
    return np.einsum("bthwcijk,ijkc->bthwc", windows(x, kernel.shape[:3], temporal), kernel)


def reference_gradients(x, kernel, grad, temporal):
    """Return both gradients; the operation is linear in x, so its adjoint is read off the unit videos."""
    units = np.eye(x[:1].size).reshape(-1, *x.shape[1:])
    responses = reference(units, kernel, temporal)
    grad_x = np.einsum("nthwc,bthwc->bn", responses, grad).reshape(x.shape)
    grad_kernel = np.einsum("bthwcijk,bthwc->ijkc", windows(x, kernel.shape[:3], temporal), grad)
    return grad_x, grad_kernel


@functools.partial(jax.jit, static_argnames=("temporal", "impl"))
def value_and_gradients(x, kernel, grad, temporal="replicate", impl="auto"):
    y, pullback = jax.vjp(functools.partial(depthwise_conv3d, temporal=temporal, impl=impl), x, kernel)
    return y, *pullback(grad)


def check_against_float64(shape, window, temporal):
    x, kernel = draw(shape), draw((*window, shape[-1]), 1)
    expected = reference(x, kernel, temporal)
    grad = draw(expected.shape, 2)
    arguments = [jnp.asarray(value, jnp.float32) for value in (x, kernel, grad)]
    actual = value_and_gradients(*arguments, temporal=temporal)
    for ours, exact in zip(actual, (expected, *reference_gradients(x, kernel, grad, temporal)), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temporal", ["replicate", "causal", "valid"])
def test_values_and_gradients_match_float64(temporal):
    check_against_float64(SHAPE, WINDOW, temporal)


@settings(max_examples=4)
@given(
    shape=st.tuples(*[st.integers(1, 3)] * 5),
    window=st.tuples(*[st.integers(1, 4)] * 3),
    temporal=st.sampled_from(["replicate", "causal"]),
)
def test_any_shape_and_window(shape, window, temporal):
    check_against_float64(shape, window, temporal)


@pytest.mark.parametrize("shape", [(1, 4, 6, 6, 16), (1, 8, 32, 32, 128)])
def test_matches_the_library_call(shape):
    """The gradient of the kernel sums one product per position of the video, so its tolerance is relative to their size."""
    x, kernel = draw(shape), draw((*WINDOW, shape[-1]), 1)
    arguments = [jnp.asarray(value, jnp.float32) for value in (x, kernel, draw(x.shape, 2))]
    library = value_and_gradients(*arguments, impl="lax")
    for ours, exact in zip(value_and_gradients(*arguments, impl="shift"), library, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(exact).max()))


def test_bf16_sums_in_fp32():
    shape = (1, 4, 16, 16, 8)
    x, grad = (jnp.asarray(draw(shape, seed), jnp.bfloat16) for seed in (0, 2))
    kernel = jnp.asarray(draw((*WINDOW, 8), 1), jnp.float32)
    y, grad_x, grad_kernel = value_and_gradients(x, kernel, grad)
    assert (y.dtype, grad_x.dtype, grad_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    exact = value_and_gradients(x.astype(jnp.float32), kernel, grad.astype(jnp.float32))
    for ours, wide, tolerance in zip((y, grad_x, grad_kernel), exact, (4e-3, 1e-2, 1e-5), strict=True):
        difference = jnp.abs(ours.astype(jnp.float32) - wide).max()
        assert difference <= tolerance * jnp.abs(wide).max()


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_kernel_gradient_does_not_depend_on_the_tile(frames):
    x, grad = draw((2, 6, 5, 4, 3)), draw((2, 4, 3, 2, 3), 1)
    exact = np.einsum("bthwcijk,bthwc->ijkc", np.lib.stride_tricks.sliding_window_view(x, WINDOW, (1, 2, 3)), grad)
    actual = kernel_gradient(jnp.float32(x), jnp.float32(grad), WINDOW, frames=frames)
    np.testing.assert_allclose(actual, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [(3, 3, 3), (1, 2, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stacked_kernel_gradient_equals_the_loop_and_float64(window, dtype):
    size = tuple(3 + side - 1 for side in window)
    x, grad = jnp.asarray(draw((2, *size, 5)), dtype), jnp.asarray(draw((2, 3, 3, 3, 5), 1), dtype)
    shifted = np.lib.stride_tricks.sliding_window_view(np.asarray(x, np.float64), window, (1, 2, 3))
    exact = np.einsum("bthwcijk,bthwc->ijkc", shifted, np.asarray(grad, np.float64))
    stacked = jax.jit(lambda x, grad: stacked_kernel_gradient(x, grad, window))(x, grad)
    assert stacked.dtype == jnp.float32
    np.testing.assert_allclose(stacked, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stacked, kernel_gradient(x, grad, window, frames=3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("tpu", True), ("cuda", False)])
def test_only_gpus_compute_the_kernel_gradient_without_a_loop(platform, loops):
    device = jax.sharding.AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        x, kernel = jnp.zeros(SHAPE), jnp.zeros((*WINDOW, SHAPE[-1]))
        program = str(jax.make_jaxpr(jax.grad(lambda kernel: depthwise_conv3d(x, kernel).sum()))(kernel))
    assert ("scan[" in program) == loops


def test_vmap_and_second_derivative():
    x, kernel = jnp.float32(draw((2, 1, 2, 3, 3, 2))), jnp.float32(draw((*WINDOW, 2), 1))

    def penalty(kernel, impl):
        slope = jax.grad(lambda video: jnp.sum(depthwise_conv3d(video, kernel, impl=impl) ** 2))
        return jnp.sum(jax.vmap(slope)(x) ** 2)

    ours, exact = (jax.jit(jax.grad(functools.partial(penalty, impl=impl)))(kernel) for impl in ("shift", "lax"))
    np.testing.assert_allclose(ours, exact, rtol=1e-4)


def test_causal_output_does_not_see_the_future():
    x, kernel = jnp.float32(draw(SHAPE)), jnp.float32(draw((*WINDOW, SHAPE[-1]), 1))
    changed = x.at[:, 2:].set(0)
    first, second = (depthwise_conv3d(video, kernel, temporal="causal") for video in (x, changed))
    np.testing.assert_array_equal(first[:, :2], second[:, :2])
    assert not np.allclose(first[:, 2], second[:, 2])


def test_padding_repeats_frames_and_adds_zeros():
    x = jnp.arange(1.0, 4.0).reshape(1, 3, 1, 1, 1)
    assert pad_time(x, 4).ravel().tolist() == [1, 1, 2, 3, 3, 3]
    assert pad_time(x, 3, temporal="causal").ravel().tolist() == [1, 1, 1, 2, 3]
    assert pad_time(x, 3, temporal="valid").ravel().tolist() == [1, 2, 3]
    assert pad3d(x, (1, 2, 3))[0, 0, :, :, 0].tolist() == [[0, 1, 0], [0, 0, 0]]


def test_faults_are_named():
    x, kernel = jnp.zeros(SHAPE), jnp.zeros((*WINDOW, SHAPE[-1]))
    with pytest.raises(ValueError, match="6 channels, the kernel 1"):
        depthwise_conv3d(x, kernel[..., :1])
    with pytest.raises(UserError, match="'shfit'; did you mean 'shift'"):
        depthwise_conv3d(x, kernel, impl="shfit")
    with pytest.raises(UserError, match="temporal: unknown value 'casual'"):
        depthwise_conv3d(x, kernel, temporal="casual")
