"""The contract of every autoencoder: encode, decode, a geometry, and the name of its latent space."""

from typing import Protocol

from jaxtyping import Array, Float, Key

from motionaura_jax.core.types import Latent, PyTree
from motionaura_jax.models.autoencoders.geometry import Geometry


class VideoAutoencoder(Protocol):
    """A trained autoencoder as a value: a pytree that passes through `jax.jit` like any array."""

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
        """Decode a latent to video in [-1, 1], cropped to `latent.size`; `aux` is what a decoder reads besides (flow)."""
