"""The transformer that the towers of SigLIP and CLIP share: pre-norm, with biases, scanned over layers."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motionaura_jax.models.encoders.tower_config import TransformerConfig, VisionConfig
from motionaura_jax.parallel import constraints

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_pytorch_tanh": nn.gelu,
    "gelu_new": nn.gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class Features(NamedTuple):
    """What a tower makes of its input: all tokens, one vector, and that vector in the space shared by text and pictures."""

    tokens: Float[Array, "b l d"]
    pooled: Float[Array, "b d"] | None
    projected: Float[Array, "b p"] | None = None


class Transformer(nn.Module):
    """All layers; products in `dtype`, softmax and norms in fp32."""

    config: TransformerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], bias: Float[Array, "l l"] | float = 0.0) -> Float[Array, "b l d"]:
        """Runs the layers; `bias` is added to all scores before the softmax."""
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.config.num_hidden_layers,
        )
        return blocks(self.config, self.dtype, name="blocks")(x, bias)[0]


class Block(nn.Module):
    """Attention, then MLP, each on a normalized input; `(x, bias) -> (x, None)`, as a scan needs it."""

    config: TransformerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], bias: Array | float) -> tuple[Float[Array, "b l d"], None]:
        config, dtype = self.config, jnp.dtype(self.dtype)
        x = constraints.batch(x)
        y = norm(config, self.dtype, "attention_norm")(x)
        query, key, value = (
            nn.Dense(config.hidden_size, dtype=dtype, name=name)(y) for name in ("query", "key", "value")
        )
        mixed = attend(query, key, value, config.num_attention_heads, bias)
        x = x + nn.Dense(config.hidden_size, dtype=dtype, name="output")(mixed)
        y = norm(config, self.dtype, "mlp_norm")(x)
        return constraints.batch(x + MLP(config, self.dtype, name="mlp")(y)), None


class MLP(nn.Module):
    """Two layers with the activation of the settings."""

    config: TransformerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        config, dtype = self.config, jnp.dtype(self.dtype)
        y = _ACTIVATIONS[config.hidden_act](nn.Dense(config.intermediate_size, dtype=dtype, name="up")(x))
        return nn.Dense(config.hidden_size, dtype=dtype, name="down")(y)


class Patches(nn.Module):
    """Pixels to one vector per patch, row after row; what does not fill a patch is left out."""

    config: VisionConfig
    dtype: str
    use_bias: bool

    @nn.compact
    def __call__(self, pixels: Float[Array, "b H W 3"]) -> Float[Array, "b l d"]:
        config, size = self.config, (self.config.patch_size,) * 2
        convolve = nn.Conv(
            config.hidden_size,
            size,
            size,
            "VALID",
            use_bias=self.use_bias,
            dtype=jnp.dtype(self.dtype),
            name="projection",
        )
        x = convolve(pixels)
        return x.reshape(len(x), -1, config.hidden_size)


class WordsAndPlaces(nn.Module):
    """Embeddings of ids plus those of their positions."""

    vocab_size: int
    length: int
    width: int
    dtype: str

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        words = self.param("words", nn.initializers.normal(0.02), (self.vocab_size, self.width))
        places = self.param("places", nn.initializers.normal(0.02), (self.length, self.width))
        return (words[ids] + places[: ids.shape[1]]).astype(self.dtype)


def attend(query: Array, key: Array, value: Array, heads: int, bias: Array | float = 0.0) -> Float[Array, "b q d"]:
    """Scaled dot-product attention of `heads` heads; scores and softmax are fp32."""
    query, key, value = (x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value))
    scores = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores / query.shape[-1] ** 0.5 + bias, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, value)
    return mixed.reshape(*mixed.shape[:2], -1)


def norm(config: TransformerConfig, dtype: str, name: str) -> nn.LayerNorm:
    """A layer norm that computes in fp32 and gives `dtype`."""
    return _Norm(epsilon=config.layer_norm_eps, use_fast_variance=False, out=dtype, name=name)


class _Norm(nn.LayerNorm):
    out: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        return super().__call__(x.astype(jnp.float32)).astype(self.out)
