"""The contract of every autoencoder: encode, decode, a geometry, and the name of its latent space."""

from typing import Protocol

from jaxtyping import Array, Float, Int, Key

from motionaura_jax.core.types import Latent, PyTree
from motionaura_jax.models.autoencoders.geometry import Geometry, Size


class VideoAutoencoder(Protocol):
    """A trained autoencoder as a value: a pytree that passes through `jax.jit` like any array.

    `encode` and `decode` are all that most callers need.  The methods below them are the same steps one by one: large
    videos pass `features` and `decode_values` in tiles, while `bottleneck` sees the whole, small latent.
    """

    @property
    def geometry(self) -> Geometry:
        """Return how sizes of videos and latents relate; padding and tiling ask this, not a class."""

    @property
    def latent_space(self) -> str:
        """Return the hash that says what the latents mean; consumers of latents refuse another one."""

    @property
    def vocab_size(self) -> int:
        """Return the number of codes; 0 for continuous latents."""

    def encode(self, video: Float[Array, "b T H W 3"], key: Key[Array, ""] | None = None) -> Latent:
        """Encode video in [-1, 1] of any size; `key` samples the posterior of a variational autoencoder."""

    def decode(self, latent: Latent, aux: PyTree = None) -> Float[Array, "b T H W 3"]:
        """Decode a latent to video in [-1, 1], cropped to `latent.size`.

        Args:
          aux: further inputs of a decoder that has some, such as flow.

        Raises:
          ValueError: a latent of another latent space.
        """

    def features(self, padded: Float[Array, "b T H W 3"]) -> Float[Array, "b t h w c"]:
        """Return the encoder's output for a video that fills whole latent cells (`tiling.pad`)."""

    def bottleneck(
        self,
        features: Float[Array, "b t h w c"],
        size: Size,
        key: Key[Array, ""] | None = None,
        *,
        quantized: bool = True,
    ) -> Latent:
        """Turn encoder outputs into the latent of a video of `size`.

        Args:
          quantized: False leaves out the codebook and the tokens, which shows how much quantization costs.
        """

    def embed(self, tokens: Int[Array, "b t h w"]) -> Float[Array, "b t h w d"]:
        """Return the decoder inputs of token ids.  Raises ValueError without a codebook."""

    def decode_values(self, values: Float[Array, "b t h w d"], aux: PyTree = None) -> Float[Array, "b T H W 3"]:
        """Decode latent values to the whole padded video, clipped to [-1, 1]."""


def check_latent(autoencoder: VideoAutoencoder, latent: Latent) -> None:
    """Raise ValueError unless `latent` comes from the latent space of `autoencoder`."""
    if latent.latent_space != autoencoder.latent_space:
        raise ValueError(f"latent of {latent.latent_space!r} given to an autoencoder of {autoencoder.latent_space!r}")
