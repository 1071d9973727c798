"""PatchGAN discriminators and their losses for the optional adversarial term.  Isola et al. 2017."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from motionaura_jax.models.autoencoders.config import DiscriminatorConfig
from motionaura_jax.models.layers.conv import GroupNorm

_SLOPE = 0.2


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
    """Non-saturating loss of the tokenizer: mean softplus(-D(fake)).  Goodfellow et al. 2014."""
    return nn.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Float[Array, "*shape"], fake_logits: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Cross-entropy of real against fake patches; give it logits of a reconstruction under `stop_gradient`."""
    return nn.softplus(-real_logits).mean() + nn.softplus(fake_logits).mean()


def r1_penalty(apply_fn: Callable[[Array], Array], real: Float[Array, "b t h w 3"]) -> Float[Array, ""]:
    """Mean over real clips of |d D(x) / d x|^2, D the mean logit of a clip.  Mescheder et al. 2018, equation 9."""

    def total(video: Array) -> Array:
        return apply_fn(video).mean((1, 2, 3)).sum()

    return jnp.square(jax.grad(total)(real)).sum((1, 2, 3, 4)).mean()
