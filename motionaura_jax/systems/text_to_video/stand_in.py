"""What stands for the parts that a text-to-video recipe takes from outside while a run is only planned."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from motionaura_jax import config
from motionaura_jax.models.autoencoders.config import preset
from motionaura_jax.models.autoencoders.mbq_vae import init_tokenizer
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.systems.base import system_class
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.weights.load import load_recipe

_PLANNED = "planned"
_TOKENIZER, _PRESET = "mbq_vae", "paper"


def stand_in(values: Mapping[str, Any]) -> tuple[TextToVideoRecipe, Tokenizer]:
    """Returns the recipe of config values, complete, and its tokenizer without weights.

    Nothing is read but the settings of the tokenizer, if one is named.  Else tokens come with the clips, as with a
    `token_cache`, from a tokenizer of the published strides that takes no memory.  Where no words are given there are as
    many as `text.max_words` allows.

    Raises:
      UserError: no such config, or no such tokenizer.
    """
    recipe = config.build(TextToVideoRecipe, {**values, "tokenizer": values.get("tokenizer") or _PLANNED})
    if recipe.tokenizer != _PLANNED:
        settings = load_recipe(recipe.tokenizer, system_class(_TOKENIZER).Recipe, _TOKENIZER).model
        params, extra = jax.eval_shape(lambda: init_tokenizer(settings, jax.random.key(0)))
    else:
        recipe = dataclasses.replace(recipe, token_cache=1)
        settings, params, extra = preset(_PRESET, codebook_size=recipe.model.vocab_size), {}, {}
    words = recipe.text.vocabulary or tuple(f"word{index}" for index in range(recipe.text.max_words))
    recipe = dataclasses.replace(
        recipe,
        latent_space=_PLANNED,
        model=dataclasses.replace(recipe.model, vocab_size=settings.vocab_size),
        text=dataclasses.replace(recipe.text, vocabulary=words),
    )
    return recipe, Tokenizer(config=settings, params=params, extra=extra, latent_space=_PLANNED)
