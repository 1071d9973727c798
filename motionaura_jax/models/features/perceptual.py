"""Distances between videos in the features of a frozen network, and SqueezeNet 1.1 as the default network.

Zhang et al. 2018, without learned layer weights; Iandola et al. 2016.  The SqueezeNet weights are the Caffe release (all
layers up to fire9).  They are not torchvision's, so this is an unweighted perceptual distance of its own and not LPIPS.
"""

import dataclasses
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import PyTree

Weights = Mapping[str, Mapping[str, Array]]

_MEAN_BGR = (103.939, 116.779, 123.68)
_FIRES = (2, 3, 4, 5, 6, 7, 8, 9)
_POOL_BEFORE = (2, 4, 6)
LAYERS = ("conv1", *(f"fire{n}/{part}" for n in _FIRES for part in ("squeeze1x1", "expand1x1", "expand3x3")))


class VideoDistance(Protocol):
    """A distance between videos that a frozen network computes, of single frames or of whole clips."""

    @property
    def load(self) -> Callable[[str], PyTree]:
        """Return the function that reads the network's weights from a file; it raises UserError if it cannot."""

    def distance(
        self, weights: PyTree, a: Float[Array, "b t h w 3"], b: Float[Array, "b t h w 3"]
    ) -> Float[Array, " b"]:
        """Compare videos in [-1, 1]; 0 for equal ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A `VideoDistance` between the features of single frames.

    Attributes:
      load: reads the weights, any pytree of arrays, from a file; raises UserError if it cannot.
      features: (weights, images `n h w 3` in [-1, 1]) to activations `n a b c`, one array per layer.
    """

    load: Callable[[str], Any]
    features: Callable[[Any, Float[Array, "n h w 3"]], Iterable[Float[Array, "n a b c"]]]

    def distance(self, weights: Any, a: Float[Array, "b t h w 3"], b: Float[Array, "b t h w 3"]) -> Float[Array, " b"]:
        """Return the squared distance of unit-length features, averaged over positions, layers and frames."""
        frames = [video.reshape(-1, *video.shape[2:]) for video in (a, b)]
        pairs = zip(*(self.features(weights, video) for video in frames), strict=True)
        layers = [jnp.square(_unit(x) - _unit(y)).sum(-1).mean((1, 2)) for x, y in pairs]
        return jnp.stack(layers).mean(0).reshape(a.shape[0], -1).mean(1)


def load_squeezenet(path: str | pathlib.Path) -> Weights:
    """Read an `.npz` with `LAYER/kernel` (HWIO) and `LAYER/bias` for every name in `LAYERS`.

    Raises:
      UserError: the file is missing, is no `.npz`, or lacks a layer.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: jnp.asarray(file[name], jnp.float32) for name in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as SqueezeNet weights (.npz): {error}") from error
    missing = [f"{layer}/{part}" for layer in LAYERS for part in ("kernel", "bias") if f"{layer}/{part}" not in arrays]
    if missing:
        raise UserError(f"{path}: lacks {missing[0]}; give SqueezeNet 1.1 weights with all layers up to fire9")
    return {layer: {part: arrays[f"{layer}/{part}"] for part in ("kernel", "bias")} for layer in LAYERS}


def squeezenet_features(weights: Weights, images: Float[Array, "n h w 3"]) -> Iterator[Float[Array, "n a b c"]]:
    """Yield the activations of conv1 and of all fire modules for RGB images in [-1, 1] of at least 32 x 32 pixels."""
    x = (images[..., ::-1] * 0.5 + 0.5) * 255.0 - jnp.asarray(_MEAN_BGR)  # Caffe reads BGR in 0 .. 255, centered
    x = _conv(weights["conv1"], x, stride=2)
    yield x
    for number in _FIRES:
        if number in _POOL_BEFORE:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        squeezed = _conv(weights[f"fire{number}/squeeze1x1"], x)
        wide = [_conv(weights[f"fire{number}/expand{size}x{size}"], squeezed, padding=size // 2) for size in (1, 3)]
        x = jnp.concatenate(wide, axis=-1)
        yield x


SQUEEZENET = FeatureNetwork(load=load_squeezenet, features=squeezenet_features)


def _conv(layer: Mapping[str, Array], x: Array, stride: int = 1, padding: int = 0) -> Array:
    x = jax.lax.conv_general_dilated(
        x, layer["kernel"], (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(x + layer["bias"])


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-10)
