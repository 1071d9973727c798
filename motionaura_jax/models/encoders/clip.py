"""The published towers of CLIP for pictures and text.  Radford et al. 2021."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motionaura_jax.models.encoders.config import ClipTextConfig, ClipVisionConfig
from motionaura_jax.models.encoders.tower import Features, PatchEmbedding, TextEmbedding, Transformer, norm

_OLD_END = 2  # `eos_token_id` of the first published settings, which mean the highest id of a text by it
_MASKED = -1e9


class ClipVision(nn.Module):
    """Pictures to features: the class token first, then one token per patch."""

    config: ClipVisionConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pixels: Float[Array, "b H W 3"]) -> Features:
        """Encode pictures of `image_size`, from which CLIP's mean color was subtracted, divided by its deviation.

        `tokens` are not normalized; `pooled` is the normalized class token.
        """
        config, width = self.config, self.config.hidden_size
        x = PatchEmbedding(config, self.dtype, use_bias=False, name="patches")(pixels)
        first = self.param("class", nn.initializers.normal(0.02), (width,)).astype(x.dtype)
        places = self.param("places", nn.initializers.normal(0.02), (1 + config.patches, width))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, width)), x], axis=1) + places.astype(x.dtype)
        x = norm(config, self.dtype, "first_norm")(x)
        tokens = Transformer(config, self.dtype, name="transformer")(x)
        pooled = norm(config, self.dtype, "norm")(tokens[:, 0])
        return Features(tokens, pooled, _project(config.projection_dim, self.dtype, pooled))


class ClipText(nn.Module):
    """Text to features with causal attention; `pooled` is the token at the end of the text."""

    config: ClipTextConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> Features:
        """Encode ids that have an end mark in every row; ids after it do not influence `pooled`."""
        config, length = self.config, ids.shape[1]
        embed = TextEmbedding(
            config.vocab_size, config.max_position_embeddings, config.hidden_size, self.dtype, name="embedding"
        )
        causal = jnp.where(jnp.tri(length, dtype=bool), 0.0, _MASKED)[None, None]
        x = Transformer(config, self.dtype, name="transformer")(embed(ids), causal)
        tokens = norm(config, self.dtype, "norm")(x)
        ends = ids if config.eos_token_id == _OLD_END else ids == config.eos_token_id
        pooled = tokens[jnp.arange(len(ids)), jnp.argmax(ends, axis=1)]
        return Features(tokens, pooled, _project(config.projection_dim, self.dtype, pooled))


def _project(size: int, dtype: str, pooled: Array) -> Float[Array, "b p"] | None:
    return nn.Dense(size, use_bias=False, dtype=jnp.dtype(dtype), name="projection")(pooled) if size else None
