"""Conversion of configs to the questions of an estimate."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from motionaura_jax.core import config
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.data.buckets import Bucket
from motionaura_jax.parallel.config import AXES, MeshConfig
from motionaura_jax.planning.estimate import Question
from motionaura_jax.systems import registry


def question(values: Mapping[str, Any], mesh: MeshConfig | None = None, topology: str | None = None) -> Question:
    """Ask about the training of a config with all its defaults, on `mesh` or by default on its own mesh.

    Raises:
      UserError: the config is invalid.
    """
    recipe = registry.system_class(values.get("system", "")).planned(values).recipe
    return of_recipe(recipe, {axis: max(getattr(mesh or recipe.mesh, axis), 1) for axis in AXES}, topology)


def of_recipe(recipe: Recipe, mesh: Mapping[str, int], topology: str | None = None) -> Question:
    """Ask about a complete recipe; the bucket with the most pixels counts."""
    buckets = tuple(sorted(recipe.data.buckets, key=_pixels, reverse=True))
    largest_first = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, buckets=buckets))
    return Question(values=config.to_dict(largest_first), mesh=mesh, topology=topology)


def _pixels(bucket: Bucket) -> int:
    return bucket.batch_size * bucket.num_frames * bucket.height * bucket.width
