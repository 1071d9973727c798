"""Every implementation of attention against numpy in float64 and against `jax.nn`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.ops import attention, dispatch


def heads(length: int, seed: int, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, length, 3, width)).astype(np.float32)


def reference(query, key, value, mask=None, bias=None, scale=None):
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias
    if mask is not None:
        scores = np.where(mask[:, None, None], scores, -np.inf)
    weights = np.exp(scores)
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


MASK = np.array([[True] * 4 + [False], [True] + [False] * 4])
BIAS = np.random.default_rng(9).standard_normal((1, 3, 21, 5)).astype(np.float32)


def assert_equal_to_the_references(mask, bias, **options):
    arguments = heads(21, 0), heads(5, 1), heads(5, 2)
    weight = heads(21, 3)
    wide_mask = None if mask is None else mask[:, None, None]

    def ours(*xs):
        return jnp.vdot(attention.attend(*xs, mask, bias, **options), weight)

    def library(*xs):
        scale = options.get("scale")
        return jnp.vdot(jax.nn.dot_product_attention(*xs, bias=bias, mask=wide_mask, scale=scale), weight)

    value = jax.jit(lambda *xs: attention.attend(*xs, mask, bias, **options))(*arguments)
    np.testing.assert_allclose(value, reference(*arguments, mask, bias, options.get("scale")), atol=1e-5)
    gradients, expected = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(*arguments) for f in (ours, library))
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, other, atol=1e-5)


@pytest.mark.parametrize("rows_at_once", [8, 5 * 21, 1000])
@pytest.mark.parametrize("mask", [None, MASK])
def test_blocks(monkeypatch, rows_at_once, mask):
    """21 queries of 6 heads: 8 of one head at a time (the last chunk is partly empty), three heads, or all at once."""
    monkeypatch.setattr(attention, "_CPU_BYTES", 4 * 5 * rows_at_once)
    assert_equal_to_the_references(mask, None)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("bias", [None, BIAS])
def test_whole(mask, bias):
    assert_equal_to_the_references(mask, bias, impl="whole", scale=0.7)


def test_a_bias_takes_the_whole_form():
    assert_equal_to_the_references(MASK, BIAS, scale=1.0)


@pytest.mark.parametrize("impl", ["whole", "blocks"])
def test_a_row_without_any_key_is_finite(impl):
    mask = np.array([[False] * 5, [True] * 5])
    value, gradients = jax.value_and_grad(lambda *xs: attention.attend(*xs, mask, impl=impl).sum(), argnums=(0, 1, 2))(
        heads(9, 0), heads(5, 1), heads(5, 2)
    )
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)


def test_fused_kernel_gets_padded_heads_and_the_true_scale(monkeypatch):
    """Run the cuDNN branch with the library's portable kernel in place of cuDNN."""
    arguments = [jnp.asarray(x, jnp.bfloat16) for x in (heads(9, 0), heads(5, 1), heads(5, 2))]
    portable, seen = jax.nn.dot_product_attention, {}

    def kernel(query, key, value, *, implementation, **options):
        seen.update(implementation=implementation, width=query.shape[-1])
        return portable(query, key, value, **options)

    monkeypatch.setattr(attention, "on_ampere", lambda: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    value = attention.attend(*arguments)
    assert seen == {"implementation": "cudnn", "width": 8}
    assert value.shape == (2, 9, 3, 6)
    np.testing.assert_allclose(value, reference(*(np.asarray(x) for x in arguments)), atol=0.03)


@pytest.mark.parametrize(
    ("platform", "kind", "fused"),
    [
        ("gpu", "NVIDIA A100-SXM4-80GB", True),
        ("gpu", "NVIDIA H200", True),
        ("gpu", "NVIDIA L4", True),
        ("gpu", "Tesla V100-SXM2-16GB", False),
        ("gpu", "Tesla T4", False),
        ("gpu", "AMD Instinct MI300X", False),
        ("tpu", "TPU v5 lite", False),
        ("cpu", "cpu", False),
    ],
)
def test_the_devices_of_the_mesh_decide_on_flash_attention(platform, kind, fused):
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    axis = jax.sharding.AxisType.Auto
    mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types=(axis,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert dispatch.on_ampere() == fused


def test_what_an_implementation_lacks_is_refused():
    arguments = heads(21, 0), heads(5, 1), heads(5, 2)
    for impl, mask, bias in (("blocks", None, BIAS), ("cudnn", None, BIAS), ("cudnn", MASK, None)):
        with pytest.raises(ValueError, match=impl):
            attention.attend(*arguments, mask, bias, impl=impl)
    with pytest.raises(UserError, match="unknown value 'hole'; did you mean 'whole'"):
        attention.attend(*arguments, impl="hole")
