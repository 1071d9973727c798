"""The towers of SigLIP as published: pictures by patch and pooled, and text.  Zhai et al. 2023."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motionaura_jax.models.encoders.tower_config import SiglipTextConfig, SiglipVisionConfig
from motionaura_jax.models.encoders.transformer import MLP, Features, Patches, Transformer, WordsAndPlaces, attend, norm


class SiglipVision(nn.Module):
    """Pictures to features; `pooled` is what a learned query reads from the patches."""

    config: SiglipVisionConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pixels: Float[Array, "b H W 3"]) -> Features:
        """Encodes pictures of the size in the settings, with values in [-1, 1]; one token per patch, row after row."""
        config = self.config
        x = Patches(config, self.dtype, use_bias=True, name="patches")(pixels)
        places = self.param("places", nn.initializers.normal(0.02), (config.patches, config.hidden_size))
        x = Transformer(config, self.dtype, name="transformer")(x + places.astype(x.dtype))
        tokens = norm(config, self.dtype, "norm")(x)
        pooled = AttentionPool(config, self.dtype, name="pool")(tokens) if config.vision_use_head else None
        return Features(tokens, pooled)


class AttentionPool(nn.Module):
    """One learned query attends to all tokens; an MLP follows.  Zhai et al. 2022, section 3.4 ("MAP head")."""

    config: SiglipVisionConfig
    dtype: str

    @nn.compact
    def __call__(self, tokens: Float[Array, "b l d"]) -> Float[Array, "b d"]:
        config, width, dtype = self.config, self.config.hidden_size, jnp.dtype(self.dtype)
        probe = self.param("probe", nn.initializers.normal(0.02), (1, 1, width)).astype(dtype)
        # Query, key and value are one matrix in the file, and the query needs a third of it only.
        kernel = self.param("input_kernel", nn.initializers.lecun_normal(), (width, 3 * width)).astype(dtype)
        bias = self.param("input_bias", nn.initializers.zeros, (3 * width,)).astype(dtype)
        query = jnp.broadcast_to(probe @ kernel[:, :width] + bias[:width], (len(tokens), 1, width))
        key, value = jnp.split(tokens @ kernel[:, width:] + bias[width:], 2, axis=-1)
        x = nn.Dense(width, dtype=dtype, name="output")(attend(query, key, value, config.num_attention_heads))
        return (x + MLP(config, self.dtype, name="mlp")(norm(config, self.dtype, "norm")(x)))[:, 0]


class SiglipText(nn.Module):
    """Text to features; `pooled` is that of the last position, padding included, as in training."""

    config: SiglipTextConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> Features:
        """Encodes ids that are padded to `max_position_embeddings`; nothing is masked."""
        config = self.config
        embed = WordsAndPlaces(
            config.vocab_size, config.max_position_embeddings, config.hidden_size, self.dtype, name="embedding"
        )
        x = Transformer(config, self.dtype, name="transformer")(embed(ids))
        tokens = norm(config, self.dtype, "norm")(x)
        head = nn.Dense(config.projection_size or config.hidden_size, dtype=jnp.dtype(self.dtype), name="head")
        return Features(tokens, head(tokens[:, -1]))
