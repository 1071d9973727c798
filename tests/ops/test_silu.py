"""SiLU with a recomputing backward pass against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core.errors import UserError
from motionaura_jax.ops.silu import silu


@pytest.mark.parametrize("impl", ["recompute", "plain"])
def test_value_and_derivatives_match_closed_forms(impl):
    x = np.array([-100.0, -20.0, -3.0, -0.5, 0.0, 0.5, 3.0, 20.0, 100.0])
    s = 1 / (1 + np.exp(-x))
    value = lambda x: silu(x, impl=impl)  # noqa: E731
    np.testing.assert_allclose(value(jnp.float32(x)), x * s, rtol=1e-6, atol=1e-7)
    first = jax.vmap(jax.grad(value))(jnp.float32(x))
    np.testing.assert_allclose(first, s * (1 + x * (1 - s)), rtol=1e-5, atol=1e-7)
    second = jax.vmap(jax.grad(jax.grad(value)))(jnp.float32(x))
    np.testing.assert_allclose(second, s * (1 - s) * (2 + x * (1 - 2 * s)), rtol=1e-5, atol=1e-6)


def test_bf16_keeps_its_type_and_only_the_input_is_kept():
    x = jnp.linspace(-4, 4, 64, dtype=jnp.bfloat16)
    y, pullback = jax.vjp(lambda x: silu(x, impl="recompute"), x)
    (slope,) = pullback(jnp.ones_like(x))
    assert y.dtype == slope.dtype == jnp.bfloat16
    wide = jax.vmap(jax.grad(jax.nn.silu))(x.astype(jnp.float32))
    np.testing.assert_allclose(slope.astype(jnp.float32), wide, atol=2e-2)
    assert len(jax.tree.leaves(pullback)) == 1


def test_unknown_form_is_named():
    with pytest.raises(UserError, match="silu impl: unknown value 'fast'"):
        silu(jnp.zeros(1), impl="fast")
