"""Systems over the latents of a frozen autoencoder, under conditions: their parts, their batches, and planning."""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from motionaura_jax.conditioning.base import Conditioners
from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import Latent, PyTree
from motionaura_jax.data.array_cache import MemoryCache, clip_content, recall
from motionaura_jax.data.fields import Field
from motionaura_jax.data.latents import CachedLatents
from motionaura_jax.diffusion.process import Latents
from motionaura_jax.models.autoencoders.base import VideoAutoencoder
from motionaura_jax.models.autoencoders.geometry import Size
from motionaura_jax.parallel.mesh import by_rows
from motionaura_jax.systems import loading
from motionaura_jax.systems.base import Batch, System
from motionaura_jax.systems.diffusion_recipe import DiffusionRecipe
from motionaura_jax.weights.load import load_recipe

PLANNED = "planned"
"""Place of an autoencoder that is not there yet, while a run is only planned."""


class LatentSystem(System):
    """Base class of systems that work on latents of a frozen autoencoder.

    `frozen` holds the autoencoder under its role, and pretrained conditioners by name.

    Attributes:
      discrete: latents are tokens, so the autoencoder needs a codebook.
    """

    Recipe: ClassVar[type[DiffusionRecipe]]
    discrete: ClassVar[bool] = False

    def __init__(
        self,
        recipe: Any,
        *,
        autoencoder: VideoAutoencoder | None = None,
        conditioners: Conditioners | None = None,
    ):
        """Complete the recipe from outside; `autoencoder` and `conditioners` replace those that it names.

        Raises:
          UserError: no such autoencoder, no model of this kind in `init_from`, or data that cannot serve.
        """
        completed, opened = self._resolved(recipe)
        super().__init__(completed)
        self._opened = autoencoder or opened
        self.conditioners = conditioners or self.make_conditioners(self.recipe)
        self._known = MemoryCache(self.recipe.token_cache)

    @classmethod
    @abc.abstractmethod
    def make_conditioners(cls, recipe: Any) -> Conditioners:
        """Build the conditioners that the recipe describes."""

    @classmethod
    def resolve_conditions(cls, recipe: Any) -> Any:
        """Fill in what the data and pretrained conditioners decide; a complete recipe comes back unchanged."""
        return recipe

    # What a batch holds.

    @property
    def fields(self) -> tuple[str | Field, ...]:
        """Return the latents of a `latent_cache`, or videos to encode, and the inputs of the conditioners."""
        return (self._cached.field, "fps", "caption") if self.recipe.latent_cache else super().fields

    @functools.cached_property
    def _cached(self) -> CachedLatents:
        return CachedLatents(self.recipe.latent_cache, self._name, self.recipe.latent_space, self.recipe.data.shapes)

    def batch_spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Return shapes and dtypes of the first bucket's batch."""
        bucket = self.recipe.data.all_buckets()[0]
        size = bucket.batch_size
        clip = (bucket.num_frames, bucket.height, bucket.width)
        spec = {
            "video": jax.ShapeDtypeStruct((size, *clip, 3), jnp.float32),
            "fps": jax.ShapeDtypeStruct((size,), jnp.float32),
            "sample": jax.ShapeDtypeStruct((size,), jnp.int32),
            **self.conditioners.abstract(size),
        }
        if self.recipe.latent_cache:
            del spec["video"]
        if self.recipe.latent_cache or self.recipe.token_cache:
            dtype = jnp.int32 if self.discrete else jnp.float32
            spec[self._name] = jax.ShapeDtypeStruct((size, *self.latent_shape(clip)), dtype)
        return spec

    def to_arrays(self, batch: Mapping[str, Any]) -> Batch:
        """Return video in [-1, 1] or latents or both, frame rates, rows in the step, and raw conditions by name."""
        arrays = {name: batch[name] for name in ("video", self._name, "fps", "sample") if name in batch}
        arrays |= self.conditioners.host(batch)
        if self.recipe.token_cache and self._name not in batch:
            video = batch["video"]
            keys = [clip_content(clip) for clip in video]
            arrays[self._name] = recall(self._known, keys, lambda: self._encode(video))
        return arrays

    def latents(self, frozen: PyTree, batch: Batch) -> Latents:
        """Return the clean latents of a batch; those that come with it need no autoencoder."""
        if self._name in batch:
            return batch[self._name]
        return self.encoded(frozen[self.recipe.autoencoder_role], batch["video"])

    @classmethod
    def encoded(cls, autoencoder: VideoAutoencoder, video: Array) -> Latents:
        """Return what the process corrupts: tokens, or values."""
        latent = autoencoder.encode(video)
        found = latent.tokens if cls.discrete else latent.values
        assert found is not None, "the autoencoder makes no latents of this kind"
        return found

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Return the shape of the latents of one clip of `size` (frames, height, width)."""
        geometry = self.opened_autoencoder.geometry
        return geometry.latent_shape(*size) if self.discrete else (*geometry.latent_shape(*size), geometry.channels)

    def latent(self, x: Any, size: Size) -> Latent:
        """Return sampled latents as the autoencoder decodes them, for videos of `size`."""
        return Latent(**{"tokens" if self.discrete else "values": x}, size=size, latent_space=self.recipe.latent_space)

    # The parts that come from elsewhere.

    def frozen(self) -> PyTree:
        """Load the autoencoder and pretrained conditioners.

        Raises:
          UserError: one of them is missing, or not the one that the recipe was made with.
        """
        return {self.recipe.autoencoder_role: self.opened_autoencoder, **self.conditioners.frozen()}

    @functools.cached_property
    def opened_autoencoder(self) -> VideoAutoencoder:
        """The trained autoencoder, opened when it is needed."""
        return self._opened or self.open_autoencoder(self.recipe.autoencoder_place, self.recipe.latent_space)

    @classmethod
    def open_autoencoder(cls, place: Any, latent_space: str = "") -> VideoAutoencoder:
        """Open a trained autoencoder.

        Args:
          latent_space: the one that is expected; empty takes any.

        Raises:
          UserError: no autoencoder there, one of another latent space, or one without tokens if they are needed.
        """
        return loading.open_autoencoder(place, latent_space, tokens=cls.discrete)

    def check_mesh(self) -> None:
        """Check that the mesh can share clips of every bucket.

        Raises:
          UserError: it cannot.
        """

    @classmethod
    def _resolved(cls, recipe: Any) -> tuple[Any, VideoAutoencoder | None]:
        """Fill in what comes from outside; returns the autoencoder too if it had to be opened."""
        opened = None
        if recipe.init_from and not recipe.is_complete:
            recipe = recipe.completed(load_recipe(recipe.init_from, cls.Recipe, recipe.system))
        recipe = cls.resolve_conditions(recipe)
        if not recipe.latent_space:
            opened = cls.open_autoencoder(recipe.autoencoder_place)
            recipe = recipe.with_autoencoder(opened)
        return recipe, opened

    @property
    def _name(self) -> str:
        return "tokens" if self.discrete else "latents"

    @functools.cached_property
    def _encode(self) -> Callable[[np.ndarray], np.ndarray]:
        return by_rows(self.encoded, self.opened_autoencoder)

    # Planning: shapes without weights.

    @classmethod
    def planned(cls, values: Mapping[str, Any]) -> Self:
        """Build the system of config values with the autoencoder and pretrained conditioners as shapes alone.

        Raises:
          UserError: no such config, or parts that cannot be described without their weights.
        """
        role = cls.Recipe.autoencoder_role
        recipe = config.build(cls.Recipe, {**values, role: values.get(role) or PLANNED})
        recipe, autoencoder = cls.planned_autoencoder(recipe)
        recipe, conditioners = cls.planned_conditioners(recipe)
        system = cls(recipe, autoencoder=autoencoder, conditioners=conditioners)
        system.check_mesh()
        return system

    @classmethod
    def planned_autoencoder(cls, recipe: Any) -> tuple[Any, VideoAutoencoder]:
        """Return the complete recipe and its autoencoder; by default the trained one, which has to be there.

        Raises:
          UserError: the config names no autoencoder, or it cannot be opened.
        """
        if recipe.autoencoder_place == PLANNED:
            role = recipe.autoencoder_role
            raise UserError(
                f"config.{role}: name the workdir of a trained {role}; a plan of this system needs its shapes"
            )
        autoencoder = cls.open_autoencoder(recipe.autoencoder_place, recipe.latent_space)
        return recipe.with_autoencoder(autoencoder), autoencoder

    @classmethod
    def planned_conditioners(cls, recipe: Any) -> tuple[Any, Conditioners]:
        """Return the complete recipe and its conditioners; by default the trained ones, which have to be there."""
        recipe = cls.resolve_conditions(recipe)
        return recipe, cls.make_conditioners(recipe)
