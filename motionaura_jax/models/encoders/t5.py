"""The encoder of T5: published ones of any size, and small ones that train along with a denoiser.

Raffel et al. 2020, section 2.1; the gated GELU of v1.1 is that of Shazeer 2020.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from motionaura_jax.models.encoders.config import T5Config
from motionaura_jax.models.encoders.text_tokenizers import PAD
from motionaura_jax.ops.attention import attend
from motionaura_jax.parallel import constraints

_MASKED = -1e9  # finite: a text without any word then gives finite features instead of NaN


class T5Encoder(nn.Module):
    """Token ids to features: pre-norm layers without biases that share one relative position bias.

    Attributes:
      dtype: of products and features; softmax and norms are float32.
      scanned: stack the parameters of all layers under `blocks` and compile one layer.  False names the layers by number
        (`attention_0`, `mlp_0`, ...), as checkpoints with a jointly trained encoder have them.
    """

    config: T5Config
    dtype: str = "float32"
    scanned: bool = True

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"] | None = None) -> Float[Array, "b l d"]:
        """Return features of unit mean square times a learned scale.

        Args:
          mask: False at padding, by default where the id is 0.  No other position sees padding, and the features there
            have no meaning.
        """
        config = self.config
        mask = ids != PAD if mask is None else mask
        table = self.param("embedding", nn.initializers.normal(1.0), (config.vocab_size, config.d_model))
        buckets = config.relative_attention_num_buckets
        bias = self.param("relative_bias", nn.initializers.normal(0.02), (buckets, config.num_heads))
        places = relative_buckets(ids.shape[1], buckets, config.relative_attention_max_distance)
        bias = jnp.moveaxis(bias.astype(jnp.float32)[places], -1, 0)
        # One array for positions and padding, made once, so that a layer adds once.
        bias = bias + jnp.where(mask, 0.0, _MASKED)[:, None, None, :]
        x = table[ids].astype(self.dtype)
        if self.scanned:
            blocks = nn.scan(
                T5Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=config.num_layers,
            )
            x, _ = blocks(config, self.dtype, name="blocks")(x, bias)
        else:
            for index in range(config.num_layers):
                x = _layer(config, self.dtype, x, bias, suffix=f"_{index}")
        return _norm(config, "norm")(x).astype(self.dtype)


class T5Block(nn.Module):
    """One layer in the form that a scan needs: `(x, bias) -> (x, None)`."""

    config: T5Config
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], bias: Float[Array, "b h l l"]) -> tuple[Float[Array, "b l d"], None]:
        x = constraints.batch(x)
        return constraints.batch(_layer(self.config, self.dtype, x, bias)), None


def _layer(config: T5Config, dtype: str, x: Array, bias: Array, *, suffix: str = "") -> Float[Array, "b l d"]:
    """Apply self-attention and MLP; their modules belong to the caller, under names that end in `suffix`."""
    y = _norm(config, f"attention_norm{suffix}")(x).astype(dtype)
    x = x + T5Attention(config, dtype, name=f"attention{suffix}")(y, bias)
    y = _norm(config, f"mlp_norm{suffix}")(x).astype(dtype)
    return x + T5MLP(config, dtype, name=f"mlp{suffix}")(y)


class T5Attention(nn.Module):
    """Multi-head self-attention without a scale: the initial query kernel carries it instead."""

    config: T5Config
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], bias: Float[Array, "b h l l"]) -> Float[Array, "b l d"]:
        config, dtype = self.config, jnp.dtype(self.dtype)
        # T5 starts the query kernel at N(0, 1 / (width d_kv)), so that scores have unit variance, the others at N(0, 1 / fan_in).
        variances = {"query": 1.0 / config.d_kv, "key": 1.0, "value": 1.0}
        query, key, value = (
            nn.DenseGeneral(
                (config.num_heads, config.d_kv), use_bias=False, dtype=dtype, kernel_init=_fan_in(variance), name=name
            )(x)
            for name, variance in variances.items()
        )
        mixed = attend(query, key, value, bias=bias, scale=1.0)
        output = nn.DenseGeneral(
            config.d_model, axis=(-2, -1), use_bias=False, dtype=dtype, kernel_init=_fan_in(1.0), name="output"
        )
        return output(mixed)


class T5MLP(nn.Module):
    """GELU(x A) * (x B), then C, or ReLU(x B), then C; no biases."""

    config: T5Config
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        config = self.config
        dense = lambda size, name: nn.Dense(  # noqa: E731
            size, use_bias=False, dtype=jnp.dtype(self.dtype), kernel_init=_fan_in(1.0), name=name
        )
        if config.feed_forward_proj == "gated-gelu":
            hidden = nn.gelu(dense(config.d_ff, "gate")(x)) * dense(config.d_ff, "up")(x)
        else:
            hidden = nn.relu(dense(config.d_ff, "up")(x))
        return dense(config.d_model, "out")(hidden)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[Array, "l l"]:
    """Return the index of the bias that a query (row) has for a key (column).

    Half of the buckets are for keys that come later.  In each half the first `buckets` / 4 distances have a bucket of their
    own; larger ones share the rest logarithmically, and everything from `max_distance` on is in the last.
    """
    distance = np.arange(1 - length, length)  # all that occur; the square itself is only traced
    half = buckets // 2
    exact = half // 2
    size = np.abs(distance)
    log = np.log(np.maximum(size, 1) / exact) / math.log(max_distance / exact)
    shared = np.minimum(exact + (log * (half - exact)).astype(int), half - 1)
    bucket = np.where(distance > 0, half, 0) + np.where(size < exact, size, shared)
    places = jnp.arange(length)
    return jnp.asarray(bucket)[places[None, :] - places[:, None] + (length - 1)]


def _norm(config: T5Config, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=config.layer_norm_epsilon, dtype=jnp.float32, name=name)


def _fan_in(variance: float) -> jax.nn.initializers.Initializer:
    return nn.initializers.variance_scaling(variance, "fan_in", "normal")
