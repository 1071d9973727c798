"""A published encoder as a value: network and weights in one pytree."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array

from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel import constraints


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower:
    """A frozen encoder; call it with the inputs of its network, and pass it through `jax.jit` like any array.

    Attributes:
      network: static; `network.config` are the settings.
      digest: hash of settings and published tensors, 16 hex digits.
    """

    network: nn.Module = dataclasses.field(metadata={"static": True})
    params: PyTree
    digest: str = dataclasses.field(metadata={"static": True}, default="")

    def __call__(self, *inputs: Array) -> Any:
        """Features; see the `__call__` of the network."""
        return self.network.apply({"params": constraints.gathered(self.params)}, *inputs)
