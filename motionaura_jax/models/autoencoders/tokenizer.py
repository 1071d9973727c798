"""A trained tokenizer as a value: weights and settings in one pytree, with `encode` and `decode`."""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from motionaura_jax.core.types import Latent, PyTree
from motionaura_jax.models.autoencoders.config import IMPLEMENTATION_KEYS, MBQVAEConfig
from motionaura_jax.models.autoencoders.geometry import Geometry
from motionaura_jax.models.autoencoders.mbq_vae import MBQVAE
from motionaura_jax.models.autoencoders.padding import crop, pad_to_multiple
from motionaura_jax.models.autoencoders.quantizers import (
    Quantized,
    codes_to_values,
    continuous_values,
    quantize,
)
from motionaura_jax.parallel import constraints


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The autoencoder contract for a 3D-MBQ-VAE; pass it through `jax.jit` like any array.

    Attributes:
      config: settings of the network; static.
      params: `network`, `quantizer` and `mask_fill` (see `mbq_vae.init_tokenizer`).
      extra: state of the quantizer.
      latent_space: identifies weights and settings; `fingerprint` computes it.
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

    def encode(self, video: Float[Array, "b T H W 3"], *, quantized: bool = True) -> Latent:
        """Encodes video in [-1, 1] of any size.

        Returns:
          Token ids and the values that the decoder reads; without `quantized` (or without a codebook) only the
          continuous values.
        """
        padded, size = pad_to_multiple(self.config, video)
        z = self.features(padded)
        if not quantized or self.config.quantizer == "none":
            return Latent(values=continuous_values(self.config, z), size=size, latent_space=self.latent_space)
        code = self.quantize(z)
        return Latent(values=code.values, tokens=code.codes, size=size, latent_space=self.latent_space)

    def features(self, padded: Float[Array, "b T H W 3"]) -> Float[Array, "b t h w d"]:
        """Encoder output of a video that `padding.pad_to_multiple` has padded, before any quantization."""
        return self._apply("encode", padded)

    def quantize(self, z: Float[Array, "b t h w d"]) -> Quantized:
        """Codes, and the values that the decoder reads, for encoder outputs."""
        return quantize(self.config, self.params["quantizer"], self.extra, z)

    def decode(self, latent: Latent) -> Float[Array, "b T H W 3"]:
        """Decodes a latent, by its values where it has them, to video clipped to [-1, 1] and cropped to its size.

        Raises:
          ValueError: the latent comes from another latent space.
        """
        if latent.latent_space != self.latent_space:
            raise ValueError(f"latent of {latent.latent_space!r} given to a tokenizer of {self.latent_space!r}")
        values = latent.values
        if values is None:
            assert latent.tokens is not None, "a latent holds values or tokens"
            values = self.embed(latent.tokens)
        return crop(self.decode_values(values), latent.size)

    def decode_values(self, values: Float[Array, "b t h w d"]) -> Float[Array, "b T H W 3"]:
        """Decodes values of the latent grid to the whole padded video, clipped to [-1, 1]."""
        return jnp.clip(self._apply("decode", values), -1.0, 1.0)

    def embed(self, tokens: Int[Array, "b t h w"]) -> Float[Array, "b t h w d"]:
        """Values of token ids, as the decoder reads them."""
        return codes_to_values(self.config, self.params["quantizer"], self.extra, tokens)

    def _apply(self, method: str, value: Array) -> Any:
        weights = constraints.gathered(self.params["network"])
        return MBQVAE(self.config).apply({"params": weights}, value, method=method)


def fingerprint(config: MBQVAEConfig, params: PyTree, extra: PyTree) -> str:
    """Content hash of a tokenizer: settings that shape the latent and all weights, 16 hex digits."""
    digest = hashlib.sha256(json.dumps(_shaping(config), sort_keys=True).encode())
    for leaf in jax.tree.leaves((params, extra)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _shaping(config: MBQVAEConfig) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in IMPLEMENTATION_KEYS}
