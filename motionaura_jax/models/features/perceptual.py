"""A perceptual distance over the features of any network.  Zhang et al. 2018, without learned layer weights."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A frozen network whose activations are compared.

    Attributes:
      load: reads the weights, any pytree of arrays, from a file; raises UserError where it cannot.
      features: (weights, images `n h w 3` in [-1, 1]) to activations `n a b c`, one array per layer.
    """

    load: Callable[[str], Any]
    features: Callable[[Any, Float[Array, "n h w 3"]], Iterable[Float[Array, "n a b c"]]]

    def distance(self, weights: Any, a: Float[Array, "b t h w 3"], b: Float[Array, "b t h w 3"]) -> Float[Array, " b"]:
        """Squared distance of unit-length features, averaged over positions, layers and frames; 0 for equal videos."""
        frames = [video.reshape(-1, *video.shape[2:]) for video in (a, b)]
        pairs = zip(*(self.features(weights, video) for video in frames), strict=True)
        layers = [jnp.square(_unit(x) - _unit(y)).sum(-1).mean((1, 2)) for x, y in pairs]
        return jnp.stack(layers).mean(0).reshape(a.shape[0], -1).mean(1)


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-10)
