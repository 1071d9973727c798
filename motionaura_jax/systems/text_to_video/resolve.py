"""What a text-to-video recipe takes from outside: words and codes, from captions and a tokenizer or from another run."""

import dataclasses
import logging

from motionaura_jax.data import scene_set
from motionaura_jax.data.manifest import read_manifest
from motionaura_jax.data.scene_text import caption as scene_caption
from motionaura_jax.errors import UserError
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.encoders.text_tokenizer import TextTokenizer, build_vocabulary
from motionaura_jax.recipe import DataConfig
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.weights.load import load_recipe
from motionaura_jax.weights.tokenizer import open_tokenizer

logger = logging.getLogger(__name__)

SCENES = "scenes"
_SCENE_CAPTIONS = 512  # captions from which rendered scenes take their words; every attribute is among them


def captions(data: DataConfig, max_missing: float) -> list[str]:
    """Returns the captions of the clips that a recipe trains on.

    Raises:
      UserError: more than the share `max_missing` of the clips has none.
    """
    if data.manifest == SCENES:
        options, count = scene_set.PRESETS[data.scene_style], max(data.scenes, _SCENE_CAPTIONS)
        return [scene_caption(scene_set.make_scene(i, split="train", options=options)) for i in range(count)]
    records = read_manifest(data.manifest)
    missing = [record.id for record in records if not record.caption]
    if missing:
        line = f"{data.manifest}: {len(missing)} of {len(records)} clips have no caption, e.g. {missing[0]}"
        if len(missing) > max_missing * len(records):
            raise UserError(f"{line}; add NAME.txt beside them, or raise config.text.max_missing ({max_missing:g})")
        logger.warning("%s; they train the null text", line)
    return [record.caption for record in records if record.caption]


def inherit(recipe: TextToVideoRecipe) -> TextToVideoRecipe:
    """Takes what the recipe leaves open from the model in `init_from`: words, latent space and tokenizer.

    Raises:
      UserError: no text-to-video model there.
    """
    origin = load_recipe(recipe.init_from, TextToVideoRecipe, recipe.system)
    if not recipe.text.vocabulary:
        text = dataclasses.replace(recipe.text, vocabulary=origin.text.vocabulary)
        recipe = dataclasses.replace(recipe, text=text)
    if not recipe.latent_space:
        model = dataclasses.replace(recipe.model, vocab_size=origin.model.vocab_size)
        recipe = dataclasses.replace(recipe, model=model, latent_space=origin.latent_space)
    return dataclasses.replace(recipe, tokenizer=recipe.tokenizer or origin.tokenizer)


def resolve(recipe: TextToVideoRecipe) -> tuple[TextToVideoRecipe, Tokenizer | None]:
    """Fills in what comes from outside: the vocabulary, the latent space, the number of codes and maybe the tokenizer.

    Returns:
      The recipe to save, and the tokenizer if it had to be opened.  A saved recipe comes back as it is.

    Raises:
      UserError: no such tokenizer, or captions that cannot serve.
    """
    opened = None
    if recipe.init_from and not (recipe.text.vocabulary and recipe.latent_space and recipe.tokenizer):
        recipe = inherit(recipe)
    if not recipe.text.vocabulary:
        texts = captions(recipe.data, recipe.text.max_missing)
        vocabulary = build_vocabulary(texts, recipe.text.max_words)
        if not vocabulary:
            raise UserError(f"{recipe.data.manifest}: no caption has a word; add captions")
        cut = sum(bool(TextTokenizer(vocabulary, recipe.model.text_len).encode(text).cut) for text in texts)
        if cut:
            logger.warning(
                "%d of %d captions are longer than model.text_len=%d", cut, len(texts), recipe.model.text_len
            )
        recipe = dataclasses.replace(recipe, text=dataclasses.replace(recipe.text, vocabulary=vocabulary))
    if not recipe.latent_space:
        opened = open_tokenizer(recipe.tokenizer)
        model = dataclasses.replace(recipe.model, vocab_size=opened.config.vocab_size)
        recipe = dataclasses.replace(recipe, model=model, latent_space=opened.latent_space)
    return recipe, opened
