"""What stands for the parts that a text-to-video recipe takes from outside while a run is only planned."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from motionaura_jax.core import config
from motionaura_jax.core.types import PyTree
from motionaura_jax.models.autoencoders.config import preset
from motionaura_jax.models.autoencoders.mbq_vae import init_tokenizer
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig
from motionaura_jax.models.encoders.text_tokenizers import PAD
from motionaura_jax.models.encoders.tower import Tower
from motionaura_jax.systems.base import system_class
from motionaura_jax.systems.text_to_video.conditioners import (
    DTYPE,
    Conditioner,
    FrozenText,
    Text,
    make_conditioner,
    tower_features,
)
from motionaura_jax.systems.text_to_video.recipe import TextConfig, TextToVideoRecipe
from motionaura_jax.weights.load import load_recipe
from motionaura_jax.weights.towers import planned_text_tower

_PLANNED = "planned"
_TOKENIZER, _PRESET = "mbq_vae", "paper"


class PlannedText(FrozenText):
    """A frozen encoder without its weights; without `tower`, features as they come with the clips from a cache."""

    def __init__(self, text: TextConfig, model: SpectralTransformerConfig, tower: Tower | None):
        super().__init__(text, model)
        self._planned = tower

    @property
    def uncounted(self) -> str:
        """The encoder, where it runs in every step and is not here."""
        unknown = self._text.tower and not self._text.cache and self._planned is None
        return f"the text encoder {self._text.tower}, which is no folder here" if unknown else ""

    def frozen(self) -> PyTree:
        """The encoder, where it has work left to do."""
        return {"text": self._planned} if self._planned else {}

    def null(self) -> Text:
        """Padding alone."""
        ids = np.full((1, self._length), PAD, np.int32)
        features = np.zeros((*ids.shape, self._width), jnp.dtype(DTYPE))
        return ids if self._planned else {"ids": ids, "features": features}

    def __call__(self, params: PyTree, frozen: PyTree, text: Text) -> tuple[jax.Array, jax.Array]:
        """The features, and where there are any."""
        if self._planned:
            return tower_features(frozen["text"], text, PAD), text != PAD
        return text["features"], text["ids"] != PAD


def stand_in(values: Mapping[str, Any]) -> tuple[TextToVideoRecipe, Tokenizer, Conditioner]:
    """Returns the recipe of config values, complete, with its tokenizer and its text encoder without weights.

    Nothing is read but the settings of the tokenizer, if one is named, and of a text encoder that is a folder here and has
    no cache.  Without the former tokens come with the clips, as with a `token_cache`, from a tokenizer of the published
    strides that takes no memory.  Where no words are given there are as many as `text.max_words` allows.

    Raises:
      UserError: no such config, no such tokenizer, or a text encoder whose settings we do not know.
    """
    recipe = config.build(TextToVideoRecipe, {**values, "tokenizer": values.get("tokenizer") or _PLANNED})
    if recipe.tokenizer != _PLANNED:
        trained: Any = load_recipe(recipe.tokenizer, system_class(_TOKENIZER).Recipe, _TOKENIZER)
        settings = trained.model
        params, extra = jax.eval_shape(lambda: init_tokenizer(settings, jax.random.key(0)))
    else:
        recipe = dataclasses.replace(recipe, token_cache=1)
        settings, params, extra = preset(_PRESET, codebook_size=recipe.model.vocab_size), {}, {}
    text, tower = recipe.text, None
    if text.tower and not text.cache and pathlib.Path(text.tower).is_dir():
        tower = planned_text_tower(pathlib.Path(text.tower), dtype=DTYPE)
    if text.is_frozen:
        text = dataclasses.replace(text, tower_hash=_PLANNED)
    elif not text.vocabulary:
        text = dataclasses.replace(text, vocabulary=tuple(f"word{index}" for index in range(text.max_words)))
    width = tower.network.config.d_model if tower else recipe.model.text_dim
    model = dataclasses.replace(recipe.model, vocab_size=settings.vocab_size, text_dim=width)
    recipe = dataclasses.replace(recipe, latent_space=_PLANNED, model=model, text=text)
    conditioner = PlannedText(text, model, tower) if text.is_frozen else make_conditioner(recipe)
    return recipe, Tokenizer(config=settings, params=params, extra=extra, latent_space=_PLANNED), conditioner
