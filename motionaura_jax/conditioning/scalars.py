"""Numbers that condition a denoiser, such as the frame rate."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from motionaura_jax.conditioning.base import Fields, Raw
from motionaura_jax.core.types import PyTree


class Scalar:
    """One number per clip, which the loader gives under its name; it has neither weights nor a null value."""

    def __init__(self, name: str):
        self.name = name

    def host(self, batch: Mapping[str, Any]) -> Float[Array, " b"]:
        """Return the numbers of a batch."""
        return batch[self.name]

    def abstract(self, size: int) -> jax.ShapeDtypeStruct:
        """Return the shape of `host`."""
        return jax.ShapeDtypeStruct((size,), jnp.float32)

    def null(self) -> Raw:
        """Refuse: every clip has its number.

        Raises:
          ValueError: always.
        """
        raise ValueError(f"{self.name}: this condition cannot be dropped")

    def init(self, key: Key[Array, ""]) -> None:
        """Return None."""

    def frozen(self) -> None:
        """Return None."""

    def read(self, frozen: PyTree, raw: Raw) -> Raw:
        """Return the numbers."""
        return raw

    def __call__(self, params: PyTree, frozen: PyTree, raw: Float[Array, " b"]) -> Fields:
        """Return the numbers under their name."""
        return {"scalars": {self.name: raw}}
