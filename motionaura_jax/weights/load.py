"""Opens checkpoints for inference."""

import dataclasses
import pathlib
from typing import Any

import jax

from motionaura_jax import config
from motionaura_jax.errors import UserError
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer, fingerprint
from motionaura_jax.recipe import Recipe
from motionaura_jax.systems import base
from motionaura_jax.training import checkpoint
from motionaura_jax.types import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """The weights of one checkpoint and what they were trained with."""

    recipe: Recipe
    params: PyTree
    extra: PyTree
    step: int
    path: pathlib.Path


def load(path: str | pathlib.Path, system: str) -> Loaded:
    """Reads the newest step of a workdir, or one step folder, and checks that it holds a `system`.

    Raises:
      UserError: no checkpoint, one of another system, or one that does not fit its own config.
    """
    folder, meta = checkpoint.read_meta(pathlib.Path(path))
    values: dict[str, Any] = meta["recipe"]
    if values["system"] != system:
        raise UserError(f"{path}: holds a {values['system']}; a {system} is needed here")
    system_class = base.system_class(system)
    recipe = config.build(system_class.Recipe, values)
    params, extra = jax.eval_shape(system_class(recipe).init, jax.random.key(0))
    params, extra = checkpoint.read_weights(folder, params, extra)
    return Loaded(recipe=recipe, params=params, extra=extra, step=int(meta["step"]), path=folder)


def load_tokenizer(path: str | pathlib.Path) -> tuple[Tokenizer, Loaded]:
    """Opens a trained tokenizer together with the run that it comes from.

    Raises:
      UserError: see `load`.
    """
    loaded = load(path, "mbq_vae")
    model, params = loaded.recipe.model, loaded.params["tokenizer"]  # type: ignore[attr-defined]
    space = fingerprint(model, params, loaded.extra)
    return Tokenizer(config=model, params=params, extra=loaded.extra, latent_space=space), loaded
