"""The settings of a text-to-video run and what is built from them alone.  MotionAura 3.2, 3.3."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from motionaura_jax.diffusion import samplers, schedules
from motionaura_jax.diffusion.absorbing import Absorbing
from motionaura_jax.diffusion.guidance import Guidance
from motionaura_jax.errors import UserError
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig, preset
from motionaura_jax.models.encoders.config import TextEncoderConfig
from motionaura_jax.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder and its words.

    Attributes:
      vocabulary: words by falling frequency; empty means that it is counted from the captions of `data.manifest` at the
        first start.  The saved config holds the result, so that inference needs nothing else.
      max_words: words that are counted at most; rarer ones become <unk>.
      max_missing: share of clips without a caption above which training stops; below it they train the null text.
    """

    encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    vocabulary: tuple[str, ...] = ()
    max_words: int = 8192
    max_missing: float = 0.05


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The process (see `diffusion.absorbing.Absorbing`) and `text_dropout`, the share of samples without text."""

    schedule: str = "cosine"
    objective: Literal["ce_masked", "elbo"] = "ce_masked"
    min_masked: int = 1
    label_smoothing: float = 0.0
    corrupt_visible: float = 0.0
    text_dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How videos are drawn, during training and by default in `motionaura sample`.

    Attributes:
      sampler: "ancestral", or the fixed-count sampler revealing by "confidence", in "halton" or in "random" order.
      guidance_scale: 1 + w as in diffusers; 1 is no guidance.  w rises linearly along the steps.
      prompts: texts sampled at every evaluation; empty means the captions of the first held-out clips.
      schedule, temperature, choice_temperature, top_k, top_p, remask: see `diffusion.samplers.Confidence`.
      levels: rising shares of masking at which the held-out bound is reported.
    """

    sampler: Literal["confidence", "halton", "random", "ancestral"] = "confidence"
    num_inference_steps: int = 32
    guidance_scale: float = 4.0
    schedule: str = "cosine"
    temperature: float = 1.0
    choice_temperature: float = 4.5
    top_k: int | None = None
    top_p: float | None = None
    remask: int = 0
    prompts: tuple[str, ...] = ()
    levels: int = 4

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={self.num_inference_steps}: at least 1 step is needed")
        if self.guidance_scale < 1:
            raise ValueError(f"guidance_scale={self.guidance_scale:g}: at least 1, which is no guidance")
        if self.temperature < 0 or self.choice_temperature < 0:
            raise ValueError("temperature and choice_temperature must not be negative")
        if self.levels < 1:
            raise ValueError("levels must be at least 1")
        schedules.schedule(self.schedule)
        make_sampler(self, 1)

    @property
    def guidance(self) -> Guidance | None:
        """The guidance, or None where the conditional half alone is computed."""
        if self.guidance_scale == 1:
            return None
        return Guidance(scale=self.guidance_scale - 1, schedule=schedules.schedule(self.schedule))


def make_sampler(config: SampleConfig, vocab_size: int) -> samplers.Sampler:
    """Builds the sampler that the settings name."""
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "schedule": schedules.schedule(config.schedule),
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
    }
    if config.sampler == "ancestral":
        return samplers.Ancestral(**common)
    return samplers.Confidence(
        reveal=config.sampler, remask=config.remask, choice_temperature=config.choice_temperature, **common
    )


@dataclass(frozen=True, kw_only=True)
class TextToVideoRecipe(Recipe):
    """A text-to-video training run.

    Attributes:
      tokenizer: workdir, step folder or release folder of the trained tokenizer; with `init_from` that of the model there,
        unless one is named.
      latent_space: hash of that tokenizer; the system fills it in, and from then on refuses another one.
      token_cache: clips whose tokens are kept in host memory, so that each is tokenized once.  For short clips that come
        back whole; 0 tokenizes within the step.
      model: the denoiser; the tokenizer decides its `vocab_size`.
    """

    meaning: ClassVar[Mapping[str, str]] = {
        "text.vocabulary": "leave it empty to take those words",
        "latent_space": "leave it empty, and name the tokenizer that it was trained with",
    }

    tokenizer: str = ""
    latent_space: str = ""
    token_cache: int = 0
    model: SpectralTransformerConfig = field(default_factory=lambda: preset("tiny"))
    text: TextConfig = field(default_factory=TextConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.tokenizer or self.init_from):
            raise UserError("config.tokenizer: name the workdir of a trained tokenizer")
        if not (0 <= self.diffusion.text_dropout < 1 and 0 <= self.text.max_missing <= 1):
            raise UserError("config.diffusion.text_dropout and config.text.max_missing: shares between 0 and 1")
        make_process(self)


def make_process(recipe: TextToVideoRecipe) -> Absorbing:
    """Builds the diffusion process of a recipe."""
    settings = dataclasses.asdict(recipe.diffusion)
    settings.pop("text_dropout")
    settings["schedule"] = schedules.schedule(recipe.diffusion.schedule)
    return Absorbing(vocab_size=recipe.model.vocab_size, **settings)
