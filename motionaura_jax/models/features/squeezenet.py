"""SqueezeNet 1.1 features for a perceptual distance.  Iandola et al. 2016.

The weights are the Caffe release (all layers up to fire9).  They are not torchvision's, so with them this is an
unweighted perceptual distance of its own name and not LPIPS.
"""

import pathlib
import zipfile
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from motionaura_jax.core.errors import UserError
from motionaura_jax.models.features.perceptual import FeatureNetwork

Weights = Mapping[str, Mapping[str, Array]]

_MEAN_BGR = (103.939, 116.779, 123.68)
_FIRES = (2, 3, 4, 5, 6, 7, 8, 9)
_POOL_BEFORE = (2, 4, 6)
LAYERS = ("conv1", *(f"fire{n}/{part}" for n in _FIRES for part in ("squeeze1x1", "expand1x1", "expand3x3")))


def load(path: str | pathlib.Path) -> Weights:
    """Reads an `.npz` with `LAYER/kernel` (HWIO) and `LAYER/bias` for every name in `LAYERS`.

    Raises:
      UserError: a file that is missing, no `.npz`, or without one of the layers.
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


def features(weights: Weights, images: Float[Array, "n h w 3"]) -> Iterator[Float[Array, "n a b c"]]:
    """Yields the activations of conv1 and of all fire modules for RGB images in [-1, 1] of at least 32 x 32 pixels."""
    x = (images[..., ::-1] * 0.5 + 0.5) * 255.0 - jnp.asarray(_MEAN_BGR)
    x = _conv(weights["conv1"], x, stride=2)
    yield x
    for number in _FIRES:
        if number in _POOL_BEFORE:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        squeezed = _conv(weights[f"fire{number}/squeeze1x1"], x)
        wide = [_conv(weights[f"fire{number}/expand{size}x{size}"], squeezed, padding=size // 2) for size in (1, 3)]
        x = jnp.concatenate(wide, axis=-1)
        yield x


def _conv(layer: Mapping[str, Array], x: Array, stride: int = 1, padding: int = 0) -> Array:
    x = jax.lax.conv_general_dilated(
        x, layer["kernel"], (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(x + layer["bias"])


NETWORK = FeatureNetwork(load=load, features=features)
"""What the tokenizer compares clips with unless another network is given."""
