"""Declarations of a system about its trained parts: their origin, and the layout of their networks in an export."""

import dataclasses

from motionaura_jax.core.tensor_map import TensorMap


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Trained part that a recipe takes from elsewhere, identified by its role.

    A release holds each part in a folder named after its role, so that it needs nothing else.

    Attributes:
      role: name of the part, e.g. "tokenizer"; also its folder in a release and its flag on the command line.
      key: dotted recipe key that says where the part is.
      published: the part is a model that others published; otherwise it is one of ours.
      latent_space: dotted recipe key with the hash of its latent space, if it is an autoencoder.
    """

    role: str
    key: str
    published: bool = False
    latent_space: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """Network in a PyTorch export: its folder, its tensor map, and its place in `{"params": ..., "extra": ...}`.

    A component without leaves, such as a text encoder replaced by a published one, has no files.

    Attributes:
      folder: inside the export; empty for the export itself.
    """

    folder: str
    tensors: TensorMap
    place: tuple[str, ...] = ()
