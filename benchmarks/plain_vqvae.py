"""Baseline of the tokenizer benchmark: a plain 3-D VQ-VAE (strided convolutions and residual blocks, van den Oord 2017).

It shares everything that is not specific to MotionAura: codebook with its initialization and restarts, loss, optimizer, data,
weight average and fast convolutions.  It also gets GroupNorm and SiLU, which the network of 2017 did not have.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from motionaura_jax.models.autoencoders.codebook import init_quantizer
from motionaura_jax.models.autoencoders.config import MBQVAEConfig
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.layers.conv import Conv3d, GroupNorm, TransposedConv1x4x4
from motionaura_jax.ops.upsample import nearest_upsample
from motionaura_jax.systems.mbq_vae import MBQVAESystem


class Residual(nn.Module):
    """Residual block: GN, SiLU, 3x3x3, GN, SiLU, 1x1x1."""

    @nn.compact
    def __call__(self, x):
        y = Conv3d(x.shape[-1], (3, 3, 3), name="wide")(nn.silu(GroupNorm(name="norm_0")(x)))
        return x + Conv3d(x.shape[-1], (1, 1, 1), name="mix")(nn.silu(GroupNorm(name="norm_1")(y)))


class PlainVQVAE(nn.Module):
    """Plain VQ-VAE with the strides, latent size and code dimension of `config`.

    `channels` per level and `depth` residual blocks at the two coarser levels set its size.
    """

    config: MBQVAEConfig
    channels: tuple[int, ...]
    depth: int

    def setup(self):
        first, *rest = self.channels
        times = self.config.time_factors
        down, up = [Conv3d(first, (1, 3, 3), strides=(1, 2, 2))], []
        for index, features in enumerate(rest):
            down += [Conv3d(features, (3, 3, 3), strides=(times[index], 2, 2))] + [
                Residual() for _ in range(self.depth)
            ]
        for features in reversed(self.channels[:-1]):
            up += [Residual() for _ in range(self.depth)] + [Conv3d(features, (3, 3, 3))]
        self.down, self.up = down, up
        self.norm_in, self.norm_out = GroupNorm(), GroupNorm()
        self.to_latent = Conv3d(self.config.latent_dim, (1, 1, 1))
        self.from_latent = Conv3d(self.channels[-1], (3, 3, 3))
        self.output = TransposedConv1x4x4(3)

    def encode(self, video):
        x = video
        for layer in self.down:
            x = layer(x)
        return self.to_latent(nn.silu(self.norm_in(x)))

    def decode(self, z):
        x, times = self.from_latent(z), list(self.config.time_factors)
        for layer in self.up:
            if isinstance(layer, Conv3d):
                x = nearest_upsample(x, (times.pop(), 2, 2))
            x = layer(x)
        return self.output(nn.silu(self.norm_out(x)))

    def __call__(self, video):
        return self.decode(self.encode(video))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainTokenizer(Tokenizer):
    """Plain network behind our tokenizer interface."""

    channels: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    depth: int = dataclasses.field(metadata={"static": True})

    @property
    def network(self):
        return PlainVQVAE(self.config, self.channels, self.depth)


class PlainSystem(MBQVAESystem):
    """Our tokenizer training system with the plain network, without masking and masked-frame head."""

    def __init__(self, recipe, channels=(48, 96, 144), depth=1):
        masking = dataclasses.replace(recipe.masking, frame_probability=0.0, patch_probability=0.0)
        super().__init__(dataclasses.replace(recipe, masking=masking, loss=dataclasses.replace(recipe.loss, mfi=0.0)))
        self._size = {"channels": channels, "depth": depth}

    def bind(self, params, extra, latent_space=""):
        weights = {"params": params["tokenizer"], "extra": extra, "latent_space": latent_space}
        return PlainTokenizer(config=self.recipe.model, **weights, **self._size)

    def init_autoencoder(self, key):
        network_key, quantizer_key = jax.random.split(key)
        quantizer, extra = init_quantizer(self.recipe.model, quantizer_key)
        tokenizer = {"network": {}, "quantizer": quantizer, "mask_fill": jnp.zeros(3)}
        video = jnp.zeros((1, *self.batch_spec()["video"].shape[1:]))
        tokenizer["network"] = self.bind({"tokenizer": tokenizer}, extra).network.init(network_key, video)["params"]
        return {"tokenizer": tokenizer}, extra
