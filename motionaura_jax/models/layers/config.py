"""Settings of shared layers.  No jax imports."""

import dataclasses
from typing import Annotated, Literal

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Checked, between


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig(Checked):
    """Settings of low-rank adapters; with a rank above 0 only adapters train.

    Attributes:
      rank: width between the two maps of an adapter, 64 in the paper; 0 means no adapters.
      targets: adapted projections of self- and cross-attention: query, key, value, output.
      mlp: add an adapter after the MLP of each block.
      activation: function between the two maps: `gelu` as in the paper; `none` makes the adapter linear, as in PEFT.

    Raises:
      UserError: a value is not among the choices, or a rank is set without targets.
    """

    rank: Annotated[int, between(0, 2**20)] = 0
    targets: tuple[Literal["q", "k", "v", "o"], ...] = ("q", "k")
    mlp: bool = True
    activation: Literal["gelu", "none"] = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank and not (self.targets or self.mlp):
            raise UserError("LoraConfig.targets: adapters need targets; name some of q, k, v, o, or set mlp")

    def adapts(self, name: str) -> bool:
        """Return True if the projection `name`, or "mlp", has an adapter."""
        return self.rank > 0 and (self.mlp if name == "mlp" else name in self.targets)
