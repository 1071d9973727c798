"""PatchGAN discriminators: shapes, losses in closed form, gradients, double differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motionaura_jax.models.autoencoders.config import DiscriminatorConfig
from motionaura_jax.models.autoencoders.discriminators import (
    Discriminator,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)


@pytest.mark.parametrize(("kind", "shape"), [("2d", (2, 4, 4, 4)), ("3d", (2, 1, 4, 4))])
def test_discriminator_learns_and_teaches(kind: str, shape: tuple[int, ...]) -> None:
    model = Discriminator(DiscriminatorConfig(kind=kind, channels=(4, 8)))
    real = jax.random.normal(jax.random.key(0), (2, 4, 16, 16, 3))
    params = jax.jit(model.init)(jax.random.key(1), real)

    @jax.jit
    def gradients(params: dict, fake: jax.Array) -> tuple[jax.Array, dict, jax.Array]:
        def judge(params: dict) -> tuple[jax.Array, jax.Array]:
            logits, penalty = model.apply(params, real), r1_penalty(lambda x: model.apply(params, x), real)
            return discriminator_loss(logits, model.apply(params, fake)) + penalty, logits

        of_weights, logits = jax.grad(judge, has_aux=True)(params)
        return logits, of_weights, jax.grad(lambda x: generator_loss(model.apply(params, x)))(fake)

    logits, of_weights, of_fake = gradients(params, jnp.zeros_like(real))
    assert logits.shape == shape
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(of_weights))
    assert float(jnp.abs(of_weights["params"]["conv_0"]["kernel"]).max()) > 0
    assert float(jnp.abs(of_fake).max()) > 0


def test_losses_in_closed_form() -> None:
    zeros = jnp.zeros((2, 3))
    assert float(generator_loss(zeros)) == pytest.approx(np.log(2.0))
    assert float(discriminator_loss(zeros, zeros)) == pytest.approx(2 * np.log(2.0))
    assert float(discriminator_loss(zeros + 20.0, zeros - 20.0)) < 1e-6


def test_r1_of_a_linear_discriminator_is_its_squared_norm() -> None:
    weights = jax.random.normal(jax.random.key(0), (1, 2, 2, 2, 3))

    def linear(x: jax.Array) -> jax.Array:
        return (x * weights).sum((1, 2, 3, 4))[:, None, None, None]

    real = jax.random.normal(jax.random.key(1), (5, 2, 2, 2, 3))
    np.testing.assert_allclose(r1_penalty(linear, real), jnp.square(weights).sum(), rtol=1e-5)


@pytest.mark.parametrize("size", [(2, 8, 8), (4, 16, 24)])
def test_r1_does_not_depend_on_the_size_of_the_clips(size: tuple[int, int, int]) -> None:
    """Patches of 1x4x4 pixels that do not overlap have the squared norm of their weights each."""
    weights = jax.random.normal(jax.random.key(0), (4, 4, 3))

    def patches(x: jax.Array) -> jax.Array:
        b, t, h, w, c = x.shape
        return jnp.einsum("bthiwjc,ijc->bthw", x.reshape(b, t, h // 4, 4, w // 4, 4, c), weights)

    real = jax.random.normal(jax.random.key(1), (3, *size, 3))
    np.testing.assert_allclose(r1_penalty(patches, real), jnp.square(weights).sum(), rtol=1e-5)


@pytest.mark.parametrize("trained", [1, 8])
def test_clips_of_any_length_share_the_weights(trained: int) -> None:
    """Buckets of a recipe differ in length."""
    model = Discriminator(DiscriminatorConfig(channels=(4, 8)))
    params, apply = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, trained, 8, 8, 3))), jax.jit(model.apply)
    for frames, left in ((8, 2), (4, 1), (1, 1)):
        video = jax.random.normal(jax.random.key(1), (1, frames, 8, 8, 3))
        logits = apply(params, video)
        assert logits.shape == (1, left, 2, 2) and bool(jnp.isfinite(logits).all())


def test_single_frames_pass_the_3d_discriminator() -> None:
    model = Discriminator(DiscriminatorConfig(channels=(4,)))
    image = jnp.zeros((1, 1, 8, 8, 3))
    assert jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], image).shape == (1, 1, 4, 4)
