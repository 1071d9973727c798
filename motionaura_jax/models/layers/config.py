"""Settings of layers that several networks share, free of jax imports."""

import dataclasses
from typing import Literal

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Checked, Natural


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig(Checked):
    """Low-rank adapters beside frozen weights; with them, nothing else trains.

    Attributes:
      rank: width between the two maps of an adapter; the paper's is 64, and 0 means no adapters.
      targets: projections of self- and cross-attention that have one: query, key, value, output.
      mlp: whether one follows the MLP of each block.
      activation: between the two maps: `gelu` is the paper's, with `none` an adapter is a linear map of low rank, as PEFT
        knows it.

    Raises:
      UserError: a value that is not among the choices, or a rank without anything to adapt.
    """

    rank: Natural = 0
    targets: tuple[Literal["q", "k", "v", "o"], ...] = ("q", "k")
    mlp: bool = True
    activation: Literal["gelu", "none"] = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank and not (self.targets or self.mlp):
            raise UserError("LoraConfig.targets: adapters need something to adapt; name some of q, k, v, o, or set mlp")

    def adapts(self, name: str) -> bool:
        """Whether the projection `name`, or "mlp", has an adapter."""
        return self.rank > 0 and (self.mlp if name == "mlp" else name in self.targets)
