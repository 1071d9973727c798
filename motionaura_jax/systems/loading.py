"""Trained models by path: any system of the registry, and autoencoders for the systems that build on one."""

from typing import Any

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.models.autoencoders.base import VideoAutoencoder
from motionaura_jax.systems.base import System
from motionaura_jax.systems.registry import system_class
from motionaura_jax.weights import steps
from motionaura_jax.weights.load import Checkpoint, Loaded, load_as, load_recipe, open_checkpoint
from motionaura_jax.weights.release import at_key


def load(path: steps.Location, system: str | None = None) -> Loaded:
    """Read the newest step of a workdir, a step folder, a release, an export, or the hub's `ORG/NAME@REVISION`.

    Args:
      system: the one that is needed; None takes any.

    Raises:
      UserError: no weights there, damaged ones, those of another system, or some that do not fit their own config.
    """
    source = open_checkpoint(path)
    cls = _class_of(source)
    source.recipe(cls.Recipe, system)
    return load_as(cls, source)[1]


def open_system(recipe: Recipe, workdir: steps.Location) -> System:
    """Build the system of a recipe for training; fill what it leaves unset from the checkpoint in `workdir`, if any.

    Raises:
      UserError: the workdir belongs to another system, or parts of other runs cannot be opened.
    """
    newest = steps.newest(steps.folder_of(workdir, recipe.checkpoint.folder))
    if recipe.meaning and newest:
        recipe = recipe.completed(load_recipe(newest, type(recipe), recipe.system))
    return system_class(recipe.system)(recipe)


def load_autoencoder(path: steps.Location, latent_space: str = "") -> tuple[VideoAutoencoder, Loaded]:
    """Open a trained autoencoder together with the run that it comes from.

    Args:
      latent_space: the one that is expected; empty takes any.

    Raises:
      UserError: see `load`; or no autoencoder, or one of another latent space.
    """
    source = open_checkpoint(path)
    system, loaded = load_as(_autoencoder_class(source), source)
    autoencoder = system.autoencoder(loaded.params, loaded.extra)  # type: ignore[attr-defined]
    found = autoencoder.latent_space
    if latent_space and found != latent_space:
        raise UserError(
            f"{path}: the tokenizer of step {loaded.step} has the latent space {found}, but {latent_space} is needed; "
            f"name the tokenizer that this model was trained with"
        )
    return autoencoder, loaded


def open_autoencoder(path: steps.Location, latent_space: str = "", *, tokens: bool = False) -> VideoAutoencoder:
    """Open a trained autoencoder.

    Args:
      latent_space: the one that is expected; empty takes any.
      tokens: whether a codebook is needed.

    Raises:
      UserError: see `load_autoencoder`; or one without a codebook where tokens are needed.
    """
    autoencoder, _ = load_autoencoder(path, latent_space)
    if tokens and not autoencoder.vocab_size:
        raise UserError(f"{path}: this tokenizer has no codebook; train one with another model.quantizer than 'none'")
    return autoencoder


def planned_autoencoder(path: steps.Location, latent_space: str) -> VideoAutoencoder:
    """Return a trained autoencoder whose weights are shapes alone, by its recipe.

    Args:
      latent_space: the one to mark it with, as only weights tell their own.

    Raises:
      UserError: no autoencoder there.
    """
    source = open_checkpoint(path)
    cls: Any = _autoencoder_class(source)
    system = cls(source.recipe(cls.Recipe))
    return system.bind(*source.abstract(system), latent_space)


def _class_of(source: Checkpoint) -> type[System]:
    try:
        return system_class(source.system)
    except UserError as error:
        raise UserError(f"{source.path}: its saved {error}") from None


def _autoencoder_class(source: Checkpoint) -> type:
    cls = _class_of(source)
    if not hasattr(cls, "autoencoder"):
        places = [(part.role, at_key(source.meta["recipe"], part.key)) for part in cls.parts if part.latent_space]
        hint = "".join(f"; its {role} is {place}" for role, place in places if place)
        raise UserError(f"{source.path}: holds a {source.system}; an autoencoder is needed here{hint}")
    return cls
