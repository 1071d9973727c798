"""Interface of denoisers."""

from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
from jaxtyping import Array, Float

from motionaura_jax.core.types import Cond, PyTree
from motionaura_jax.ops.prediction import Prediction

Size = tuple[int, int, int]


class Denoiser(nn.Module):
    """Network that predicts the target of a diffusion process from corrupted latents and a condition.

    A network may compute the same function in several forms, each with its own parameters.  `training` and `inference`
    return the forms to run; `for_training` and `for_inference` convert parameters to them from the form in which they are
    initialized and saved.
    """

    def __call__(self, x_t: Array, level: Float[Array, " b"], cond: Cond, memory: Any = None) -> Prediction:
        """Return the prediction for every position.

        Args:
          x_t: corrupted latents, `(b, t, h, w)` tokens or `(b, t, h, w, c)` values.
          level: noise level, as returned by `Process.level`.
          memory: result of `encode_cond(cond)`; the parts of `cond` that it encodes are then not read again.
        """
        raise NotImplementedError

    def encode_cond(self, cond: Cond) -> Any:
        """Compute everything that depends on the condition alone, once per sample; return None if there is nothing."""
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
        """Return minimal call arguments, for initializing the parameters."""
        raise NotImplementedError

    @nn.nowrap
    def check_mesh(self, sizes: Mapping[str, int], grid: Size) -> None:
        """Check a mesh with axes of `sizes` for clips of `grid` (t, h, w) latent cells.

        Raises:
          UserError: the network cannot split such clips over that mesh.
        """
