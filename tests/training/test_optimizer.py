"""Adafactor and Muon against NumPy: updates, state per weight, and how each weight is classified."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from motionaura_jax.core.recipe import OptimizerConfig
from motionaura_jax.core.trees import path_name
from motionaura_jax.models import encoders
from motionaura_jax.models.encoders.config import T5Config
from motionaura_jax.models.encoders.t5 import T5Encoder
from motionaura_jax.training import optimizer

RATE = 0.01
PLAIN = {"learning_rate": RATE, "decay": "constant", "weight_decay": 0.0, "clip_norm": 0.0}
SPARED = frozenset({"codebook", "embedding", "relative_bias", "table"})


def first_update(params, gradients, **settings):
    optimize = optimizer.build(OptimizerConfig(**{**PLAIN, **settings}), 10, not_decayed=SPARED)
    return jax.jit(optimize.update)(gradients, optimize.init(params), params)[0]


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def state_bytes(params, **settings):
    optimize = optimizer.build(OptimizerConfig(**settings), 10)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(optimize.init, params)))


def singular_values(update):
    return np.linalg.svd(np.asarray(update, np.float64), compute_uv=False)


def test_adafactor_divides_by_row_and_column_means():
    gradient = random(130, 140) * np.geomspace(0.1, 10, 140, dtype=np.float32)
    got = first_update({"kernel": jnp.zeros((130, 140))}, {"kernel": gradient}, name="adafactor", b1=0.0)["kernel"]
    squares = np.square(gradient, dtype=np.float64)
    rows, columns = squares.mean(1, keepdims=True), squares.mean(0, keepdims=True)
    want = gradient / np.sqrt(rows * columns / squares.mean())
    want /= max(1.0, np.sqrt(np.square(want).mean()))
    np.testing.assert_allclose(got, -RATE * want, rtol=1e-4)


def test_adafactor_averages_its_updates_with_b1():
    params, gradient = {"kernel": jnp.zeros((2, 2))}, {"kernel": jnp.asarray(random(2, 2))}
    settings = OptimizerConfig(**PLAIN, name="adafactor", b1=0.5)
    optimize = optimizer.build(settings, 10)
    first, state = optimize.update(gradient, optimize.init(params), params)
    second, _ = optimize.update(jax.tree.map(jnp.zeros_like, gradient), state, params)
    # Unbiased means: the only update so far, then a third of it (0.25 of the mass of 0.75).
    np.testing.assert_allclose(second["kernel"], first["kernel"] / 3, rtol=1e-5)


def test_muon_makes_each_matrix_orthogonal_with_the_size_of_an_adam_update():
    gradients = {"kernel": random(24, 40), "stacked": {"kernel": random(3, 24, 40, seed=1)}}
    update = first_update(jax.tree.map(jnp.zeros_like, gradients), gradients, name="muon")
    for matrix in (update["kernel"], *update["stacked"]["kernel"]):
        values = singular_values(matrix) / (0.2 * RATE * 40**0.5)
        assert values.max() / values.min() < 2 and 0.6 < values.mean() < 1.3
    assert 0.1 < float(jnp.sqrt(jnp.mean(update["kernel"] ** 2))) / RATE < 0.25


def test_muon_treats_stacked_layers_apart_and_convolutions_flat():
    gradients = {"a": {"kernel": random(3, 8, 12)}, "b": {"kernel": random(3, 3, 3, 4, 6)}}
    update = first_update(jax.tree.map(jnp.zeros_like, gradients), gradients, name="muon")
    for index, gradient in enumerate(gradients["a"]["kernel"]):
        alone = first_update({"kernel": jnp.zeros((8, 12))}, {"kernel": gradient}, name="muon")["kernel"]
        np.testing.assert_allclose(update["a"]["kernel"][index], alone, rtol=1e-4, atol=1e-6)
    flat = {"kernel": gradients["b"]["kernel"].reshape(-1, 6)}
    alone = first_update({"kernel": jnp.zeros((108, 6))}, flat, name="muon")["kernel"]
    np.testing.assert_allclose(update["b"]["kernel"].reshape(-1, 6), alone, rtol=1e-4, atol=1e-6)


def test_muon_flattens_heads_and_channels_of_attention():
    """A kernel to heads is a matrix from the width to all heads together; one from heads to the width is its transpose."""
    gradients = {"attention_0": {"query": {"kernel": random(12, 3, 8)}, "output": {"kernel": random(3, 8, 12, seed=1)}}}
    params = jax.tree.map(jnp.zeros_like, gradients)
    optimize = optimizer.build(OptimizerConfig(**PLAIN, name="muon"), 10, matrices=encoders.MATRICES)
    update = jax.jit(optimize.update)(gradients, optimize.init(params), params)[0]["attention_0"]
    for part, shape in (("query", (12, 24)), ("output", (24, 12))):
        flat = {"kernel": gradients["attention_0"][part]["kernel"].reshape(shape)}
        alone = first_update({"kernel": jnp.zeros(shape)}, flat, name="muon")["kernel"]
        np.testing.assert_allclose(update[part]["kernel"].reshape(shape), alone, rtol=1e-4, atol=1e-6)


def test_the_text_encoder_declares_every_kernel_with_three_axes():
    t5 = T5Config(vocab_size=8, d_model=8, d_kv=4, num_heads=2, d_ff=8, num_layers=1)
    params = jax.eval_shape(T5Encoder(t5, scanned=False).init, jax.random.key(0), jnp.ones((1, 3), jnp.int32))["params"]
    kernels = [path_name(path) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if leaf.ndim == 3]
    assert len(kernels) == 4
    assert all(any(re.search(pattern, name) for pattern in encoders.MATRICES) for name in kernels)


def test_muon_leaves_vectors_embeddings_and_depthwise_kernels_to_adam():
    gradients = {
        "table": random(9, 4),
        "embedding": random(9, 4),
        "stacked": {"bias": random(2, 5)},
        "depthwise": {"kernel": random(3, 3, 3, 4)},
        "codebook": random(6, 2),
    }
    params = jax.tree.map(jnp.zeros_like, gradients)
    got = first_update(params, gradients, name="muon", b1=0.9, b2=0.95)
    reference = optax.adam(RATE, b1=0.9, b2=0.95, nesterov=True)
    want = reference.update(gradients, reference.init(params), params)[0]
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5), got, want)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_weight_decay_spares_embeddings_in_every_optimizer(name):
    params = {name: jnp.ones((4, 2)) for name in ("embedding", "relative_bias", "table")} | {"kernel": jnp.ones((3, 3))}
    zero = jax.tree.map(jnp.zeros_like, params)
    update = first_update(params, zero, name=name, weight_decay=0.1)
    np.testing.assert_allclose(update.pop("kernel"), -0.1 * RATE, rtol=1e-5)
    assert all(not leaf.any() for leaf in jax.tree.leaves(update))


@pytest.mark.parametrize(
    ("settings", "bytes_per_weight"),
    [
        ({"name": "adamw"}, 8.0),
        ({"name": "adamw", "mu_dtype": "bfloat16"}, 6.0),
        ({"name": "muon"}, 4.0),
        ({"name": "muon", "mu_dtype": "bfloat16"}, 2.0),
        ({"name": "adafactor"}, 4.0),
        ({"name": "adafactor", "mu_dtype": "bfloat16"}, 2.0),
        ({"name": "adafactor", "b1": 0.0}, 0.0),
    ],
)
def test_what_is_kept_for_each_weight_of_a_matrix(settings, bytes_per_weight):
    params = {"kernel": jax.ShapeDtypeStruct((12, 512, 512), jnp.float32)}
    assert state_bytes(params, **settings) / params["kernel"].size == pytest.approx(bytes_per_weight, abs=0.02)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_each_optimizer_reaches_the_minimum(name):
    target = jnp.asarray(random(16, 16))
    optimize = optimizer.build(OptimizerConfig(name=name, learning_rate=0.3, weight_decay=0.0), 150)

    def step(carry, _):
        params, state = carry
        updates, state = optimize.update({"kernel": params["kernel"] - target}, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = {"kernel": jnp.zeros((16, 16))}
    (params, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, optimize.init(start)), length=150))()
    assert float(jnp.abs(params["kernel"] - target).max()) < 0.05
