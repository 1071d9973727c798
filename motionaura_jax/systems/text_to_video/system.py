"""Text to video: absorbing diffusion over the tokens of a frozen tokenizer.  MotionAura 3.2, 3.3."""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from motionaura_jax.conditioning.base import Conditioners
from motionaura_jax.conditioning.scalars import Scalar
from motionaura_jax.conditioning.text import (
    FrozenText,
    PlannedText,
    TrainedText,
    ids_of,
    make_text,
    planned_tower,
    warn_of_words,
)
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.parts import Component, Part
from motionaura_jax.diffusion.absorbing import Absorbing
from motionaura_jax.diffusion.known import known_frames
from motionaura_jax.diffusion.process import Mask
from motionaura_jax.diffusion.sampling import Sampler
from motionaura_jax.models import encoders
from motionaura_jax.models.autoencoders.base import VideoAutoencoder
from motionaura_jax.models.autoencoders.config import preset
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.models.denoisers import spectral_transformer
from motionaura_jax.models.denoisers.spectral_transformer import SpectralTransformer
from motionaura_jax.models.denoisers.spectral_transformer_tensors import SPECTRAL_TRANSFORMER
from motionaura_jax.models.encoders.tensor_maps import TEXT_ENCODER
from motionaura_jax.systems import loading
from motionaura_jax.systems.base import Batch
from motionaura_jax.systems.captions import check_captions, resolve_text
from motionaura_jax.systems.diffusion import DiffusionSystem
from motionaura_jax.systems.latent import PLANNED
from motionaura_jax.systems.text_to_video.recipe import SampleConfig, TextToVideoRecipe, make_process, make_sampler
from motionaura_jax.weights import hub

logger = logging.getLogger(__name__)

ANCESTRAL_STEPS = 64  # with fewer, too many tokens are sampled together as if independent
_PRESET = "paper"
_DEEP = 8  # blocks


class TextToVideoSystem(DiffusionSystem):
    """System around one recipe; see `systems.base.System`.

    `params` holds `text` (the encoder) and `denoiser`; `frozen` holds the `tokenizer`, and `text` if that is published.
    """

    Recipe = TextToVideoRecipe
    recipe: TextToVideoRecipe
    process: Absorbing
    discrete = True
    control = "text"
    parts = (
        Part(role="tokenizer", key="tokenizer", latent_space="latent_space"),
        Part(role="text_encoder", key="text.tower", published=True),
    )
    components = (
        Component(folder="text_encoder", tensors=TEXT_ENCODER, place=("params", "text")),
        Component(folder="transformer", tensors=SPECTRAL_TRANSFORMER, place=("params", "denoiser")),
    )
    exports: ClassVar[Mapping[str, str]] = {
        "pytorch": "motionaura_jax.exporters.pytorch.writer:write_text_to_video",
        "stablehlo": "motionaura_jax.exporters.stablehlo:write_text_to_video",
    }
    matrices = encoders.MATRICES
    not_decayed = spectral_transformer.NOT_DECAYED | encoders.NOT_DECAYED

    @property
    def text(self) -> TrainedText | FrozenText:
        """The conditioner on text."""
        return self.conditioners["text"]

    def make_process(self) -> Absorbing:
        """Build the absorbing process."""
        return make_process(self.recipe)

    def make_denoiser(self) -> SpectralTransformer:
        """Build the spectral transformer."""
        return SpectralTransformer(self.recipe.model)

    @classmethod
    def make_conditioners(cls, recipe: TextToVideoRecipe) -> Conditioners:
        """Build the conditioners on text and on the frame rate."""
        return Conditioners({"text": make_text(recipe.text, recipe.model), "fps": Scalar("fps")})

    def make_sampler(self, settings: SampleConfig) -> Sampler:
        """Build the sampler that the settings name."""
        return make_sampler(settings, self.process.vocab_size)

    @property
    def dropout(self) -> Mapping[str, float]:
        """Return the share of samples without text."""
        return {"text": self.recipe.diffusion.text_dropout}

    def trained_positions(self, mask: Mask | None, shape: Sequence[int], keys: Key[Array, " b"]) -> Mask | None:
        """Leave some latent frames clean in the share `diffusion.known_frames` of clips."""
        share = self.recipe.diffusion.known_frames
        if not share or shape[1] < 2:
            return mask
        return jnp.broadcast_to(~known_frames(keys, shape[1], share)[:, :, None, None], shape)

    @classmethod
    def resolve_conditions(cls, recipe: TextToVideoRecipe) -> TextToVideoRecipe:
        """Fill in the words of the captions, or the identity and width of a frozen encoder."""
        recipe = recipe.with_null()
        text, width = resolve_text(recipe.text, recipe.model, recipe.data)
        return dataclasses.replace(recipe, text=text, model=dataclasses.replace(recipe.model, text_dim=width))

    def check_data(self) -> None:
        """Warn about captions and about settings of samples that will not do what they say.

        Raises:
          UserError: captions that cannot teach any text, clips that the mesh cannot share, or adapters to nothing.
        """
        if self.recipe.added and not self.recipe.init_from:
            raise UserError(
                f"config.model.lora.rank={self.recipe.model.lora.rank}: adapters need a trained model; name it with "
                f"--config.init_from=CHECKPOINT"
            )
        check_captions(self.recipe.data, self.recipe.text, self.text, self.recipe.sample.prompts)
        _ = self.fields  # opens a latent cache, which has to fit
        self.check_mesh()
        warn_of_words(self.text.words, self.recipe.sample.prompts)
        warn_of_settings(self.recipe, self.recipe.sample)
        warn_of_residual(self.recipe)

    def previews(self, batch: Batch) -> tuple[Batch, list[str], bool]:
        """Choose `sample.prompts`, or else the captions of the first held-out clips."""
        prompts = self.recipe.sample.prompts
        if prompts:
            fps = np.resize(np.asarray(batch["fps"]), len(prompts))
            rows: Batch = {"text": self.text.batch(prompts), "fps": fps, "sample": np.arange(len(prompts))}
        else:
            rows, _, _ = super().previews(batch)
        names = [re.sub(r"\W+", "_", self.text.words.decode(row))[:80] for row in np.asarray(ids_of(rows["text"]))]
        return rows, names, not prompts

    @classmethod
    def with_part(cls, recipe: TextToVideoRecipe, role: str, place: str) -> TextToVideoRecipe:
        """Return the recipe with a part at `place`; a model with a text encoder of its own takes no published one."""
        return recipe.with_text_encoder(place) if role == "text_encoder" else super().with_part(recipe, role, place)

    @classmethod
    def standalone(cls, recipe: TextToVideoRecipe) -> TextToVideoRecipe:
        """Pin the published text encoder, and leave out a cache of its features."""
        text = recipe.text
        if not text.is_frozen:
            return recipe
        if not text.tower:
            raise UserError(
                f"--checkpoint: this model was trained on features from {text.cache}; name their encoder with --text_encoder"
            )
        text = dataclasses.replace(text, tower=hub.pinned(text.tower), cache="")
        return dataclasses.replace(recipe, text=text)

    def copy_part(self, role: str, folder: pathlib.Path, shard_bytes: int) -> None:
        """Copy the published text encoder with its tokenizer."""
        FrozenText(self.recipe.text, self.recipe.model).save(folder, shard_bytes)

    def uncounted(self) -> str:
        """Name a published text encoder that is not here."""
        return self.text.uncounted if isinstance(self.text, PlannedText) else ""

    @classmethod
    def planned_autoencoder(cls, recipe: TextToVideoRecipe) -> tuple[TextToVideoRecipe, VideoAutoencoder]:
        """Return a tokenizer without weights, from its settings alone.

        If none is named, tokens come with the clips, as with a `token_cache`, from a tokenizer of the published strides
        that takes no memory.
        """
        if recipe.tokenizer != PLANNED:
            tokenizer = loading.planned_autoencoder(recipe.tokenizer, PLANNED)
        else:
            recipe = dataclasses.replace(recipe, token_cache=1)
            settings = preset(_PRESET, codebook_size=recipe.model.vocab_size)
            tokenizer = Tokenizer(config=settings, params={}, extra={}, latent_space=PLANNED)
        return recipe.with_autoencoder(tokenizer), tokenizer

    @classmethod
    def planned_conditioners(cls, recipe: TextToVideoRecipe) -> tuple[TextToVideoRecipe, Conditioners]:
        """Return a text encoder without weights; an empty vocabulary gets as many words as `text.max_words` allows."""
        recipe = recipe.with_null()
        text, model, tower = recipe.text, recipe.model, planned_tower(recipe.text)
        if text.is_frozen:
            text = dataclasses.replace(text, tower_hash=PLANNED)
        elif not text.vocabulary:
            text = dataclasses.replace(text, vocabulary=tuple(f"word{index}" for index in range(text.max_words)))
        if tower:
            model = dataclasses.replace(model, text_dim=tower.network.config.d_model)
        recipe = dataclasses.replace(recipe, model=model, text=text)
        conditioners = cls.make_conditioners(recipe)
        if text.is_frozen:
            conditioners = Conditioners({**conditioners, "text": PlannedText(text, model, tower)})
        return recipe, conditioners


def warn_of_residual(recipe: TextToVideoRecipe) -> None:
    """Warn about a deep network without an identity path.

    With `residual=paper` each sublayer adds two normalized terms, so the input of a block keeps about half of its share
    per sublayer, and after 37 blocks nothing of it is left (docs/fidelity.md).
    """
    if recipe.model.residual == "paper" and recipe.model.blocks > _DEEP:
        logger.warning(
            "config.model.residual=paper: each sublayer halves the share of its input, which %d blocks do not pass on; "
            "residual=identity trains better",
            recipe.model.blocks,
        )


def warn_of_settings(recipe: TextToVideoRecipe, sample: SampleConfig) -> None:
    """Warn about settings in `sample` that a model trained with `recipe` cannot follow, or only badly."""
    if sample.guidance is not None and not recipe.diffusion.text_dropout:
        logger.warning("this model was trained without text dropout: it has no null text to guide away from")
    if sample.remask and not (recipe.diffusion.corrupt_visible and recipe.diffusion.visible_weight):
        logger.warning(
            "remask=%d: this model was trained without diffusion.corrupt_visible or diffusion.visible_weight and cannot tell "
            "which tokens are wrong; use remask=0",
            sample.remask,
        )
    if sample.sampler == "ancestral" and sample.num_inference_steps < ANCESTRAL_STEPS:
        logger.warning(
            "the ancestral sampler needs %d to 256 steps; raise num_inference_steps=%d",
            ANCESTRAL_STEPS,
            sample.num_inference_steps,
        )
