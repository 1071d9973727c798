"""A trained tokenizer as a value: weights and settings in one pytree, with `encode` and `decode`."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from motionaura_jax.core.types import Latent, PyTree
from motionaura_jax.models.autoencoders import tiling
from motionaura_jax.models.autoencoders.base import check_latent
from motionaura_jax.models.autoencoders.config import IMPLEMENTATION_KEYS, TRAINING_KEYS, MBQVAEConfig
from motionaura_jax.models.autoencoders.geometry import Geometry, Size
from motionaura_jax.models.autoencoders.mbq_vae import MBQVAE, travels_as
from motionaura_jax.models.autoencoders.quantizers import Quantized, codes_to_values, continuous_values, quantize
from motionaura_jax.parallel import constraints


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A 3D-MBQ-VAE as a `VideoAutoencoder` (see `base`); pass it through `jax.jit` like any array.

    Attributes:
      config: settings of the network; static.
      params: `network`, `quantizer` and `mask_fill` (see `mbq_vae.init_tokenizer`).
      extra: state of the quantizer.
      latent_space: hash of weights and settings; `fingerprint` computes it.
    """

    config: MBQVAEConfig = dataclasses.field(metadata={"static": True})
    params: PyTree
    extra: PyTree
    latent_space: str = dataclasses.field(default="", metadata={"static": True})

    @property
    def geometry(self) -> Geometry:
        """Return how sizes of videos and latents relate."""
        return self.config.geometry

    @property
    def vocab_size(self) -> int:
        """Return the number of codes; 0 for continuous latents."""
        return self.config.vocab_size

    @property
    def network(self) -> nn.Module:
        """Return the network that `params["network"]` belongs to."""
        return MBQVAE(self.config)

    def encode(self, video: Float[Array, "b T H W 3"], key: Key[Array, ""] | None = None) -> Latent:
        """Encode video in [-1, 1] of any size to token ids and decoder inputs; without a codebook to the latter alone.

        `key` is unused: this encoder is deterministic.
        """
        padded, size = tiling.pad(self.geometry, video)
        return self.bottleneck(self.features(padded), size, key)

    def decode(self, latent: Latent, aux: PyTree = None) -> Float[Array, "b T H W 3"]:
        """Decode a latent, by its values if it has them, to video in [-1, 1], cropped to `latent.size`.

        Raises:
          ValueError: the latent comes from another latent space.
        """
        check_latent(self, latent)
        values = latent.values
        if values is None:
            assert latent.tokens is not None, "a latent holds values or tokens"
            values = self.embed(latent.tokens)
        return tiling.crop(self.decode_values(values, aux), latent.size)

    def features(self, padded: Float[Array, "b T H W 3"]) -> Float[Array, "b t h w d"]:
        """Return the encoder's output, before any quantization, for a video that fills whole latent cells."""
        return self.apply("encode", padded)

    def bottleneck(
        self,
        features: Float[Array, "b t h w d"],
        size: Size,
        key: Key[Array, ""] | None = None,
        *,
        quantized: bool = True,
    ) -> Latent:
        """Quantize encoder outputs; with `quantized=False`, return what infinitely many codes would give the decoder."""
        if not (quantized and self.vocab_size):
            values = continuous_values(self.config, features)
            return Latent(values=values, size=size, latent_space=self.latent_space)
        code = self.quantize(features)
        return Latent(values=code.values, tokens=code.codes, size=size, latent_space=self.latent_space)

    def quantize(self, z: Float[Array, "b t h w d"]) -> Quantized:
        """Quantize encoder outputs and return losses and statistics as well; training needs them."""
        # Codes of near ties would differ between devices at any other precision.
        with jax.default_matmul_precision("float32"):
            return quantize(self.config, self.params["quantizer"], self.extra, z)

    def embed(self, tokens: Int[Array, "b t h w"]) -> Float[Array, "b t h w d"]:
        """Return the decoder inputs of token ids."""
        return codes_to_values(self.config, self.params["quantizer"], self.extra, tokens)

    def decode_values(self, values: Float[Array, "b t h w d"], aux: PyTree = None) -> Float[Array, "b T H W 3"]:
        """Decode latent values to the whole padded video, clipped to [-1, 1]; this decoder has no `aux`."""
        return jnp.clip(self.apply("decode", values), -1.0, 1.0)

    def apply(self, method: str, *arguments: Any) -> Any:
        """Call a method of the network with its weights, gathered from the devices that share them."""
        weights = {"params": constraints.gathered(self.params["network"], functools.partial(travels_as, self.config))}
        with jax.default_matmul_precision(self.config.matmul_precision):
            return self.network.apply(weights, *arguments, method=method)


def fingerprint(config: MBQVAEConfig, params: PyTree, extra: PyTree) -> str:
    """Hash a tokenizer: all weights, and the settings that shape the latent; 16 hex digits."""
    digest = hashlib.sha256(json.dumps(_shaping(config), sort_keys=True).encode())
    for leaf in jax.tree.leaves((params, extra)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _shaping(config: MBQVAEConfig) -> dict[str, Any]:
    left_out = IMPLEMENTATION_KEYS + TRAINING_KEYS
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in left_out}
    if config.stem == "conv":  # hashes from before these keys existed must stay valid
        del values["stem"], values["stem_time"], values["stem_space"]
    return values
