"""What a text-to-video recipe takes from outside: words and codes, from captions and a tokenizer or from another run."""

import dataclasses
import logging

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import DataConfig
from motionaura_jax.data.manifest import read_manifest
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.encoders.text_tokenizers import UNKNOWN, build_vocabulary
from motionaura_jax.scenes import dataset
from motionaura_jax.scenes.scene import caption as scene_caption
from motionaura_jax.systems.text_to_video.conditioners import Conditioner, FrozenText, resolve_text
from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
from motionaura_jax.weights.load import load_recipe
from motionaura_jax.weights.tokenizer import open_tokenizer

logger = logging.getLogger(__name__)

SCENES = "scenes"
_SCENE_CAPTIONS = 512  # captions from which rendered scenes take their words; every attribute is among them


def captions(data: DataConfig, max_missing: float) -> list[str]:
    """Returns the caption of every clip that a recipe trains on, "" where a clip has none.

    Raises:
      UserError: more than the share `max_missing` of the clips has none.
    """
    if data.manifest == SCENES:
        options, count = dataset.PRESETS[data.scene_style], max(data.scenes, _SCENE_CAPTIONS)
        return [scene_caption(dataset.make_scene(i, split="train", options=options)) for i in range(count)]
    records = read_manifest(data.manifest)
    missing = [record.id for record in records if not record.caption]
    if len(missing) > max_missing * len(records):
        raise UserError(
            f"{data.manifest}: {len(missing)} of {len(records)} clips have no caption, e.g. {missing[0]}; add NAME.txt "
            f"beside them, or raise config.text.max_missing ({max_missing:g})"
        )
    return [record.caption or "" for record in records]


def check_captions(recipe: TextToVideoRecipe, conditioner: Conditioner) -> None:
    """Warns of captions that are missing, longer than the model reads, or that have words which it does not know.

    Raises:
      UserError: too many are missing, or not one word of them all is known.
    """
    texts, words = captions(recipe.data, recipe.text.max_missing), conditioner.words
    encoded = [words.encode(text) for text in texts if text]
    where, missing = recipe.data.manifest, len(texts) - len(encoded)
    if missing:
        logger.warning("%s: %d of %d clips have no caption; they train the null text", where, missing, len(texts))
    if cut := sum(bool(one.cut) for one in encoded):
        key = "text.limit" if isinstance(conditioner, FrozenText) else "model.text_len"
        logger.warning("%d of %d captions are longer than %s=%d", cut, len(encoded), key, words.limit)
    if isinstance(conditioner, FrozenText):
        conditioner.check([*texts, *recipe.sample.prompts])
        return
    total = sum(len(one.ids) for one in encoded)
    unknown = sum(one.ids.count(UNKNOWN) for one in encoded)
    if not unknown:
        return
    example = next(one.unknown[0] for one in encoded if one.unknown)
    if unknown == total:
        raise UserError(
            f"{where}: the vocabulary has no word of its captions, e.g. {example!r}; write them in the words of "
            f"config.text.vocabulary, or train from nothing with other words"
        )
    logger.warning(
        "%s: %.2g %% of the words in captions are not in config.text.vocabulary, e.g. %r; they train <unk>",
        where,
        100 * unknown / total,
        example,
    )


def resolve(recipe: TextToVideoRecipe) -> tuple[TextToVideoRecipe, Tokenizer | None]:
    """Fills in what comes from outside: the words or the frozen encoder, the latent space, the number of codes.

    Returns:
      The recipe to save, and the tokenizer if it had to be opened.  A saved recipe comes back as it is.

    Raises:
      UserError: no such tokenizer, no text-to-video model in `init_from`, or captions that cannot serve.
    """
    opened = None
    text = recipe.text.vocabulary or recipe.text.tower_hash
    if recipe.init_from and not (text and recipe.latent_space and recipe.tokenizer):
        recipe = recipe.completed(load_recipe(recipe.init_from, TextToVideoRecipe, recipe.system))
    if recipe.text.is_frozen and not recipe.text.tower_hash:
        recipe = resolve_text(recipe)
    if not (recipe.text.vocabulary or recipe.text.is_frozen):
        vocabulary = build_vocabulary(captions(recipe.data, recipe.text.max_missing), recipe.text.max_words)
        if not vocabulary:
            raise UserError(f"{recipe.data.manifest}: no caption has a word; add captions")
        recipe = dataclasses.replace(recipe, text=dataclasses.replace(recipe.text, vocabulary=vocabulary))
    if not recipe.latent_space:
        opened = open_tokenizer(recipe.tokenizer)
        model = dataclasses.replace(recipe.model, vocab_size=opened.config.vocab_size)
        recipe = dataclasses.replace(recipe, model=model, latent_space=opened.latent_space)
    return recipe, opened
