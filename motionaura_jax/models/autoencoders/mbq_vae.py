"""The 3D-MBQ-VAE network: encoder, decoder and masked-frame-index head.  MotionAura section 3.1 and appendix B."""

import functools
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from motionaura_jax.models.autoencoders.blocks import Level, Upsample, conv
from motionaura_jax.models.autoencoders.codebook import init_quantizer
from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.layers.conv import GroupNorm, TransposedConv1x4x4, equal_phases, is_dense_kernel
from motionaura_jax.models.layers.initializers import centered_orthogonal, fan_in_normal, from_one_draw
from motionaura_jax.ops.patches import from_patches, to_patches
from motionaura_jax.ops.silu import silu
from motionaura_jax.parallel import rules

NOT_DECAYED = frozenset({"codebook"})
"""Leaves without weight decay, besides vectors."""

rules.declare(
    (r"(codebook|sum|count|usage|idle|mask_fill)$", rules.WHOLE),
    # The inverted bottleneck: its hidden channels over `tensor`, through the depthwise convolution.
    (r"bottleneck[^/]*/(excite/)?expand/kernel$", rules.COLUMNS),
    (r"depthwise/kernel$", (("tensor", "fsdp"),)),
    (r"bottleneck[^/]*/(excite/reduce|project)/kernel$", rules.ROWS),
    # Other convolutions that follow each other: factors, and those next to the latent.
    (r"(lead_space|encoder/tail|decoder/project)/kernel$", rules.COLUMNS),
    (r"(lead_time|encoder/project|decoder/head)/kernel$", rules.ROWS),
    (r"mfi_head/hidden/kernel$", rules.COLUMNS),
    (r"mfi_head/logits/kernel$", rules.ROWS),
)


def travels_as(config: MBQVAEConfig, place: rules.Placement) -> jnp.dtype | None:
    """Return the dtype to which the network casts a parameter first of all, None if it computes with the parameter itself.

    Convolutions behind nearest upsampling may add taps of their kernels in float32 before.
    """
    added = config.upsample == "nearest" and re.search(r"/up_\d+/", place.path)
    return jnp.dtype(config.dtype) if is_dense_kernel(place) and not added else None


def _centered(config: MBQVAEConfig) -> Any:
    return functools.partial(centered_orthogonal, causal=config.causal)


def _stem(config: MBQVAEConfig, video: Float[Array, "b T H W 3"]) -> Float[Array, "b t h w c"]:
    """Reduce video to the first level's resolution with a layer `stem`; call it in a compact method."""
    if config.stem == "conv":
        return conv(config, config.channels[0], (1, 3, 3), strides=(1, 2, 2), name="stem")(video)
    patches = to_patches(video, config.patch, config.stem, causal=config.causal)
    return conv(config, config.channels[0], (1, 1, 1), name="stem")(patches)


def _output(config: MBQVAEConfig, x: Float[Array, "b t h w c"]) -> Float[Array, "b T H W 3"]:
    """Enlarge features of the first level to video with a layer `output`, which mirrors `_stem`."""
    if config.stem == "conv":
        return TransposedConv1x4x4(3, impl=config.transpose_impl, dtype=jnp.dtype(config.dtype), name="output")(x)
    # Equal phases of pixels avoid blocks early in training; the channels of a Haar packet are no phases.
    init = {"kernel_init": equal_phases(math.prod(config.patch))} if config.stem == "patch" else {}
    patches = conv(config, 3 * math.prod(config.patch), (1, 1, 1), name="output", **init)(x)
    return from_patches(patches, config.patch, config.stem, causal=config.causal)


class Encoder(nn.Module):
    """Encoder: stem, levels with strided convolutions between them, projection to `latent_dim` (appendix B.1)."""

    config: MBQVAEConfig

    @nn.compact
    def __call__(self, video: Float[Array, "b T H W 3"]) -> Float[Array, "b t h w d"]:
        config = self.config
        x = _stem(config, video.astype(config.dtype))
        for index, features in enumerate(config.channels):
            if index:
                strides = (config.time_factors[index - 1], 2, 2)
                x = conv(config, features, (3, 3, 3), strides=strides, name=f"down_{index - 1}")(x)
            x = Level(config, config.enc_mb[index], config.enc_inc[index], name=f"level_{index}")(x)
        x = silu(GroupNorm(config.per_frame, name="norm")(x))
        x = conv(config, config.z_channels, (3, 3, 3), kernel_init=_centered(config), name="tail")(x)
        z = conv(config, config.latent_dim, (1, 1, 1), kernel_init=_centered(config), name="project")(x)
        return z.astype(jnp.float32)


class Decoder(nn.Module):
    """Mirrored encoder: upsampling between levels, and a transposed convolution or patches at the end (appendix B.2)."""

    config: MBQVAEConfig

    @nn.compact
    def __call__(self, z: Float[Array, "b t h w d"]) -> Float[Array, "b T H W 3"]:
        config = self.config
        z = z.astype(config.dtype)
        x = conv(config, config.z_channels, (1, 1, 1), kernel_init=_centered(config), name="project")(z)
        x = conv(config, config.channels[-1], (3, 3, 3), kernel_init=_centered(config), name="head")(x)
        for index in reversed(range(len(config.channels))):
            x = Level(config, config.dec_mb[index], config.dec_inc[index], name=f"level_{index}")(x)
            if index:
                name, features = f"up_{index - 1}", config.channels[index - 1]
                x = Upsample(config, features, config.time_factors[index - 1], name=name)(x)
        x = silu(GroupNorm(config.per_frame, name="norm")(x))
        return _output(config, x).astype(jnp.float32)


class MaskedFrameHead(nn.Module):
    """Classifier of the masked frame: spatial mean, two-layer MLP, t_stride logits per latent frame (section 3.1)."""

    config: MBQVAEConfig

    @nn.compact
    def __call__(self, z: Float[Array, "b t h w d"]) -> Float[Array, "b N"]:
        pooled = z.mean((2, 3), dtype=jnp.float32)
        hidden = silu(nn.Dense(self.config.mfi_hidden, kernel_init=fan_in_normal, name="hidden")(pooled))
        logits = nn.Dense(self.config.t_stride, kernel_init=fan_in_normal, name="logits")(hidden)
        logits = logits.reshape(z.shape[0], -1)
        # The first latent frame of a causal tokenizer holds one video frame, so only its last logit has a meaning.
        return logits[:, self.config.t_stride - 1 :] if self.config.causal else logits


class MBQVAE(nn.Module):
    """All weights of the tokenizer except the codebook; the quantizer runs between `encode` and `decode`."""

    config: MBQVAEConfig

    def setup(self) -> None:
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.mfi_head = MaskedFrameHead(self.config)

    def encode(self, video: Float[Array, "b T H W 3"]) -> Float[Array, "b t h w d"]:
        """Encode video in [-1, 1] to continuous latents, float32.

        Raises:
          ValueError: the video does not fill whole latent cells; see `tiling.pad`.
        """
        self.config.geometry.check((video.shape[1], video.shape[2], video.shape[3]))
        return self.encoder(video)

    def decode(self, z: Float[Array, "b t h w d"]) -> Float[Array, "b T H W 3"]:
        """Decode quantized or continuous latents to video, float32, nominally in [-1, 1] but not clipped."""
        return self.decoder(z)

    def mfi_logits(self, z: Float[Array, "b t h w d"], num_frames: int | None = None) -> Float[Array, "b N"]:
        """Return logits over the index of the masked frame, for the first `num_frames` frames of a padded clip."""
        return self.mfi_head(z)[:, :num_frames]

    def __call__(self, video: Float[Array, "b T H W 3"]) -> tuple[Float[Array, "b T H W 3"], Float[Array, "b N"]]:
        """Return an unquantized reconstruction and frame logits; `init` reaches every weight through it."""
        z = self.encode(video)
        return self.decode(z), self.mfi_logits(z)


def init_tokenizer(config: MBQVAEConfig, key: Key[Array, ""]) -> tuple[dict, dict]:
    """Return fresh (params, extra) of a tokenizer; abstract-evaluable, cheap under `jax.jit`.

    Returns:
      params: `network` (weights of `MBQVAE`), `quantizer` (trained codebook, see `quantizers.quantize`) and `mask_fill`
        (3,), the learned RGB value of masked pixels, gray at the start.
      extra: state of the quantizer that has no gradient.
    """
    network_key, quantizer_key = jax.random.split(key)
    video = jnp.zeros((1, *config.geometry.padded_size((1, 1, 1)), 3))
    quantizer, extra = init_quantizer(config, quantizer_key)
    network = from_one_draw(lambda key: MBQVAE(config).init(key, video)["params"], network_key)
    return {"network": network, "quantizer": quantizer, "mask_fill": jnp.zeros(3)}, extra


def masked_frame_index_loss(logits: Float[Array, "b N"], index: Int[Array, " b"]) -> Float[Array, " b"]:
    """Return -log P(f_i) per clip in nats; 0 for clips without a masked frame (`index` -1).  Equation 1, last term."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probabilities, jnp.maximum(index, 0)[:, None], axis=1)[:, 0]
    return jnp.where(index >= 0, -chosen, 0.0)
