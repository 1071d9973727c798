"""The base class of diffusion systems, tested with a minimal Gaussian one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.training import optimizer, state, step
from tests.systems.toy_diffusion import Infilling, Pooling, ToyRecipe, ToySystem

VALUES = {
    "system": "toy",
    "autoencoder": "somewhere",
    "data": {"num_frames": 4, "height": 8, "width": 8, "batch_size": 8},
    "sample": {"num_inference_steps": 4, "levels": 2, "guidance_scale": 2.0},
    "optimizer": {"learning_rate": 1e-2, "decay": "constant"},
}


def make(system=ToySystem, **values):
    return system(config.build(ToyRecipe, {**VALUES, **values}))


def batch(system, size=8, seed=0):
    """Return uniformly gray clips with a little noise."""
    rng = np.random.default_rng(seed)
    gray = np.where(np.arange(size) % 2, 0.6, -0.6)[:, None, None, None, None]
    video = np.clip(gray + 0.1 * rng.standard_normal((size, 4, 8, 8, 3)), -1, 1).astype(np.float32)
    rows = {"fps": np.full(size, 8, np.float32), "sample": np.arange(size, dtype=np.int32)}
    return system.to_arrays({"video": video, **rows, "caption": [""] * size})


def train(system, steps):
    optimize = optimizer.build(system.recipe.optimizer, steps)
    current = jax.jit(lambda: state.create(system, optimize, 0))()
    run, losses = step.make_train_step(system, optimize), []
    for index in range(steps):
        current, metrics = run(current, system.frozen(), batch(system, seed=index))
        losses.append(float(metrics["loss"]))
    return current, losses, metrics


@pytest.mark.parametrize("system", [ToySystem, Infilling])
def test_a_system_of_another_family_trains_evaluates_and_previews(system):
    made = make(system)
    current, losses, metrics = train(made, 60)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]) and "dropped" in metrics
    report = made.evaluate(current.params, {}, made.frozen(), [batch(made, 4), batch(made, 2, seed=9)])
    np.testing.assert_allclose(report.metrics["mse"], (report.metrics["mse_50"] + report.metrics["mse_100"]) / 2)
    assert report.metrics["mse_50"] < report.metrics["mse_100"] < report.metrics["mse_shuffled"]
    assert [video.shape for video in report.videos.values()] == [(4, 8, 16, 3)] * 4
    again = made.evaluate(current.params, {}, made.frozen(), [batch(made, 4), batch(made, 2, seed=9)])
    assert again.metrics == report.metrics  # fixed noise
    for video, other in zip(report.videos.values(), again.videos.values(), strict=True):
        np.testing.assert_array_equal(video, other)


def test_the_spec_is_that_of_batches():
    made = make(token_cache=4)
    shapes = {name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in made.batch_spec().items()}
    found = batch(made)
    assert shapes == {name: (np.shape(leaf), np.asarray(leaf).dtype) for name, leaf in found.items()}
    np.testing.assert_allclose(found["latents"], Pooling().encode(found["video"]).values, atol=1e-6)


def test_cached_latents_train_the_same():
    losses = []
    for size in (0, 8):
        made = make(token_cache=size)
        params, _ = made.init(jax.random.key(0))
        losses.append(made.loss(params, {}, made.frozen(), batch(made), jax.random.key(1), 0)[0])
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_known_latents_come_through_training_and_sampling_untouched():
    made = make(Infilling)
    data, keys = batch(made, 2), jax.random.split(jax.random.key(0), 2)
    params, _ = made.init(jax.random.key(0))
    x0, mask, raw = made.example(made.frozen(), data, keys)
    x_t, _ = made.process.corrupt(x0, jnp.full(2, 0.9), keys, mask)
    np.testing.assert_array_equal(x_t[:, 0], x0[:, 0])
    assert (x_t[:, 1] != x0[:, 1]).all()
    start, known, raw = made.start(made.frozen(), data, (4, 8, 8), keys)
    samples = made.sample(params, raw, raw, keys, start, made.make_sampler(None), None, steps=3, known=known)
    np.testing.assert_array_equal(samples.x[:, 0], x0[:, 0])
    assert (samples.x[:, 1] != start[:, 1]).all()


def test_only_conditions_that_training_drops_are_guided_away_from():
    made = make()
    raw = {"shade": np.array([0, 1]), "fps": np.array([8.0, 9.0])}
    away = made.without_conditions({}, raw, 2)
    np.testing.assert_array_equal(away["shade"], [2, 2])
    np.testing.assert_array_equal(away["fps"], raw["fps"])


def test_the_latent_space_is_filled_in_and_the_place_is_required():
    assert make().recipe.latent_space == "pooling"
    assert make().planned(VALUES).recipe.latent_space == "pooling"
    for build in (make, lambda **values: ToySystem.planned({**VALUES, **values})):
        with pytest.raises(UserError, match=r"config\.autoencoder: name the workdir of a trained autoencoder"):
            build(autoencoder="")
