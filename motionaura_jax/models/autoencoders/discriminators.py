"""PatchGAN discriminators, their losses, and the game that they play against a decoder.  Isola et al. 2017."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from motionaura_jax.core.types import PyTree
from motionaura_jax.models.autoencoders.config import DiscriminatorConfig
from motionaura_jax.models.layers.conv import GroupNorm, is_dense_kernel
from motionaura_jax.parallel import constraints, rules

_SLOPE = 0.2

# The first two convolutions form a pair.
rules.declare((r"conv_0/kernel$", rules.COLUMNS), (r"conv_1/kernel$", rules.ROWS))


class Discriminator(nn.Module):
    """Strided 4x4 convolutions with GroupNorm and leaky ReLU to one logit per patch.

    `3d` also halves time in every stage where at least two frames are left; `2d` sees each frame alone.  The R1 penalty
    differentiates twice, so the library convolution is used, not the forms of `ops` with a hand-written gradient.
    """

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t h w"]:
        dtype, volumetric = jnp.dtype(self.config.dtype), self.config.kind == "3d"
        x = video.astype(dtype)
        for index, features in enumerate(self.config.channels):
            # Clips of any length share the weights: only the stride depends on it.
            kernel, strides = (3 if volumetric else 1, 4, 4), (2 if volumetric and x.shape[1] > 1 else 1, 2, 2)
            x = nn.Conv(features, kernel, strides, padding="SAME", dtype=dtype, name=f"conv_{index}")(x)
            if index:
                x = GroupNorm(per_frame=not volumetric, name=f"norm_{index}")(x)
            x = nn.leaky_relu(x, _SLOPE)
        kernel = (3 if volumetric else 1, 3, 3)
        return nn.Conv(1, kernel, padding="SAME", dtype=dtype, name="logits")(x)[..., 0].astype(jnp.float32)


def generator_loss(fake_logits: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Return the non-saturating loss of the autoencoder: mean softplus(-D(fake)).  Goodfellow et al. 2014."""
    return nn.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Float[Array, "*shape"], fake_logits: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Return the cross-entropy of real against fake patches; stop the gradient of the reconstruction before."""
    return nn.softplus(-real_logits).mean() + nn.softplus(fake_logits).mean()


def r1_penalty(apply_fn: Callable[[Array], Array], real: Float[Array, "b t h w 3"]) -> Float[Array, ""]:
    """Return the mean over real clips of |d D(x) / d x|^2 / n, D the sum of the n logits of a clip.

    Dividing by n makes it a mean over patches, so that it does not depend on the size of the clips.  With one logit per
    clip it is equation 9 of Mescheder et al. 2018.
    """
    logits, pullback = jax.vjp(apply_fn, real)
    (gradient,) = pullback(jnp.ones_like(logits))
    return jnp.square(gradient).sum((1, 2, 3, 4)).mean() / math.prod(logits.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialLoss:
    """An autoencoder against several discriminators.

    Attributes:
      discriminators: settings of each; their `weight` multiplies `weight`.
      weight: of the generator terms in the loss.
      r1: weight of the gradient penalty on real clips; 0 leaves it out.
    """

    discriminators: Sequence[DiscriminatorConfig]
    weight: float
    r1: float

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the discriminators' parameters: "discriminator", "discriminator_1", ..."""
        return tuple(_numbered("discriminator", index) for index in range(len(self.discriminators)))

    def init(self, key: Key[Array, ""], video: Float[Array, "1 t h w 3"]) -> dict[str, PyTree]:
        """Return fresh parameters by name for clips like `video`."""
        keys = [jax.random.fold_in(key, index) if index else key for index in range(len(self.discriminators))]
        parts = zip(self.names, self.discriminators, keys, strict=True)
        return {name: Discriminator(config).init(key, video)["params"] for name, config, key in parts}

    def __call__(
        self,
        params: Mapping[str, PyTree],
        real: Float[Array, "b t h w 3"],
        fake: Float[Array, "b t h w 3"],
        active: Bool[Array, ""],
    ) -> tuple[Float[Array, "b t h w 3"], Float[Array, ""], dict[str, Array]]:
        """Play one step.

        Every term trains its own player alone: a discriminator's terms train its parameters in `params`, the generator
        terms those behind `fake`.  Unless `active`, nothing is computed: loss, terms and gradients are 0.

        Returns:
          `fake` for all other losses, the losses of all players as one scalar, and each term for the log.
        """
        inputs = {name: params[name] for name in self.names}, fake

        def on(*inputs: PyTree) -> tuple[Array, dict[str, Array], PyTree]:
            (total, terms), gradients = jax.value_and_grad(self._losses, argnums=(0, 1), has_aux=True)(*inputs)
            return total, terms, gradients

        def off(*inputs: PyTree) -> tuple[Array, dict[str, Array], PyTree]:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(on, *inputs))

        # The branch returns the gradients itself.  Differentiating the `cond` would instead carry all activations of
        # the discriminators out of it, as zeros before the start.
        total, terms, gradients = jax.lax.cond(active, on, off, *jax.lax.stop_gradient((*inputs, real)))
        fake, total = _with_gradients(inputs, total, gradients, active)
        return fake, total, terms

    def _losses(self, params: Mapping[str, PyTree], fake: Array, real: Array) -> tuple[Array, dict[str, Array]]:
        total, terms = jnp.zeros(()), dict[str, Array]()
        for index, (name, config) in enumerate(zip(self.names, self.discriminators, strict=True)):
            weights = constraints.gathered(params[name], functools.partial(_travels_as, config))

            def judge(video: Array, weights: PyTree = weights, config: DiscriminatorConfig = config) -> Any:
                return Discriminator(config).apply({"params": weights}, video)

            generator = generator_loss(judge(fake, jax.lax.stop_gradient(weights)))
            discriminator = discriminator_loss(judge(real), judge(jax.lax.stop_gradient(fake)))
            total += self.weight * config.weight * generator + discriminator
            found = {"generator": generator, "discriminator": discriminator}
            if self.r1:
                found["r1"] = r1_penalty(judge, real)
                total += 0.5 * self.r1 * found["r1"]
            terms |= {_numbered(term, index): value for term, value in found.items()}
        return total, terms


@jax.custom_vjp
def _with_gradients(
    inputs: tuple[PyTree, Array], total: Array, gradients: tuple[PyTree, Array], active: Array
) -> tuple[Array, Array]:
    """Return `fake` of `inputs` (params, fake), and `total` with `gradients` as its derivatives by `inputs`."""
    return inputs[1], total


def _forward(inputs: PyTree, total: Array, gradients: PyTree, active: Array) -> tuple[tuple[Array, Array], PyTree]:
    return (inputs[1], total), (gradients, active)


def _backward(saved: PyTree, cotangents: tuple[Array, Array]) -> tuple[PyTree, None, None, None]:
    gradients, active = saved
    others, scale = cotangents

    def added(others: Array) -> tuple[PyTree, Array]:
        of_params, of_fake = jax.tree.map(lambda gradient: scale * gradient, gradients)
        return of_params, others + of_fake

    # Before the start the gradient of the other losses passes untouched, without work on zeros.
    return jax.lax.cond(active, added, lambda others: (gradients[0], others), others), None, None, None


_with_gradients.defvjp(_forward, _backward)


def _travels_as(config: DiscriminatorConfig, place: rules.Placement) -> jnp.dtype | None:
    return jnp.dtype(config.dtype) if is_dense_kernel(place) else None


def _numbered(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name
