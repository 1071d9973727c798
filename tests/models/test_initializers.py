"""Initialization of a network from one call of the random generator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.models.layers.initializers import centered_orthogonal, fan_in_normal, from_one_draw, shapes_only


def _init(key: jax.Array) -> dict[str, jax.Array]:
    dense_key, depthwise_key = jax.random.split(key)
    return {
        "dense": fan_in_normal(dense_key, (3, 3, 3, 16, 32)),
        "bias": jnp.zeros(32),
        "depthwise": fan_in_normal(depthwise_key, (3, 3, 3, 256)),
    }


@pytest.mark.parametrize("start", [_init, lambda key: from_one_draw(_init, key)])
def test_deviation_follows_the_fan_in(start) -> None:
    weights = start(jax.random.key(0))
    assert float(weights["dense"].std()) == pytest.approx((27 * 16) ** -0.5, rel=0.03)
    assert float(weights["depthwise"].std()) == pytest.approx(27**-0.5, rel=0.03)
    assert float(jnp.abs(weights["bias"]).max()) == 0.0


def test_one_draw_gives_every_weight_its_own_part() -> None:
    first, same, other = (jax.jit(lambda key: from_one_draw(_init, key))(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["dense"], same["dense"])
    assert not np.allclose(first["dense"], other["dense"])
    head = np.asarray(first["dense"]).reshape(-1)[: first["depthwise"].size] * (27 * 16) ** 0.5
    assert abs(np.corrcoef(head, np.asarray(first["depthwise"]).reshape(-1))[0, 1]) < 0.05


def test_one_draw_compiles_to_one_generator() -> None:
    def generators(start) -> int:
        return str(jax.make_jaxpr(start)(jax.random.key(0))).count("random_bits")

    assert generators(_init) == 2
    assert generators(lambda key: from_one_draw(_init, key)) == 1


def test_shapes_need_one_trace_without_noise() -> None:
    traces = []

    def init(key: jax.Array) -> dict[str, jax.Array]:
        traces.append(key)
        return _init(key)

    whole = jax.eval_shape(lambda key: from_one_draw(init, key), jax.random.key(0))
    assert len(traces) == 2
    with shapes_only():
        program = jax.make_jaxpr(lambda key: from_one_draw(init, key), return_shape=True)
        jaxpr, shapes = program(jax.random.key(0))
    assert shapes == whole and len(traces) == 3 and "random_bits" not in str(jaxpr)
    assert float(jnp.abs(from_one_draw(init, jax.random.key(0))["dense"]).max()) > 0


def test_sources_do_not_leak() -> None:
    from_one_draw(_init, jax.random.key(0))
    plain = fan_in_normal(jax.random.key(3), (4, 4))
    np.testing.assert_allclose(plain, jax.random.normal(jax.random.key(3), (4, 4)) / 2.0, rtol=1e-6)


@pytest.mark.parametrize("rows,columns", [(16, 16), (96, 16), (16, 96)])
def test_centered_orthogonal_keeps_lengths_and_places(rows: int, columns: int) -> None:
    kernel = np.asarray(
        from_one_draw(lambda key: centered_orthogonal(key, (3, 3, 3, rows, columns)), jax.random.key(0))
    )
    singular = np.linalg.svd(kernel[1, 1, 1].astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(singular, max(1.0, columns / rows) ** 0.5, rtol=1e-5)
    assert np.abs(kernel).sum() == pytest.approx(np.abs(kernel[1, 1, 1]).sum())
