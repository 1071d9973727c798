"""The towers of CLIP as published: all tokens, one vector, and its projection.  Radford et al. 2021."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motionaura_jax.models.encoders.tower_config import ClipTextConfig, ClipVisionConfig
from motionaura_jax.models.encoders.transformer import Features, Patches, Transformer, WordsAndPlaces, norm

_OLD_END = 2  # what the first published settings call the end of a text; its id is the highest one there
_MASKED = -1e9


class ClipVision(nn.Module):
    """Pictures to features: the class token, then one per patch."""

    config: ClipVisionConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pixels: Float[Array, "b H W 3"]) -> Features:
        """Encodes pictures of the size in the settings, less CLIP's mean color and over its deviation.

        `tokens` are not normalized; `pooled` is the class token, normalized.
        """
        config, width = self.config, self.config.hidden_size
        x = Patches(config, self.dtype, use_bias=False, name="patches")(pixels)
        first = self.param("class", nn.initializers.normal(0.02), (width,)).astype(x.dtype)
        places = self.param("places", nn.initializers.normal(0.02), (1 + config.patches, width))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, width)), x], axis=1) + places.astype(x.dtype)
        x = norm(config, self.dtype, "first_norm")(x)
        tokens = Transformer(config, self.dtype, name="transformer")(x)
        pooled = norm(config, self.dtype, "norm")(tokens[:, 0])
        return Features(tokens, pooled, _project(config.projection_dim, self.dtype, pooled))


class ClipText(nn.Module):
    """Text to features, each position from those before it; `pooled` is that of the end of the text."""

    config: ClipTextConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> Features:
        """Encodes ids with an end in every row; what follows it has no influence on `pooled`."""
        config, length = self.config, ids.shape[1]
        embed = WordsAndPlaces(
            config.vocab_size, config.max_position_embeddings, config.hidden_size, self.dtype, name="embedding"
        )
        causal = jnp.where(jnp.tri(length, dtype=bool), 0.0, _MASKED)
        x = Transformer(config, self.dtype, name="transformer")(embed(ids), causal)
        tokens = norm(config, self.dtype, "norm")(x)
        ends = ids if config.eos_token_id == _OLD_END else ids == config.eos_token_id
        pooled = tokens[jnp.arange(len(ids)), jnp.argmax(ends, axis=1)]
        return Features(tokens, pooled, _project(config.projection_dim, self.dtype, pooled))


def _project(size: int, dtype: str, pooled: Array) -> Float[Array, "b p"] | None:
    return nn.Dense(size, use_bias=False, dtype=jnp.dtype(dtype), name="projection")(pooled) if size else None
