"""The settings of a text-to-video run and what is built from them alone.  MotionAura 3.2, 3.3."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import (
    Checked,
    Count,
    Natural,
    NonNegative,
    OneOrMore,
    PositiveShare,
    Share,
    ShareBelowOne,
)
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.diffusion import samplers, schedules
from motionaura_jax.diffusion.absorbing import Absorbing
from motionaura_jax.diffusion.guidance import Guidance
from motionaura_jax.models.denoisers.config import SpectralTransformerConfig, preset
from motionaura_jax.models.encoders.config import TextEncoderConfig


@dataclass(frozen=True, kw_only=True)
class TextConfig(Checked):
    """The text encoder and its words.

    Attributes:
      encoder: the one that trains along, where neither `tower` nor `cache` names a published one.
      tower: folder or hub id of a published T5, which stays frozen; it decides `model.text_dim`.
      cache: folder that `motionaura encode --text` wrote with it, so that training needs no encoder.
      tower_hash: what identifies its features; the system fills it in, and from then on refuses another one.
      limit: ids of a text at most, its end mark included; `model.text_len` is what they are padded to.
      vocabulary: words by falling frequency; empty means that it is counted from the captions of `data.manifest` at the
        first start.  The saved config holds the result, so that inference needs nothing else.
      max_words: words that are counted at most; rarer ones become <unk>.
      max_missing: share of clips without a caption above which training stops; below it they train the null text.
    """

    encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    vocabulary: tuple[str, ...] = ()
    tower: str = ""
    cache: str = ""
    tower_hash: str = ""
    limit: Count = 180
    max_words: Count = 8192
    max_missing: Share = 0.05

    @property
    def is_frozen(self) -> bool:
        """Whether a published encoder reads the texts."""
        return bool(self.tower or self.cache or self.tower_hash)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(Checked):
    """The process (see `diffusion.absorbing.Absorbing`) and `text_dropout`, the share of samples without text."""

    schedule: str = "cosine"
    objective: Literal["ce_masked", "elbo"] = "ce_masked"
    min_masked: Count = 1
    label_smoothing: ShareBelowOne = 0.0
    corrupt_visible: Share = 0.0
    text_dropout: ShareBelowOne = 0.1


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Checked):
    """How videos are drawn, during training and by default in `motionaura sample`.

    Attributes:
      sampler: "ancestral", or the fixed-count sampler revealing by "confidence", in "halton" or in "random" order.
      guidance_scale: 1 + w as in diffusers; 1 is no guidance.
      guidance_ramp: "linear" raises w from 0 at the first step to its whole at the last one; "constant" does not.
      prompts: texts sampled at every evaluation; empty means the captions of the first held-out clips.
      schedule, temperature, choice_temperature, top_k, top_p, remask: see `diffusion.samplers.Confidence`.
      levels: rising shares of masking at which the held-out bound is reported.
    """

    sampler: Literal["confidence", "halton", "random", "ancestral"] = "confidence"
    num_inference_steps: Count = 32
    guidance_scale: OneOrMore = 4.0
    guidance_ramp: Literal["linear", "constant"] = "linear"
    schedule: str = "cosine"
    temperature: NonNegative = 1.0
    choice_temperature: NonNegative = 4.5
    top_k: Count | None = None
    top_p: PositiveShare | None = None
    remask: Natural = 0
    prompts: tuple[str, ...] = ()
    levels: Count = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        schedules.schedule(self.schedule)
        make_sampler(self, 1)

    @property
    def drawing(self) -> dict[str, Any]:
        """The settings that decide a drawing, without those of evaluations."""
        return {name: value for name, value in vars(self).items() if name not in ("prompts", "levels")}

    @property
    def guidance(self) -> Guidance | None:
        """The guidance, or None where the conditional half alone is computed."""
        if self.guidance_scale == 1:
            return None
        return Guidance(scale=self.guidance_scale - 1, ramp=self.guidance_ramp)


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
      latent_cache: folder that `motionaura encode --checkpoint` wrote with that tokenizer; training reads the tokens there
        and decodes no video.
      token_cache: clips whose tokens are kept in host memory, so that each is tokenized once.  For short clips that come
        back whole; 0 tokenizes within the step.
      model: the denoiser; the tokenizer decides its `vocab_size`.
    """

    meaning: ClassVar[Mapping[str, str]] = {
        "text.vocabulary": "leave it empty to take those words",
        "text.tower_hash": "leave it empty, and name the encoder that it was trained with",
        "latent_space": "leave it empty, and name the tokenizer that it was trained with",
        "model.spectral": "give that value",
        "model.rope": "give that value",
        "model.lora.activation": "give that value",
        "text.encoder.max_distance": "give that value",
    }

    tokenizer: str = ""
    latent_space: str = ""
    latent_cache: str = ""
    token_cache: Natural = 0
    model: SpectralTransformerConfig = field(default_factory=lambda: preset("tiny"))
    text: TextConfig = field(default_factory=TextConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.tokenizer or self.init_from):
            raise UserError("config.tokenizer: name the workdir of a trained tokenizer")
        sizes: dict[tuple[int, int, int], int] = {}
        for bucket in self.data.all_buckets():
            # The times of a step are spread over its batch, whose size only the shape of its clips tells.
            shape = (bucket.num_frames, bucket.height, bucket.width)
            if sizes.setdefault(shape, bucket.batch_size) != bucket.batch_size:
                raise UserError(
                    f"config.data.buckets: those of {'x'.join(map(str, shape))} need one batch_size, not "
                    f"{sizes[shape]} and {bucket.batch_size}; say with the weight how often each comes"
                )
        make_process(self)

    @property
    def trained(self) -> str:
        """The adapters, where there are any."""
        return "lora_(down|up)$" if self.model.lora.rank else ""

    def check_start(self, origin: Self, where: str) -> None:
        """Refuses other weights, see `Recipe`; those without adapters take any kind of them."""
        if not origin.model.lora.rank:
            model = dataclasses.replace(origin.model, lora=self.model.lora)
            origin = dataclasses.replace(origin, model=model)
        super().check_start(origin, where)

    def with_text_encoder(self, place: str) -> Self:
        """The same, with its published text encoder in `place`, a folder or a hub id.

        Raises:
          UserError: the model has a text encoder of its own.
        """
        if not self.text.is_frozen:
            raise UserError(f"--text_encoder={place}: this model has a text encoder of its own; leave it out")
        return dataclasses.replace(self, text=dataclasses.replace(self.text, tower=place))

    def completed(self, origin: Self) -> Self:
        """Takes what is left open from the run `origin`: words or text encoder, latent space and its size, tokenizer."""
        text, model, space = self.text, self.model, self.latent_space
        if not text.vocabulary:
            text = dataclasses.replace(text, vocabulary=origin.text.vocabulary)
        if not text.tower_hash:
            text = dataclasses.replace(text, tower_hash=origin.text.tower_hash)
        if not (text.tower or text.cache):
            text = dataclasses.replace(text, tower=origin.text.tower, cache=origin.text.cache)
        if not space:
            model, space = dataclasses.replace(model, vocab_size=origin.model.vocab_size), origin.latent_space
        tokenizer = self.tokenizer or origin.tokenizer
        return dataclasses.replace(self, text=text, model=model, latent_space=space, tokenizer=tokenizer)


def make_process(recipe: TextToVideoRecipe) -> Absorbing:
    """Builds the diffusion process of a recipe."""
    settings = dataclasses.asdict(recipe.diffusion)
    settings.pop("text_dropout")
    settings["schedule"] = schedules.schedule(recipe.diffusion.schedule)
    return Absorbing(vocab_size=recipe.model.vocab_size, **settings)
