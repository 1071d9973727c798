"""Parts that published encoders ("towers") share: the pytree that holds one, and the transformer of SigLIP and CLIP."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motionaura_jax.core.types import PyTree
from motionaura_jax.models.encoders.config import TransformerConfig, VisionConfig
from motionaura_jax.ops.attention import attend, split_heads
from motionaura_jax.parallel import constraints

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_pytorch_tanh": nn.gelu,
    "gelu_new": nn.gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower:
    """A frozen encoder as a pytree: call it with the inputs of its network, and pass it through `jax.jit` like any array.

    Attributes:
      network: static; `network.config` has its settings.
      digest: hash of settings and published tensors, 16 hex digits.
    """

    network: nn.Module = dataclasses.field(metadata={"static": True})
    params: PyTree
    digest: str = dataclasses.field(metadata={"static": True}, default="")

    def __call__(self, *inputs: Array) -> Any:
        """Return features; see the `__call__` of the network."""
        return self.network.apply({"params": constraints.gathered(self.params)}, *inputs)


class Features(NamedTuple):
    """Output of a SigLIP or CLIP tower.

    Attributes:
      tokens: one vector per position.
      pooled: one vector per input, None for a tower without a head.
      projected: `pooled` in the space that text and pictures share, None without a projection.
    """

    tokens: Float[Array, "b l d"]
    pooled: Float[Array, "b d"] | None
    projected: Float[Array, "b p"] | None = None


class Transformer(nn.Module):
    """Pre-norm layers with biases, scanned; products in `dtype`, softmax and norms in float32."""

    config: TransformerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], bias: Float[Array, "1 1 l l"] | None = None) -> Float[Array, "b l d"]:
        """Run the layers; `bias` is added to all scores before the softmax."""
        blocks = nn.scan(
            TransformerBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.config.num_hidden_layers,
        )
        return blocks(self.config, self.dtype, name="blocks")(x, bias)[0]


class TransformerBlock(nn.Module):
    """One layer in the form that a scan needs: `(x, bias) -> (x, None)`."""

    config: TransformerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], bias: Array | None) -> tuple[Float[Array, "b l d"], None]:
        config, dtype = self.config, jnp.dtype(self.dtype)
        x = constraints.batch(x)
        y = norm(config, self.dtype, "attention_norm")(x)
        query, key, value = (
            split_heads(nn.Dense(config.hidden_size, dtype=dtype, name=name)(y), config.num_attention_heads)
            for name in ("query", "key", "value")
        )
        mixed = attend(query, key, value, bias=bias).reshape(y.shape)
        x = x + nn.Dense(config.hidden_size, dtype=dtype, name="output")(mixed)
        y = norm(config, self.dtype, "mlp_norm")(x)
        return constraints.batch(x + MLP(config, self.dtype, name="mlp")(y)), None


class MLP(nn.Module):
    """Linear, the activation of the settings, Linear."""

    config: TransformerConfig
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        config, dtype = self.config, jnp.dtype(self.dtype)
        y = _ACTIVATIONS[config.hidden_act](nn.Dense(config.intermediate_size, dtype=dtype, name="up")(x))
        return nn.Dense(config.hidden_size, dtype=dtype, name="down")(y)


class PatchEmbedding(nn.Module):
    """Pixels to one vector per patch, row after row; an incomplete patch at the border is left out."""

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


class TextEmbedding(nn.Module):
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


def norm(config: TransformerConfig, dtype: str, name: str) -> nn.LayerNorm:
    """Return a layer norm that computes in float32 and casts its result to `dtype`."""
    return _Norm(epsilon=config.layer_norm_eps, use_fast_variance=False, out=dtype, name=name)


class _Norm(nn.LayerNorm):
    out: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        return super().__call__(x.astype(jnp.float32)).astype(self.out)
