"""Attention against numpy in float64 and against `jax.nn`; normalized queries and keys."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.models.layers import attention


def heads(length: int, seed: int, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, length, 3, width)).astype(np.float32)


def reference(query, key, value, mask=None):
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = np.where(mask[:, None, None], scores, -np.inf)
    weights = np.exp(scores)
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


MASK = np.array([[True] * 4 + [False], [True] + [False] * 4])


@pytest.mark.parametrize("rows_at_once", [8, 5 * 21, 1000])
@pytest.mark.parametrize("mask", [None, MASK])
def test_values_and_gradients(monkeypatch, rows_at_once, mask):
    """21 queries of 6 heads: 8 of one head at a time (the last chunk is partly empty), three heads, or all at once."""
    monkeypatch.setattr(attention, "_CPU_BYTES", 4 * 5 * rows_at_once)
    arguments = heads(21, 0), heads(5, 1), heads(5, 2)
    weight = heads(21, 3)
    wide_mask = None if mask is None else mask[:, None, None]

    def ours(*xs):
        return jnp.vdot(attention.attend(*xs, mask), weight)

    def library(*xs):
        return jnp.vdot(jax.nn.dot_product_attention(*xs, mask=wide_mask), weight)

    value = jax.jit(attention.attend)(*arguments, mask)
    np.testing.assert_allclose(value, reference(*arguments, mask), atol=1e-5)
    gradients, expected = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(*arguments) for f in (ours, library))
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, other, atol=1e-5)


def test_fused_kernel_gets_padded_heads_and_the_true_scale(monkeypatch):
    """The cuDNN branch, with the library's portable kernel standing in for cuDNN."""
    arguments = [jnp.asarray(x, jnp.bfloat16) for x in (heads(9, 0), heads(5, 1), heads(5, 2))]
    portable, seen = jax.nn.dot_product_attention, {}

    def kernel(query, key, value, *, implementation, **options):
        seen.update(implementation=implementation, width=query.shape[-1])
        return portable(query, key, value, **options)

    monkeypatch.setattr(attention, "_has_flash_attention", lambda: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    value = attention.attend(*arguments)
    assert seen == {"implementation": "cudnn", "width": 8}
    assert value.shape == (2, 9, 3, 6)
    np.testing.assert_allclose(value, reference(*(np.asarray(x) for x in arguments)), atol=0.03)


def test_gain_bounds_the_logits():
    """Whatever the size of the input, |logit| <= gain * sqrt(head width): attention saturates there."""

    class Split(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.split(x, 3, axis=-1)

    class Same(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x

    module = attention.Attention(heads=1, gain=1.5, into=Split(), out=Same())
    q, k, v = np.array([[4.0, 4.0]] * 2), np.array([[9.0, 9.0], [-9.0, -9.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    x = np.concatenate([q, k, v], -1)[None].astype(np.float32)
    params = module.init(jax.random.key(0), x)
    weight = np.asarray(module.apply(params, 100 * x))[0, 0] / 100
    bound = 1.5 * 2**0.5
    np.testing.assert_allclose(weight[0], 1 / (1 + np.exp(-2 * bound)), rtol=1e-4)
    assert jax.tree.map(jnp.shape, params) == {"params": {"gain": (1,)}}
