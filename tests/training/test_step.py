"""The optimizer step: accumulation, the guard against non-finite values, the average, and schedules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import OptimizerConfig, TrainConfig
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import make_mesh
from motionaura_jax.training import optimizer, state, step
from tests.training.toy import ToyRecipe, ToySystem


def make(**values):
    base = {"system": "toy", "data": {"batch_size": 8, "height": 4, "width": 4, "num_frames": 2}}
    return ToySystem(config.build(ToyRecipe, {**base, **values}))


def batch(seed=0, size=8):
    video = np.random.default_rng(seed).uniform(-1, 1, (size, 2, 4, 4, 3)).astype(np.float32)
    return {"video": video, "sample": np.arange(size, dtype=np.int32)}


def run(system, steps):
    optimize = optimizer.of(system)
    current = state.create(system, optimize, system.recipe.seed)
    train_step = step.make_train_step(system, optimize)
    metrics = []
    for number in range(steps):
        current, row = train_step(current, {}, batch(number))
        metrics.append(jax.device_get(row))
    return current, metrics


def test_accumulation_equals_the_large_batch():
    whole, rows = run(make(), 3)
    parts, part_rows = run(make(train={"accumulation": 4}), 3)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert whole.extra["seen"] == parts.extra["seen"] == 24
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in part_rows], rtol=1e-5)
    assert part_rows[0]["microbatches"] == 4


def test_a_largest_microbatch_accumulates_as_often_as_it_has_to():
    whole, rows = run(make(), 2)
    for train, count in (({"microbatch": 2}, 4), ({"microbatch": 1}, 8), ({"microbatch": 3, "accumulation": 2}, 4)):
        parts, part_rows = run(make(train=train), 2)
        assert part_rows[0]["microbatches"] == count
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in part_rows], rtol=1e-5)


def test_the_number_of_microbatches():
    """The smallest multiple of `accumulation` that divides the clips of a device and respects `microbatch`."""
    for microbatch, accumulation, clips, count in [
        (0, 1, 8, 1), (0, 4, 8, 4), (8, 1, 8, 1), (4, 1, 8, 2), (3, 1, 8, 4), (1, 1, 7, 7), (4, 1, 7, 7),
        (1, 8, 64, 64), (2, 8, 16, 8), (100, 2, 8, 2),
    ]:  # fmt: skip
        assert TrainConfig(microbatch=microbatch, accumulation=accumulation).microbatches(clips) == count


def test_a_non_finite_step_changes_nothing_but_the_counters():
    system = make(explode_from=2)
    before, _ = run(system, 2)
    after, rows = run(system, 4)
    for name in ("params", "extra", "opt_state", "ema"):
        for a, b in zip(jax.tree.leaves(getattr(before, name)), jax.tree.leaves(getattr(after, name)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert int(after.step) == 4 and int(after.skipped) == 2
    assert [int(r["skipped"]) for r in rows] == [0, 0, 1, 2]


def test_the_average_follows_with_a_growing_memory():
    system = make(train={"ema_decay": 0.9})
    first, _ = run(system, 1)
    start = state.create(system, optimizer.build(system.recipe.optimizer, 1000), 0)
    expected = 0.1 * start.params["color"] + 0.9 * first.params["color"]
    np.testing.assert_allclose(first.ema["color"], expected, rtol=1e-5)


def test_what_a_rule_replaces_enters_the_average_at_once():
    system = make()
    system.advance = lambda params, extra, *_: ({**params, "color": jnp.full(3, 7.0)}, extra, {})
    current, _ = run(system, 1)
    np.testing.assert_array_equal(current.ema["color"], 7.0)


def test_weight_decay_spares_all_but_matrices():
    settings = OptimizerConfig(weight_decay=0.1, learning_rate=1.0, decay="constant")
    optimize = optimizer.build(settings, 10, not_decayed=frozenset({"codebook"}))
    spared = {"offset": jnp.ones(3), "stacked": {"bias": jnp.ones((2, 3))}, "codebook": jnp.ones((4, 2))}
    params = {**spared, "kernel": jnp.ones((3, 3))}
    updates, _ = optimize.update(jax.tree.map(jnp.zeros_like, params), optimize.init(params), params)
    np.testing.assert_allclose(updates.pop("kernel"), -0.1, rtol=1e-6)
    assert all(not leaf.any() for leaf in jax.tree.leaves(updates))


def test_schedules_against_closed_forms():
    settings = OptimizerConfig(learning_rate=2.0, warmup_steps=4, final_scale=0.1)
    cosine = optimizer.schedule(settings, 12)
    linear = optimizer.schedule(dataclasses.replace(settings, decay="linear"), 12)
    np.testing.assert_allclose([cosine(i) for i in range(4)], [0.5, 0.875, 1.25, 1.625])
    np.testing.assert_allclose([cosine(4), cosine(8), cosine(12)], [2.0, 0.5 * (2.0 + 0.2), 0.2], rtol=1e-6)
    np.testing.assert_allclose([linear(4), linear(8), linear(12)], [2.0, 1.1, 0.2], rtol=1e-6)


def test_the_optimizer_is_adamw_behind_clipping():
    settings = OptimizerConfig(clip_norm=0.5, decay="constant", weight_decay=0.0)
    params, gradients = {"w": jnp.ones((2, 2))}, {"w": jnp.full((2, 2), 10.0)}
    clipped = {"w": jnp.full((2, 2), 0.25)}
    ours, reference = optimizer.build(settings, 10), optax.adam(settings.learning_rate, b1=0.9, b2=0.99)
    got = ours.update(gradients, ours.init(params), params)[0]
    want = reference.update(clipped, reference.init(params), params)[0]
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-5)


def test_adam_decays_nothing():
    params, gradients = {"kernel": jnp.ones((3, 3))}, {"kernel": jnp.full((3, 3), 0.1)}
    got = {}
    for name in ("adam", "adamw"):
        optimize = optimizer.build(OptimizerConfig(name=name, decay="constant", weight_decay=0.5), 10)
        got[name] = optimize.update(gradients, optimize.init(params), params)[0]["kernel"]
    reference = optax.adam(OptimizerConfig().learning_rate, b1=0.9, b2=0.99)
    want = reference.update(gradients, reference.init(params), params)[0]["kernel"]
    np.testing.assert_allclose(got["adam"], want, rtol=1e-5)
    np.testing.assert_allclose(got["adamw"], want - 0.5 * OptimizerConfig().learning_rate, rtol=1e-5)


def test_a_state_that_no_device_can_hold_is_refused_before_it_is_allocated():
    system = make()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimize = optimizer.of(system)
    current = state.abstract(system, optimize, mesh)
    leaves = jax.tree.leaves(current) + jax.tree.leaves(current.params)  # gradients are as large as parameters
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    state.check_memory(system, current, mesh, needed)
    with pytest.raises(UserError) as error:
        state.check_memory(system, current, mesh, needed - 1)
    assert "without any activation; take a smaller preset" in str(error.value)  # three numbers: nothing to split


def test_the_refusal_names_devices_that_hold_the_state():
    system = make()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    kernel = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
    params = {"dense": {"kernel": kernel}}
    number = jax.ShapeDtypeStruct((), jnp.int32)
    current = state.TrainState(step=number, params=params, extra={}, opt_state=params, ema=None, skipped=number)
    # Parameters, one mean and gradients: 3 x 64 MiB.
    with pytest.raises(
        UserError, match=r"need 0.188 GiB on each device .* 4 devices hold it with --config.mesh.fsdp=4"
    ):
        state.check_memory(system, current, mesh, 60 * 2**20)
    state.check_memory(system, current, mesh, 200 * 2**20)
