"""Reader for all checkpoints: a workdir, a step folder, a release, an exported folder, or one of these on the hub.

This module does not know which systems exist: callers name the recipe class and the components that they expect.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.parts import Component
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.core.trees import partition
from motionaura_jax.core.types import PyTree
from motionaura_jax.systems.base import System
from motionaura_jax.weights import exported, hub, release, steps

R = TypeVar("R", bound=Recipe)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """Weights of one model and their origin.

    Attributes:
      params, extra: arrays in host memory, because a model may be too large for one device; callers place them.
      step: training step.
      path: step folder or release folder.
      weights: "averaged" over training steps, or "raw".
      provenance: origin of the model as its release states it.
    """

    recipe: Recipe
    params: PyTree
    extra: PyTree
    step: int
    path: pathlib.PurePath
    weights: str
    provenance: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights on disk, not read yet.

    Attributes:
      path: path as the user gave it, for messages.
      folder: step folder, release folder or exported folder.
      meta: `recipe`, `step`, `weights` and possibly `provenance`.
    """

    path: str
    folder: pathlib.PurePath
    meta: Mapping[str, Any]
    reader: Callable[[Iterable[Component], PyTree, PyTree], tuple[PyTree, PyTree]]

    @property
    def system(self) -> str:
        """Return the name of the system that was trained."""
        return self.meta["recipe"]["system"]

    def recipe(self, recipe_class: type[R], system: str | None = None) -> R:
        """Build the recipe that the weights were trained with.

        Raises:
          UserError: the checkpoint holds another system than `system`, or its config is damaged.
        """
        if system and self.system != system:
            raise UserError(f"{self.path}: holds a {self.system}; a {system} is needed here")
        try:
            return config.build(recipe_class, self.meta["recipe"])
        except UserError as error:
            raise UserError(f"{self.path}: its saved {error}") from None

    def read(self, components: Iterable[Component], params: PyTree, extra: PyTree) -> tuple[PyTree, PyTree]:
        """Read the weights into the structure of the abstract trees, as NumPy arrays.

        Args:
          components: networks of the system, which an exported folder keeps under their torch names.

        Raises:
          UserError: damaged weights, or weights of another architecture.
        """
        return jax.tree.map(np.asarray, self.reader(components, params, extra))


def open_checkpoint(path: steps.Location) -> Checkpoint:
    """Find the newest step of a workdir, or take a step folder, a release, an export, or the hub's `ORG/NAME@REVISION`.

    Raises:
      UserError: there are no weights, or they are damaged.
    """
    path = hub.checkpoint_folder(path)
    local = pathlib.Path(path)
    folder: pathlib.PurePath = local
    reader: Callable[..., tuple[PyTree, PyTree]]
    if exported.is_export(local):
        meta, reader = exported.read_meta(local), functools.partial(exported.read_weights, local)
    elif release.is_release(local):
        meta, reader = release.read_meta(local), lambda _, *trees: release.read_weights(local, *trees)
    else:
        step, meta = steps.read_meta(path)
        folder, reader = step, lambda _, *trees: steps.read_weights(step, *trees)
    return Checkpoint(path=str(path), folder=folder, meta=meta, reader=reader)


def load_recipe(path: steps.Location, recipe_class: type[R], system: str) -> R:
    """Read the recipe that a model was trained with, without its weights.

    Raises:
      UserError: there is no checkpoint, it is damaged, or it is of another system.
    """
    return open_checkpoint(path).recipe(recipe_class, system)


def load_start(system: System) -> tuple[PyTree, PyTree]:
    """Read `params` and `extra` of `recipe.init_from`, from which a fresh run of `system` starts.

    Parameters that this run adds, such as adapters, are initialized if the checkpoint lacks them.

    Raises:
      UserError: there is no checkpoint, it is damaged or of another architecture, or the recipe refuses its weights.
    """
    recipe = system.recipe
    source = open_checkpoint(recipe.init_from)
    origin = source.recipe(type(recipe), recipe.system)
    recipe.check_start(origin, recipe.init_from)
    params, extra = jax.eval_shape(system.init, jax.random.key(0))
    if not recipe.added or origin.added:
        return source.read(system.components, params, extra)
    params, extra = source.read(system.components, partition(params, recipe.added)[1], extra)
    return system.extended(params, jax.random.key(recipe.seed)), extra


def load_as(system_class: type[System], source: Checkpoint) -> tuple[System, Loaded]:
    """Read a checkpoint as a model of `system_class`, which must be the class of its system.

    Raises:
      UserError: the weights are damaged or do not fit their own config.
    """
    recipe = source.recipe(system_class.Recipe)
    system = system_class(recipe)
    params, extra = source.read(system.components, *jax.eval_shape(system.init, jax.random.key(0)))
    return system, Loaded(
        recipe=recipe,
        params=params,
        extra=extra,
        step=source.meta["step"],
        path=source.folder,
        weights=source.meta["weights"],
        provenance=source.meta.get("provenance", {}),
    )
