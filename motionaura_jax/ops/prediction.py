"""The output of a denoiser, so that a loss need not hold all of it at once."""

import dataclasses

import jax
from jaxtyping import Array, Float

from motionaura_jax.ops.cross_entropy import linear_logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Prediction at every position of a latent grid: dense, or factored into features and a table.

    Logits over many codes take far more memory than what they are the product of.  A loss that knows its target can work
    on the factors (`ops.cross_entropy.linear_cross_entropy`); a sampler calls `dense`.

    Attributes:
      values: the dense prediction, `(batch, t, h, w, channel)`; with `table`, features of the flat grid, `(batch, s, d)`.
      table: `(channel, d)`; the dense prediction holds the products of its rows with the features.
      bias: `(channel,)`, added to the products, or None.
      grid: (t, h, w) of the features, with t h w = s; empty for a dense prediction.
    """

    values: Float[Array, "b t h w c"] | Float[Array, "b s d"]
    table: Float[Array, "c d"] | None = None
    bias: Float[Array, " c"] | None = None
    grid: tuple[int, ...] = dataclasses.field(metadata={"static": True}, default=())

    def dense(self) -> Float[Array, "b t h w c"]:
        """Return the dense prediction; a product is float32."""
        if self.table is None:
            return self.values
        logits = linear_logits(self.values, self.table, self.bias)
        return logits.reshape(len(self.values), *self.grid, len(self.table))
