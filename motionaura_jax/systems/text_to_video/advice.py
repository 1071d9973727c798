"""Warns of what is possible but will not act as it reads, when training starts and when videos are drawn."""

import logging
from collections.abc import Iterable

from motionaura_jax.models.encoders.text_tokenizers import TextTokenizer
from motionaura_jax.systems.text_to_video.recipe import SampleConfig, TextToVideoRecipe

logger = logging.getLogger(__name__)

ANCESTRAL_STEPS = 64  # with fewer, too many tokens are drawn together as if independent


def warn_of_words(words: TextTokenizer, prompts: Iterable[str]) -> None:
    """Names the prompts that are cut off, and their words that the model has never seen."""
    for text in dict.fromkeys(prompts):
        encoded = words.encode(text)
        if encoded.cut:
            logger.warning("prompt %r is longer than %d words; cut: %r", text, words.limit, encoded.cut)
        if encoded.unknown:
            logger.warning("prompt %r: the model has never seen %s", text, ", ".join(map(repr, encoded.unknown)))


def warn_of_rate(recipe: TextToVideoRecipe, fps: float) -> None:
    """Says where the network never learned what a frame rate means."""
    if fps not in recipe.data.rates:
        known = ", ".join(f"{rate:g}" for rate in sorted(set(recipe.data.rates)))
        logger.warning("this model was trained at %s fps; how things move at %g is a guess", known, fps)


def warn_of_settings(recipe: TextToVideoRecipe, sample: SampleConfig) -> None:
    """Names what in `sample` a model trained with `recipe` cannot follow, or only badly."""
    if sample.guidance is not None and not recipe.diffusion.text_dropout:
        logger.warning("this model was trained without text dropout: it has no null text to guide away from")
    if sample.remask and not recipe.diffusion.corrupt_visible:
        logger.warning(
            "remask=%d: this model was trained without diffusion.corrupt_visible and cannot tell which tokens are wrong; "
            "use remask=0",
            sample.remask,
        )
    if sample.sampler == "ancestral" and sample.num_inference_steps < ANCESTRAL_STEPS:
        logger.warning(
            "the ancestral sampler needs %d to 256 steps; raise num_inference_steps=%d",
            ANCESTRAL_STEPS,
            sample.num_inference_steps,
        )
