"""Multi-head attention with normalized queries and keys.  MotionAura section 3.3; Henry et al. 2020."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from motionaura_jax.models.layers.embeddings import rotate
from motionaura_jax.ops.attention import Heads, attend, split_heads

_EPSILON = 1e-6


def normalize(x: Heads) -> Heads:
    """Divide each head's vector by its root mean square, in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + _EPSILON)).astype(x.dtype)


class Attention(nn.Module):
    """Attention of `into(x)` to itself or to the keys and values of a context.

    The input projection `into` returns (query, key, value) for self-attention and (query,) for cross-attention; `out` is
    the output projection.  Flax names parameters after these fields, so checkpoints depend on the names.

    Queries and keys have unit mean square, so |logit| <= gain * sqrt(head width) and attention cannot saturate.  Each head
    learns its gain, starting from `gain`.
    """

    heads: int
    gain: float
    into: nn.Module
    out: nn.Module

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b s d"],
        *,
        angle: Float[Array, "s half"] | None = None,
        context: tuple[Heads, Heads] | None = None,
        mask: Bool[Array, "b k"] | None = None,
    ) -> Float[Array, "b s d"]:
        """Attend to `context`, or to `x` itself.

        Args:
          angle: rotary angles of queries and keys.
          context: normalized keys, and values; None uses those of `x`.
          mask: False where a key is absent.
        """
        query, *own = (split_heads(y, self.heads) for y in self.into(x))
        gain = self.param("gain", nn.initializers.constant(self.gain), (self.heads,))
        query = normalize(query) * gain[:, None].astype(query.dtype)
        key, value = context if context is not None else (normalize(own[0]), own[1])
        if angle is not None:
            query, key = rotate(query, angle), rotate(key, angle)
        heads = attend(query, key, value, mask)
        return self.out(heads.reshape(*x.shape[:2], -1))
