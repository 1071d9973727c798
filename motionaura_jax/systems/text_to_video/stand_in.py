"""What stands for the parts that a text-to-video recipe takes from outside while a run is only planned."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from motionaura_jax import config
from motionaura_jax.models.autoencoders.config import preset
from motionaura_jax.models.autoencoders.mbq_vae import init_tokenizer
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.encoders.text_tokenizer import PAD
from motionaura_jax.systems.base import system_class
from motionaura_jax.systems.text_to_video.conditioners import DTYPE, Conditioner, FrozenText, Text, make_conditioner
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.types import PyTree
from motionaura_jax.weights.load import load_recipe

_PLANNED = "planned"
_TOKENIZER, _PRESET = "mbq_vae", "paper"


class PlannedText(FrozenText):
    """Features of a frozen encoder as they come with the clips from a cache; there is neither."""

    def frozen(self) -> PyTree:
        """Nothing: the encoder has done its work."""
        return {}

    def null(self) -> Text:
        """Padding alone."""
        ids = np.full((1, self._length), PAD, np.int32)
        return {"ids": ids, "features": np.zeros((*ids.shape, self._width), jnp.dtype(DTYPE))}

    def __call__(self, params: PyTree, frozen: PyTree, text: Text) -> tuple[jax.Array, jax.Array]:
        """The features, and where there are any."""
        return text["features"], text["ids"] != PAD


def stand_in(values: Mapping[str, Any]) -> tuple[TextToVideoRecipe, Tokenizer, Conditioner]:
    """Returns the recipe of config values, complete, with its tokenizer and its text encoder without weights.

    Nothing is read but the settings of the tokenizer, if one is named.  Else tokens come with the clips, as with a
    `token_cache`, from a tokenizer of the published strides that takes no memory.  Where no words are given there are as
    many as `text.max_words` allows.

    Raises:
      UserError: no such config, or no such tokenizer.
    """
    recipe = config.build(TextToVideoRecipe, {**values, "tokenizer": values.get("tokenizer") or _PLANNED})
    if recipe.tokenizer != _PLANNED:
        trained: Any = load_recipe(recipe.tokenizer, system_class(_TOKENIZER).Recipe, _TOKENIZER)
        settings = trained.model
        params, extra = jax.eval_shape(lambda: init_tokenizer(settings, jax.random.key(0)))
    else:
        recipe = dataclasses.replace(recipe, token_cache=1)
        settings, params, extra = preset(_PRESET, codebook_size=recipe.model.vocab_size), {}, {}
    text = recipe.text
    if text.is_frozen:
        text = dataclasses.replace(text, tower_hash=_PLANNED)
    elif not text.vocabulary:
        text = dataclasses.replace(text, vocabulary=tuple(f"word{index}" for index in range(text.max_words)))
    recipe = dataclasses.replace(
        recipe,
        latent_space=_PLANNED,
        model=dataclasses.replace(recipe.model, vocab_size=settings.vocab_size),
        text=text,
    )
    conditioner = PlannedText(text, recipe.model) if text.is_frozen else make_conditioner(recipe)
    return recipe, Tokenizer(config=settings, params=params, extra=extra, latent_space=_PLANNED), conditioner
