"""The settings of a text-to-video run.  MotionAura 3.2, 3.3."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from motionaura_jax.conditioning.config import TextConfig
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import (
    Checked,
    Count,
    Natural,
    NonNegative,
    Place,
    PositiveShare,
    Share,
    ShareBelowOne,
)
from motionaura_jax.diffusion import schedules
from motionaura_jax.diffusion.absorbing import Absorbing, Objective
from motionaura_jax.diffusion.samplers import absorbing as samplers
from motionaura_jax.models.autoencoders.base import VideoAutoencoder
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig, preset
from motionaura_jax.systems import diffusion_recipe
from motionaura_jax.systems.diffusion_recipe import DiffusionRecipe


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(Checked):
    """The process, and what training samples are.

    Attributes:
      known_frames: share of clips in which some latent frames are given, a prefix or keyframes, as in windows of long videos.
      text_dropout: share of clips without text.
      others: see `diffusion.absorbing.Absorbing`.
    """

    schedule: str = "cosine"
    objective: Objective = "ce_masked"
    min_masked: Count = 1
    label_smoothing: ShareBelowOne = 0.0
    corrupt_visible: Share = 0.0
    visible_weight: NonNegative = 0.0
    per_frame: Share = 0.0
    known_frames: Share = 0.0
    text_dropout: ShareBelowOne = 0.1


@dataclass(frozen=True, kw_only=True)
class SampleConfig(diffusion_recipe.SampleConfig):
    """Settings of sampling, in evaluations and by default in `motionaura sample`; `levels` are shares of masking.

    Attributes:
      sampler: "ancestral", or the fixed-count sampler revealing by "confidence", in "halton" or in "random" order.
      prompts: texts sampled at every evaluation; empty means the captions of the first held-out clips.
      schedule, temperature, choice_temperature, top_k, top_p, remask: see `diffusion.samplers.absorbing.Confidence`.
      remask_rule, remask_rate: `remask` and `remask_rate` of `diffusion.samplers.absorbing.Ancestral`.
    """

    NOT_SAMPLING = ("prompts", "levels")

    sampler: Literal["confidence", "halton", "random", "ancestral"] = "confidence"
    schedule: str = "cosine"
    temperature: NonNegative = 1.0
    choice_temperature: NonNegative = 4.5
    top_k: Count | None = None
    top_p: PositiveShare | None = None
    remask: Natural = 0
    remask_rule: Literal["cap", "rescale"] = "rescale"
    remask_rate: Share = 0.0
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        schedules.schedule(self.schedule)
        make_sampler(self, 1)


def make_sampler(config: SampleConfig, vocab_size: int) -> samplers.Confidence | samplers.Ancestral:
    """Build the sampler that the settings name."""
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "schedule": schedules.schedule(config.schedule),
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
    }
    if config.sampler == "ancestral":
        rule = config.remask_rule if config.remask_rate else "none"
        return samplers.Ancestral(remask=rule, remask_rate=config.remask_rate, **common)
    if config.remask_rate:
        raise UserError(
            f"SampleConfig.remask_rate={config.remask_rate}: only the sampler 'ancestral' masks tokens again"
        )
    return samplers.Confidence(
        reveal=config.sampler, remask=config.remask, choice_temperature=config.choice_temperature, **common
    )


@dataclass(frozen=True, kw_only=True)
class TextToVideoRecipe(DiffusionRecipe):
    """A text-to-video training run.

    Attributes:
      tokenizer: workdir, step folder or release folder of the trained tokenizer; by default, with `init_from`, that of the
        model there.
      model: the denoiser; the tokenizer decides its `vocab_size`.
    """

    places = (*DiffusionRecipe.places, "tokenizer", "text.tower", "text.cache")
    meaning: ClassVar[Mapping[str, str]] = {
        "text.vocabulary": "leave it empty to take those words",
        "text.tower_hash": "leave it empty, and name the encoder that it was trained with",
        "latent_space": "leave it empty, and name the tokenizer that it was trained with",
        "model.spectral": "give that value",
        "model.rope": "give that value",
        "model.lora.activation": "give that value",
        "text.encoder.max_distance": "give that value",
    }
    autoencoder_role = "tokenizer"

    tokenizer: Place = ""
    model: SpectralTransformerConfig = field(default_factory=lambda: preset("tiny"))
    text: TextConfig = field(default_factory=TextConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        make_process(self)

    @property
    def added(self) -> str:
        """Return the names of the adapters, if the model has any."""
        return "lora_(down|up)$" if self.model.lora.rank else ""

    def check_start(self, origin: Self, where: str) -> None:
        """Refuse other weights, see `Recipe`; weights without adapters fit adapters of any kind."""
        if not origin.model.lora.rank:
            model = dataclasses.replace(origin.model, lora=self.model.lora)
            origin = dataclasses.replace(origin, model=model)
        super().check_start(origin, where)

    def with_text_encoder(self, place: str) -> Self:
        """Return the recipe with its published text encoder in `place`, a folder or a hub id.

        Raises:
          UserError: the model has a text encoder of its own.
        """
        if not self.text.is_frozen:
            raise UserError(f"--text_encoder={place}: this model has a text encoder of its own; leave it out")
        return dataclasses.replace(self, text=dataclasses.replace(self.text, tower=place))

    @property
    def is_complete(self) -> bool:
        """Tell whether nothing is left for `completed` to fill in."""
        return super().is_complete and bool(self.text.vocabulary or self.text.tower_hash)

    def completed(self, origin: Self) -> Self:
        """Fill unset fields from the run `origin`: words or text encoder, tokenizer, latent space and its size."""
        text, model = self.text, self.model
        if not text.vocabulary:
            text = dataclasses.replace(text, vocabulary=origin.text.vocabulary)
        if not text.tower_hash:
            text = dataclasses.replace(text, tower_hash=origin.text.tower_hash)
        if not (text.tower or text.cache):
            text = dataclasses.replace(text, tower=origin.text.tower, cache=origin.text.cache)
        if not self.latent_space:
            model = dataclasses.replace(model, vocab_size=origin.model.vocab_size)
        if not self.text.tower_hash and text.tower_hash:
            model = dataclasses.replace(model, learned_null=origin.model.learned_null)
        return dataclasses.replace(super().completed(origin), text=text, model=model)

    def with_null(self) -> Self:
        """Leave the learned null text out of a new model with a frozen text encoder, whose null is the empty text.

        A model that has been identified (`text.tower_hash`) keeps what it was saved with: before, all had the parameter.
        """
        if not self.text.is_frozen or self.text.tower_hash:
            return self
        return dataclasses.replace(self, model=dataclasses.replace(self.model, learned_null=False))

    def with_autoencoder(self, autoencoder: VideoAutoencoder) -> Self:
        """Fill in latent space and number of codes."""
        model = dataclasses.replace(self.model, vocab_size=autoencoder.vocab_size)
        return dataclasses.replace(super().with_autoencoder(autoencoder), model=model)


def make_process(recipe: TextToVideoRecipe) -> Absorbing:
    """Build the diffusion process of a recipe."""
    settings = dataclasses.asdict(recipe.diffusion)
    for name in ("text_dropout", "known_frames"):
        settings.pop(name)
    settings["schedule"] = schedules.schedule(recipe.diffusion.schedule)
    return Absorbing(vocab_size=recipe.model.vocab_size, chunk=recipe.model.loss_chunk, **settings)
