"""Reader for all checkpoints: a workdir, a step folder, a release, an exported folder, or one of these on the hub.

This module does not know which systems exist: callers name the recipe class and the components that they expect.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError, reason
from motionaura_jax.core.parts import Component
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.core.trees import partition, path_name
from motionaura_jax.core.types import PyTree
from motionaura_jax.models import building
from motionaura_jax.models.layers import initializers
from motionaura_jax.systems.base import System
from motionaura_jax.weights import exported, hub, release, steps
from motionaura_jax.weights.release import at_key
from motionaura_jax.weights.tensors import is_finite

R = TypeVar("R", bound=Recipe)

_CALLS, _CALLS_PER_TENSOR = 500, 10  # calls of modules that building a network may take; our networks take 2 per tensor


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
      reader: function that reads the weights.
      sizes: function that returns the shapes of all stored arrays, from their headers alone.
      inside: recipe keys of the parts that lie inside this folder.
      foreign: the folder is made for others, so a path in it that does not lie inside means nothing here.
    """

    path: str
    folder: pathlib.PurePath
    meta: Mapping[str, Any]
    reader: Callable[[Iterable[Component], PyTree, PyTree], tuple[PyTree, PyTree]]
    sizes: Callable[[], list[tuple[int, ...]]]
    inside: Collection[str] = ()
    foreign: bool = False

    @property
    def system(self) -> str:
        """Return the name of the system that was trained."""
        return self.meta["recipe"]["system"]

    def recipe(self, recipe_class: type[R], system: str | None = None) -> R:
        """Build the recipe that the weights were trained with.

        Places of parts become `hub.Recorded`: nothing is fetched from the hub that only a checkpoint names.

        Raises:
          UserError: the checkpoint holds another system than `system`, or its config is damaged or names sizes out of all
            proportion to the weights.
        """
        if system and self.system != system:
            raise UserError(f"{self.path}: holds a {self.system}; a {system} is needed here")
        values = self.meta["recipe"]
        building.check_numbers(values.get("model"), self._shapes, f"{self.path}: its saved config.model")
        building.check_numbers(
            at_key(values, "text.encoder"), self._shapes, f"{self.path}: its saved config.text.encoder"
        )
        if self.foreign:
            values = release.without_places(values, [key for key in recipe_class.places if key not in self.inside])
        try:
            recipe = config.build(recipe_class, values)
        except UserError as error:
            raise UserError(f"{self.path}: its saved {error}") from None
        for key in recipe_class.places:
            place = at_key(values, key)
            if isinstance(place, str) and place and key not in self.inside:
                recipe = recipe.with_value(key, hub.Recorded(place, local=not self.foreign))
        return recipe

    def abstract(self, system: System) -> tuple[PyTree, PyTree]:
        """Return the abstract `(params, extra)` of the system that this checkpoint describes.

        Raises:
          UserError: the config describes a network that cannot be built, or one with far more layers than there are
            tensors.
        """
        most = _CALLS + _CALLS_PER_TENSOR * len(self._shapes)
        try:
            with building.at_most(most), initializers.shapes_only():
                return jax.eval_shape(system.init, jax.random.key(0))
        except building.TooLarge:
            fault = f"has more layers than the {len(self._shapes)} tensors of the weights can fill"
        except (ArithmeticError, MemoryError, RecursionError, TypeError, ValueError) as error:
            fault = f"cannot be built ({reason(error)})"
        raise UserError(f"{self.path}: the network of its config {fault}; use config and weights of the same model")

    @functools.cached_property
    def _shapes(self) -> list[tuple[int, ...]]:
        return self.sizes()

    def read(self, components: Iterable[Component], params: PyTree, extra: PyTree) -> tuple[PyTree, PyTree]:
        """Read the weights into the structure of the abstract trees, as NumPy arrays.

        Args:
          components: networks of the system, which an exported folder keeps under their torch names.

        Raises:
          UserError: damaged weights, weights of another architecture, or values that are NaN or infinite.
        """
        params, extra = jax.tree.map(np.asarray, self.reader(components, params, extra))
        for path, leaf in jax.tree_util.tree_leaves_with_path({"params": params, "extra": extra}):
            if not is_finite(leaf):
                raise UserError(
                    f"{self.path}: {path_name(path)} holds values that are not numbers, as after a training that diverged; "
                    f"use an earlier step or other weights"
                )
        return params, extra


def open_checkpoint(path: steps.Location) -> Checkpoint:
    """Find the newest step of a workdir, or take a step folder, a release, an export, or the hub's `ORG/NAME@REVISION`.

    Raises:
      UserError: there are no weights, or they are damaged.
    """
    path = hub.checkpoint_folder(path)
    local = pathlib.Path(path)
    folder: pathlib.PurePath = local
    reader: Callable[..., tuple[PyTree, PyTree]]
    foreign = True
    if exported.is_export(local):
        meta, reader = exported.read_meta(local), functools.partial(exported.read_weights, local)
        sizes = functools.partial(exported.shapes, local)
    elif release.is_release(local):
        meta, reader = release.read_meta(local), lambda _, *trees: release.read_weights(local, *trees)
        sizes = functools.partial(release.shapes, local)
    else:
        foreign = False
        step, meta = steps.read_meta(path)
        folder, reader = step, lambda _, *trees: steps.read_weights(step, *trees)
        sizes = functools.partial(_step_shapes, step)
    inside = release.parts(meta) if foreign else ()
    return Checkpoint(
        path=str(path), folder=folder, meta=meta, reader=reader, sizes=sizes, inside=inside, foreign=foreign
    )


def _step_shapes(step: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in jax.tree.leaves(steps.stored_item(step, "params"))]


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
    provenance = source.meta.get("provenance")
    params, extra = source.read(system.components, *source.abstract(system))
    return system, Loaded(
        recipe=recipe,
        params=params,
        extra=extra,
        step=source.meta["step"],
        path=source.folder,
        weights=source.meta["weights"],
        provenance=dict(provenance) if isinstance(provenance, Mapping) else {},
    )
