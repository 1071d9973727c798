"""The encoder of T5 as published, for any size.  Raffel et al. 2020, section 2.1; v1.1's gated GELU: Shazeer 2020."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from motionaura_jax.models.encoders.text import relative_buckets
from motionaura_jax.models.encoders.tower_config import T5Config
from motionaura_jax.parallel import constraints

_MASKED = -1e9  # finite, so that a text without any word gives numbers, not NaN


class T5Encoder(nn.Module):
    """Ids to features: pre-norm blocks without biases, scanned; all of them share one relative position bias.

    `dtype` is that of products and features; softmax and norms are fp32.
    """

    config: T5Config
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        """Returns features; those where `mask` is False mean nothing, and no other position sees them."""
        config, dtype = self.config, jnp.dtype(self.dtype)
        buckets, heads = config.relative_attention_num_buckets, config.num_heads
        table = self.param("embedding", nn.initializers.normal(1.0), (config.vocab_size, config.d_model))
        bias = self.param("relative_bias", nn.initializers.normal(0.02), (buckets, heads)).astype(jnp.float32)
        places = relative_buckets(ids.shape[1], buckets, config.relative_attention_max_distance)
        bias = jnp.moveaxis(bias[places], -1, 0) + jnp.where(mask, 0.0, _MASKED)[:, None, None, :]
        blocks = nn.scan(
            T5Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.num_layers,
        )
        x, _ = blocks(config, self.dtype, name="blocks")(table[ids].astype(dtype), bias)
        return _norm(config, "norm")(x).astype(dtype)


class T5Block(nn.Module):
    """Self-attention without scale, then the MLP; `(x, bias) -> (x, None)`, as a scan needs it."""

    config: T5Config
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], bias: Float[Array, "b h l l"]) -> tuple[Float[Array, "b l d"], None]:
        config, dtype = self.config, jnp.dtype(self.dtype)
        dense = lambda size, name: nn.Dense(size, use_bias=False, dtype=dtype, name=name)  # noqa: E731
        x = constraints.batch(x)
        y = _norm(config, "attention_norm")(x).astype(dtype)
        query, key, value = (
            dense(config.num_heads * config.d_kv, name)(y).reshape(*y.shape[:2], config.num_heads, config.d_kv)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores + bias, axis=-1).astype(dtype)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, value)
        x = x + dense(config.d_model, "output")(mixed.reshape(*y.shape[:2], -1))
        y = _norm(config, "mlp_norm")(x).astype(dtype)
        if config.feed_forward_proj == "gated-gelu":
            y = nn.gelu(dense(config.d_ff, "gate")(y)) * dense(config.d_ff, "up")(y)
        else:
            y = nn.relu(dense(config.d_ff, "up")(y))
        return constraints.batch(x + dense(config.d_model, "down")(y)), None


def _norm(config: T5Config, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=config.layer_norm_epsilon, dtype=jnp.float32, name=name)
