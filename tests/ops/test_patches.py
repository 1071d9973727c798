"""Patches and Haar packets against explicit float64 loops and a Kronecker product; exact inverses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionaura_jax.ops.patches import from_patches, to_patches

FACTORS = [(1, 2, 2), (2, 4, 4), (4, 2, 8)]


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@functools.partial(jax.jit, static_argnames=("factors", "kind", "causal"))
def forth(x, factors, kind, causal=False):
    return to_patches(x, factors, kind, causal=causal)


@functools.partial(jax.jit, static_argnames=("factors", "kind", "causal"))
def back(y, factors, kind, causal=False):
    return from_patches(y, factors, kind, causal=causal)


def packet(values):
    """Return the Haar packet of the last axis, by sums and differences of neighbors of all outputs, level by level."""
    bands = [values]
    while bands[0].shape[-1] > 1:
        pairs = [(band[..., ::2], band[..., 1::2]) for band in bands]
        # The first level tells neighbors apart, which is the finest, and thus the last, digit of a band's index.
        bands = [(a + b) / np.sqrt(2) for a, b in pairs] + [(a - b) / np.sqrt(2) for a, b in pairs]
    return np.concatenate(bands, axis=-1)


def reference(x, factors, kind):
    """Cut blocks one by one; transform them axis by axis."""
    rt, rh, rw = factors
    b, t, h, w, c = x.shape
    y = np.zeros((b, t // rt, h // rh, w // rw, rt * rh * rw * c))
    for i, j, k in np.ndindex(y.shape[1:4]):
        block = x[:, i * rt : (i + 1) * rt, j * rh : (j + 1) * rh, k * rw : (k + 1) * rw]
        for axis in (1, 2, 3) if kind == "haar" else ():
            block = np.moveaxis(packet(np.moveaxis(block, axis, -1)), -1, axis)
        y[:, i, j, k] = block.reshape(b, -1)
    return y


@pytest.mark.parametrize("kind", ["patch", "haar"])
@pytest.mark.parametrize("factors", FACTORS)
def test_values_match_explicit_packets(factors, kind):
    x = draw((2, 4, 8, 16, 3))
    np.testing.assert_allclose(forth(jnp.float32(x), factors, kind), reference(x, factors, kind), atol=1e-5)


@pytest.mark.parametrize("factors", FACTORS)
def test_a_packet_is_one_orthogonal_matrix_a_kronecker_product(factors):
    def hadamard(size):
        return np.array([[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]) / np.sqrt(size)

    exact = functools.reduce(np.kron, [*map(hadamard, factors), np.eye(3)])
    pixels = np.eye(len(exact), dtype=np.float32).reshape(-1, *factors, 3)
    found = np.asarray(forth(pixels, factors, "haar")).reshape(exact.shape)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    np.testing.assert_allclose(exact @ exact.T, np.eye(len(exact)), atol=1e-12)


def test_constant_video_is_its_mean_and_zeros():
    y = np.asarray(forth(jnp.full((1, 2, 4, 4, 3), jnp.array([0.5, -1.0, 0.25])), (2, 4, 4), "haar"))
    mean = np.broadcast_to(np.sqrt(32) * np.array([0.5, -1.0, 0.25]), (1, 1, 1, 1, 3))
    np.testing.assert_allclose(y[..., :3], mean, rtol=1e-6)
    np.testing.assert_allclose(y[..., 3:], 0.0, atol=1e-6)


@settings(max_examples=5)
@given(
    cells=st.tuples(*[st.integers(1, 3)] * 4),
    factors=st.sampled_from(FACTORS),
    kind=st.sampled_from(["patch", "haar"]),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_video_comes_back(cells, factors, kind, causal, seed):
    batch, *grid = cells
    frames, height, width = (cell * factor for cell, factor in zip(grid, factors, strict=True))
    x = np.float32(draw((batch, frames - (factors[0] - 1 if causal else 0), height, width, 2), seed))
    y = to_patches(jnp.asarray(x), factors, kind, causal=causal)
    assert y.shape == (batch, *grid, 2 * np.prod(factors))
    np.testing.assert_allclose(from_patches(y, factors, kind, causal=causal), x, atol=1e-5)


@pytest.mark.parametrize("kind", ["patch", "haar"])
def test_causal_patches_start_with_copies_of_the_first_frame(kind):
    x = draw((1, 9, 4, 4, 3))
    whole = np.concatenate([x[:, :1]] * 3 + [x], axis=1)
    factors = (4, 2, 2)
    np.testing.assert_allclose(forth(jnp.float32(x), factors, kind, True), reference(whole, factors, kind), atol=1e-5)


@pytest.mark.parametrize("kind", ["patch", "haar"])
@pytest.mark.parametrize("causal", [False, True])
def test_pullbacks_are_transposes(kind, causal):
    """Orthogonality makes each map the pullback of the other; the copies of a causal start add up in it."""
    factors = (2, 4, 4)
    x, grad = jnp.float32(draw((1, 3 if causal else 4, 4, 8, 3))), jnp.float32(draw((1, 2, 1, 2, 96), 1))
    y, pullback = jax.vjp(lambda x: forth(x, factors, kind, causal), x)
    (found,) = pullback(grad)
    expected = np.array(back(grad, factors, kind))
    if causal:
        expected = np.concatenate([expected[:, :2].sum(1, keepdims=True), expected[:, 2:]], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    _, pullback = jax.vjp(lambda y: back(y, factors, kind, causal), y)
    (found,) = pullback(x)
    start = np.zeros_like(x[:, :1]) if causal else x[:, :0]
    np.testing.assert_allclose(found, reference(np.concatenate([start, x], axis=1), factors, kind), atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_bf16_keeps_its_type_and_is_rounded_once(precision):
    x, factors = jnp.bfloat16(draw((1, 4, 8, 8, 3))), (2, 4, 4)
    with jax.default_matmul_precision(precision):
        y = to_patches(x, factors, "haar")
        again = from_patches(y, factors, "haar")
    assert y.dtype == again.dtype == jnp.bfloat16
    exact = reference(np.float64(x), factors, "haar")
    np.testing.assert_allclose(np.float64(y), exact, rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(np.float64(again), np.float64(x), atol=2e-2 * np.abs(x).max())


def test_faults_are_named():
    with pytest.raises(ValueError, match=r"video of \(3, 4, 4\) .* patches need k \* 2, k \* 4, k \* 4"):
        to_patches(jnp.zeros((1, 3, 4, 4, 3)), (2, 4, 4))
    with pytest.raises(ValueError, match=r"video of \(4, 4, 4\) .* patches need 1 \+ k \* 2"):
        to_patches(jnp.zeros((1, 4, 4, 4, 3)), (2, 4, 4), causal=True)
    with pytest.raises(ValueError, match=r"video of \(2, 6, 4\)"):
        to_patches(jnp.zeros((1, 2, 6, 4, 3)), (2, 4, 4), "haar")
    with pytest.raises(ValueError, match="powers of two, got 3"):
        to_patches(jnp.zeros((1, 3, 4, 4, 3)), (3, 4, 4), "haar")
