"""GroupNorm against a float64 reference, and the start of convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.models.layers import conv
from motionaura_jax.models.layers.conv import Conv3d, GroupNorm, TransposedConv1x4x4, num_groups


@pytest.mark.parametrize(
    ("channels", "groups"), [(3, 1), (8, 1), (16, 2), (24, 2), (48, 4), (64, 8), (96, 8), (512, 32)]
)
def test_groups_have_eight_channels_where_possible(channels: int, groups: int) -> None:
    assert num_groups(channels) == groups


def test_fresh_convolutions_preserve_the_variance() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 2, 16, 16, 64))
    for layer in (TransposedConv1x4x4(32), Conv3d(32, (3, 3, 3))):
        y, _ = jax.jit(layer.init_with_output)(jax.random.key(1), x)
        assert float(y[:, :, 2:-2, 2:-2].var()) == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("per_frame", [False, True])
def test_group_norm_matches_numpy(per_frame: bool) -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 3, 4, 5, 16)).astype(np.float32)
    module = GroupNorm(per_frame=per_frame)
    y = module.apply({"params": {"scale": jnp.full(16, 2.0), "bias": jnp.full(16, 0.5)}}, jnp.asarray(x))
    grouped = x.astype(np.float64).reshape(2, 3, 4, 5, 2, 8)
    axes = (2, 3, 5) if per_frame else (1, 2, 3, 5)
    normal = (grouped - grouped.mean(axes, keepdims=True)) / np.sqrt(grouped.var(axes, keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, 2.0 * normal.reshape(x.shape) + 0.5, atol=1e-5)


def test_bfloat16_input_is_normalized_in_float32() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 2, 4, 4, 8)) + 100.0
    module = GroupNorm()
    params = module.init(jax.random.key(1), x)
    low = module.apply(params, x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    expected = module.apply(params, x.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(low.astype(jnp.float32), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("per_frame", [False, True])
def test_group_norm_on_other_devices_is_the_same_and_its_gradient_scatters_nothing(
    per_frame: bool, monkeypatch
) -> None:
    """GPUs add scattered numbers in no fixed order."""
    x, module = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 24)), GroupNorm(per_frame)
    params = module.init(jax.random.key(1), x)
    change = lambda x: jax.grad(lambda x: jnp.sin(module.apply(params, x)).sum())(x)  # noqa: E731
    expected = change(x)
    monkeypatch.setattr(conv, "on_cpu", lambda: False)
    assert "scatter" not in str(jax.make_jaxpr(change)(x))
    np.testing.assert_allclose(change(x), expected, atol=1e-6)
