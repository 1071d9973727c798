"""Attention with normalized queries and keys."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from motionaura_jax.models.layers import attention


def test_gain_bounds_the_logits():
    """For inputs of any size, |logit| <= gain * sqrt(head width)."""

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
