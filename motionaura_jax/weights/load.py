"""Opens trained weights: a workdir, one of its step folders, a release or exported folder, or one of those on the hub."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from motionaura_jax.core import config
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.core.trees import partition
from motionaura_jax.core.types import PyTree
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer, fingerprint
from motionaura_jax.systems import base
from motionaura_jax.weights import exported, hub, release, steps

R = TypeVar("R", bound=Recipe)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """The weights of one model and where they come from.

    Attributes:
      params, extra: in host memory; who computes with them places them, as a model may be too large for one device.
      step: training step.
      path: step folder or release folder.
      weights: "averaged" over training steps, or "raw".
      provenance: what a release says about its origin.
    """

    recipe: Recipe
    params: PyTree
    extra: PyTree
    step: int
    path: pathlib.PurePath
    weights: str
    provenance: Mapping[str, Any]


def load(path: steps.Location, system: str | None = None) -> Loaded:
    """Reads the newest step of a workdir, one step folder, a release folder, or the hub's `ORGANIZATION/NAME@REVISION`.

    Args:
      system: the one that is needed; None takes any.

    Raises:
      UserError: no weights there, damaged ones, those of another system, or some that do not fit their own config.
    """
    source = _open(path)
    system_class = base.system_class(system or source.meta["recipe"]["system"])
    recipe = source.recipe(system_class.Recipe, system)
    params, extra = source.read(*jax.eval_shape(system_class(recipe).init, jax.random.key(0)))
    return Loaded(
        recipe=recipe,
        params=params,
        extra=extra,
        step=source.meta["step"],
        path=source.folder,
        weights=source.meta["weights"],
        provenance=source.meta.get("provenance", {}),
    )


def load_recipe(path: steps.Location, recipe_class: type[R], system: str) -> R:
    """Reads what a model was trained with, without its weights.

    Raises:
      UserError: see `load`.
    """
    return _open(path).recipe(recipe_class, system)


def load_start(system: base.System) -> tuple[PyTree, PyTree]:
    """Reads `params` and `extra` of `recipe.init_from`, from which a fresh run of `system` starts.

    Where the run trains parameters beside frozen ones, and those weights have none yet, it adds fresh ones.

    Raises:
      UserError: see `load`; or weights of another architecture, or that the recipe of `system` refuses.
    """
    recipe = system.recipe
    source = _open(recipe.init_from)
    origin = source.recipe(type(recipe), recipe.system)
    recipe.check_start(origin, recipe.init_from)
    params, extra = jax.eval_shape(system.init, jax.random.key(0))
    if not recipe.added or origin.added:
        return source.read(params, extra)
    params, extra = source.read(partition(params, recipe.added)[1], extra)
    return system.extended(params, jax.random.key(recipe.seed)), extra


def load_tokenizer(path: steps.Location, latent_space: str = "") -> tuple[Tokenizer, Loaded]:
    """Opens a trained tokenizer together with the run that it comes from.

    Args:
      latent_space: the one that is expected; empty takes any.

    Raises:
      UserError: see `load`; or a tokenizer of another latent space.
    """
    loaded = load(path, "mbq_vae")
    model, params = loaded.recipe.model, loaded.params["tokenizer"]  # type: ignore[attr-defined]
    space = fingerprint(model, params, loaded.extra)
    if latent_space and space != latent_space:
        raise UserError(
            f"{path}: the tokenizer of step {loaded.step} has the latent space {space}, but {latent_space} is needed; "
            f"name the tokenizer that this model was trained with"
        )
    return Tokenizer(config=model, params=params, extra=loaded.extra, latent_space=space), loaded


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """Weights on disk, not yet read; one face for step folders, release folders and exported ones."""

    path: str
    folder: pathlib.PurePath
    meta: Mapping[str, Any]
    reader: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]

    def recipe(self, recipe_class: type[R], system: str | None) -> R:
        values = self.meta["recipe"]
        if system and values["system"] != system:
            part = values.get("tokenizer") if system == "mbq_vae" else None
            hint = f"; its tokenizer is {part}" if part else ""
            raise UserError(f"{self.path}: holds a {values['system']}; a {system} is needed here{hint}")
        try:
            return config.build(recipe_class, values)
        except UserError as error:
            raise UserError(f"{self.path}: its saved {error}") from None

    def read(self, params: PyTree, extra: PyTree) -> tuple[PyTree, PyTree]:
        return jax.tree.map(np.asarray, self.reader(params, extra))


def _open(path: steps.Location) -> _Source:
    path = hub.checkpoint_folder(path)
    local = pathlib.Path(path)
    folder: pathlib.PurePath = local
    if exported.is_export(local):
        meta, reader = exported.read_meta(local), functools.partial(exported.read_weights, local)
    elif release.is_release(local):
        meta, reader = release.read_meta(local), functools.partial(release.read_weights, local)
    else:
        folder, meta = steps.read_meta(path)
        reader = functools.partial(steps.read_weights, folder)
    return _Source(path=str(path), folder=folder, meta=meta, reader=reader)
