"""The contract of every denoiser."""

from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
from jaxtyping import Array, Float

from motionaura_jax.core.types import Cond, PyTree
from motionaura_jax.ops.prediction import Prediction

Size = tuple[int, int, int]


class Denoiser(nn.Module):
    """Network that predicts what a diffusion process asks for, from corrupted latents under a condition.

    A network may compute the same function in several forms, with other parameters for each: `training` and `inference`
    are the forms to run, `for_training` and `for_inference` turn parameters, as they are initialized and saved, into
    theirs.
    """

    def __call__(self, x_t: Array, level: Float[Array, " b"], cond: Cond, memory: Any = None) -> Prediction:
        """Return the prediction for every position.

        Args:
          x_t: corrupted latents, `(b, t, h, w)` tokens or `(b, t, h, w, c)` values.
          level: what the process conditions on (`Process.level`).
          memory: what `encode_cond` returned for `cond`, whose parts in it are then not read again.
        """
        raise NotImplementedError

    def encode_cond(self, cond: Cond) -> Any:
        """Return all that depends on the condition alone, computed once per sample; None if there is nothing."""
        return None

    @property
    def training(self) -> Self:
        """Return the form of the network that training runs."""
        return self

    @property
    def inference(self) -> Self:
        """Return the form of the network that sampling runs."""
        return self

    @nn.nowrap
    def for_training(self, params: PyTree) -> PyTree:
        """Return the parameters of `training`; differentiable."""
        return params

    @nn.nowrap
    def for_inference(self, params: PyTree) -> PyTree:
        """Return the parameters of `inference`."""
        return params

    @nn.nowrap
    def example(self) -> tuple[Array, Float[Array, " 1"], Cond]:
        """Return the smallest arguments of a call, from which parameters are initialized."""
        raise NotImplementedError

    @nn.nowrap
    def check_mesh(self, sizes: Mapping[str, int], grid: Size) -> None:
        """Check a mesh with axes of `sizes` for clips of `grid` (t, h, w) latent cells.

        Raises:
          UserError: the network cannot split such clips over that mesh.
        """
