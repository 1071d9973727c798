"""Captions of the training data: the vocabulary that they make, and checks of a text encoder against them."""

import collections
import dataclasses
import logging
from collections.abc import Iterable

from motionaura_jax.conditioning.config import TextConfig
from motionaura_jax.conditioning.text import FrozenText, TextShape, TrainedText, identity
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import SCENES, DataConfig
from motionaura_jax.data.manifest import read_manifest
from motionaura_jax.models.encoders.text_tokenizers import UNKNOWN, build_vocabulary
from motionaura_jax.scenes import dataset
from motionaura_jax.scenes.scene import caption as scene_caption

logger = logging.getLogger(__name__)

_SCENE_CAPTIONS = 512  # captions from which rendered scenes take their words; every attribute is among them


def captions(data: DataConfig, max_missing: float) -> list[str]:
    """Return the caption of every clip that a recipe trains on; "" for a clip without a caption.

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
            f"next to them, or raise config.text.max_missing ({max_missing:g})"
        )
    return [record.caption or "" for record in records]


def resolve_text(text: TextConfig, model: TextShape, data: DataConfig) -> tuple[TextConfig, int]:
    """Fill in the words of an encoder that trains, or the identity of a frozen one.

    Returns:
      The settings to save, and the width of the text features.

    Raises:
      UserError: no such encoder, or captions without a word.
    """
    if text.is_frozen:
        if text.tower_hash:
            return text, model.text_dim
        meta = FrozenText(text, model).meta
        return dataclasses.replace(text, tower_hash=identity(meta)), meta["width"]
    if text.vocabulary:
        return text, model.text_dim
    vocabulary = build_vocabulary(captions(data, text.max_missing), text.max_words)
    if not vocabulary:
        raise UserError(f"{data.manifest}: no caption has a word; add captions")
    return dataclasses.replace(text, vocabulary=vocabulary), model.text_dim


def check_captions(
    data: DataConfig, text: TextConfig, conditioner: TrainedText | FrozenText, prompts: Iterable[str]
) -> None:
    """Warn about captions that are missing, longer than the model reads, or hold words that it does not know.

    Args:
      prompts: further texts that a cache of features must hold.

    Raises:
      UserError: too many captions are missing, or the model knows none of their words.
    """
    texts, words = captions(data, text.max_missing), conditioner.words
    missing = texts.count("")
    if missing:
        logger.warning(
            "%s: %d of %d clips have no caption; they train the null text", data.manifest, missing, len(texts)
        )
    total = unknown = cut = 0
    example = ""
    # One at a time, and equal captions once: a large manifest has millions.
    for caption, count in collections.Counter(filter(None, texts)).items():
        encoded = words.encode(caption)
        total += count * len(encoded.ids)
        cut += count * bool(encoded.cut)
        if encoded.unknown:
            unknown += count * encoded.ids.count(UNKNOWN)
            example = example or encoded.unknown[0]
    if cut:
        key = "text.limit" if isinstance(conditioner, FrozenText) else "model.text_len"
        logger.warning("%d of %d captions are longer than %s=%d", cut, len(texts) - missing, key, words.limit)
    if isinstance(conditioner, FrozenText):
        conditioner.check([*texts, *prompts])
        return
    if not unknown:
        return
    if unknown == total:
        raise UserError(
            f"{data.manifest}: the vocabulary has no word of its captions, e.g. {example!r}; write them in the words of "
            f"config.text.vocabulary, or train from nothing with other words"
        )
    logger.warning(
        "%s: %.2g %% of the words in captions are not in config.text.vocabulary, e.g. %r; they train <unk>",
        data.manifest,
        100 * unknown / total,
        example,
    )
