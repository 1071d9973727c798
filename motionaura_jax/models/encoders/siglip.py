"""The published towers of SigLIP for pictures and text.  Zhai et al. 2023."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motionaura_jax.models.encoders.config import SiglipTextConfig, SiglipVisionConfig
from motionaura_jax.models.encoders.tower import MLP, Features, PatchEmbedding, TextEmbedding, Transformer, norm
from motionaura_jax.ops.attention import attend, split_heads


class SiglipVision(nn.Module):
    """Pictures to features, one token per patch; `pooled` comes from a learned query that attends to the tokens."""

    config: SiglipVisionConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pixels: Float[Array, "b H W 3"]) -> Features:
        """Encode pictures of `image_size` with values in [-1, 1]; tokens are row after row."""
        config = self.config
        x = PatchEmbedding(config, self.dtype, use_bias=True, name="patches")(pixels)
        places = self.param("places", nn.initializers.normal(0.02), (config.patches, config.hidden_size))
        x = Transformer(config, self.dtype, name="transformer")(x + places.astype(x.dtype))
        tokens = norm(config, self.dtype, "norm")(x)
        pooled = AttentionPool(config, self.dtype, name="pool")(tokens) if config.vision_use_head else None
        return Features(tokens, pooled)


class AttentionPool(nn.Module):
    """Attention of one learned query to all tokens, then an MLP: the "MAP head" of Zhai et al. 2022, section 3.4."""

    config: SiglipVisionConfig
    dtype: str

    @nn.compact
    def __call__(self, tokens: Float[Array, "b l d"]) -> Float[Array, "b d"]:
        config, width, dtype = self.config, self.config.hidden_size, jnp.dtype(self.dtype)
        probe = self.param("probe", nn.initializers.normal(0.02), (1, 1, width)).astype(dtype)
        # The file has query, key and value kernels as one matrix, and the probe needs the first third alone.
        kernel = self.param("input_kernel", nn.initializers.lecun_normal(), (width, 3 * width)).astype(dtype)
        bias = self.param("input_bias", nn.initializers.zeros, (3 * width,)).astype(dtype)
        query = jnp.broadcast_to(probe @ kernel[:, :width] + bias[:width], (len(tokens), 1, width))
        key, value = jnp.split(tokens @ kernel[:, width:] + bias[width:], 2, axis=-1)
        mixed = attend(*(split_heads(x, config.num_attention_heads) for x in (query, key, value)))
        x = nn.Dense(width, dtype=dtype, name="output")(mixed.reshape(query.shape))
        return (x + MLP(config, self.dtype, name="mlp")(norm(config, self.dtype, "norm")(x)))[:, 0]


class SiglipText(nn.Module):
    """Text to features; `pooled` is the token at the last position, even if that is padding, as in SigLIP's training."""

    config: SiglipTextConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> Features:
        """Encode ids that are padded to `max_position_embeddings`; padding is not masked."""
        config = self.config
        embed = TextEmbedding(
            config.vocab_size, config.max_position_embeddings, config.hidden_size, self.dtype, name="embedding"
        )
        x = Transformer(config, self.dtype, name="transformer")(embed(ids))
        tokens = norm(config, self.dtype, "norm")(x)
        head = nn.Dense(config.projection_size or config.hidden_size, dtype=jnp.dtype(self.dtype), name="head")
        return Features(tokens, head(tokens[:, -1]))
