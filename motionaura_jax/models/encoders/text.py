"""A text encoder of T5's shape, small enough to train jointly.  Raffel et al. 2020; gated GELU of Shazeer 2020."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from motionaura_jax.models.encoders.config import TextEncoderConfig
from motionaura_jax.models.encoders.text_tokenizer import PAD

_MASKED = -1e9  # finite, so that a text without any word gives numbers, not NaN


class TextEncoder(nn.Module):
    """Word ids to features: pre-norm blocks without biases, one relative position bias shared by all of them."""

    config: TextEncoderConfig
    vocab_size: int
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Returns features of unit mean square; those of padding (id 0) mean nothing, and no other position sees them."""
        config, dtype = self.config, jnp.dtype(self.dtype)
        table = self.param("embedding", nn.initializers.normal(1.0), (self.vocab_size, self.width))
        bias = self.param("relative_bias", nn.initializers.normal(0.02), (config.buckets, config.heads))
        bias = jnp.moveaxis(bias[relative_buckets(ids.shape[1], config.buckets, config.max_distance)], -1, 0)
        bias = bias + jnp.where(ids == PAD, _MASKED, 0.0)[:, None, None, :]
        x = table[ids].astype(dtype)
        for index in range(config.layers):
            attention = SelfAttention(config.heads, self.dtype, name=f"attention_{index}")
            x = x + attention(_norm(f"attention_norm_{index}")(x).astype(dtype), bias)
            mlp = GatedMLP(round(config.mlp_ratio * self.width), self.dtype, name=f"mlp_{index}")
            x = x + mlp(_norm(f"mlp_norm_{index}")(x).astype(dtype))
        return _norm("norm")(x).astype(dtype)


class SelfAttention(nn.Module):
    """Multi-head attention without scale: the start of the query kernel carries it, as in T5."""

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], bias: Float[Array, "b h l l"]) -> Float[Array, "b l d"]:
        width, dtype = x.shape[-1], jnp.dtype(self.dtype)
        channels = -(-width // self.heads)
        # T5: query N(0, 1 / (width channels)), so that scores start with unit variance; the others N(0, 1 / fan_in).
        starts = {"query": 1.0 / channels, "key": 1.0, "value": 1.0}
        query, key, value = (
            nn.DenseGeneral(
                (self.heads, channels), use_bias=False, dtype=dtype, kernel_init=_fan_in(variance), name=name
            )(x)
            for name, variance in starts.items()
        )
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores + bias, axis=-1).astype(dtype)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, value)
        output = nn.DenseGeneral(
            width, axis=(-2, -1), use_bias=False, dtype=dtype, kernel_init=_fan_in(1.0), name="output"
        )
        return output(mixed)


class GatedMLP(nn.Module):
    """GELU(x A) * (x B), then C; no biases."""

    hidden: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        dense = lambda size, name: nn.Dense(  # noqa: E731
            size, use_bias=False, dtype=jnp.dtype(self.dtype), kernel_init=_fan_in(1.0), name=name
        )
        return dense(x.shape[-1], "out")(nn.gelu(dense(self.hidden, "gate")(x)) * dense(self.hidden, "up")(x))


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "l l"]:
    """Returns which bias a query (row) has for a key (column): half of the buckets for keys that come later.

    In each half the first `buckets` / 4 distances have a bucket of their own; the others share them logarithmically,
    and everything from `max_distance` on is in the last one.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    size = np.abs(distance)
    log = np.log(np.maximum(size, 1) / exact) / math.log(max_distance / exact)
    shared = np.minimum(exact + (log * (half - exact)).astype(int), half - 1)
    return np.where(distance > 0, half, 0) + np.where(size < exact, size, shared)


def _norm(name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=1e-6, dtype=jnp.float32, name=name)


def _fan_in(variance: float) -> jax.nn.initializers.Initializer:
    return nn.initializers.variance_scaling(variance, "fan_in", "normal")
