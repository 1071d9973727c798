"""The part of a recipe that every diffusion system has."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Checked, Natural, OneOrMore, Place, Share, Steps, between
from motionaura_jax.core.recipe import Recipe
from motionaura_jax.diffusion.sampling import Guidance, Scalar
from motionaura_jax.models.autoencoders.base import VideoAutoencoder


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Checked):
    """Settings of sampling, in evaluations and by default in commands.  Systems add those of their samplers.

    Attributes:
      guidance_scale: 1 + w as in diffusers; 1 is no guidance.
      guidance_ramp: "linear" raises w from 0 at the first step to its whole at the last one; "constant" does not.
      guidance_start, guidance_end: progress from 0 (first step) to 1 (last step), both included, between which guidance
        applies; the other steps cost half.
      levels: rising noise levels at which the held-out loss is reported.
    """

    num_inference_steps: Steps = 32
    guidance_scale: OneOrMore = 4.0
    guidance_ramp: Literal["linear", "constant"] = "linear"
    guidance_start: Share = 0.0
    guidance_end: Share = 1.0
    levels: Annotated[int, between(1, 1024)] = 4

    NOT_SAMPLING: ClassVar[tuple[str, ...]] = ("levels",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance_start > self.guidance_end:
            raise UserError(
                f"SampleConfig.guidance_start={self.guidance_start}: must not exceed guidance_end={self.guidance_end}"
            )

    @property
    def sampling(self) -> dict[str, Any]:
        """Return the settings that decide a sample, without those of evaluations."""
        return {name: value for name, value in vars(self).items() if name not in self.NOT_SAMPLING}

    @property
    def guidance(self) -> Guidance | None:
        """Return the guidance; None computes the conditional branch alone."""
        return None if self.guidance_scale == 1 else self.guided(self.guidance_scale)

    def guided(self, scale: Scalar) -> Guidance:
        """Return guidance with another `guidance_scale`, which may be traced."""
        return Guidance(scale=scale - 1, ramp=self.guidance_ramp, start=self.guidance_start, end=self.guidance_end)


@dataclass(frozen=True, kw_only=True)
class DiffusionRecipe(Recipe):
    """A training run of a diffusion system.

    A subclass adds the place of the autoencoder under the key that `autoencoder_role` names: workdir, step folder or release
    folder of a trained one.  With `init_from` it is by default that of the model there.

    Attributes:
      autoencoder_role: role of the autoencoder: its key in the config, and its name among the frozen parts.
      latent_space: hash of the autoencoder; the system fills it in, and from then on refuses another one.
      latent_cache: folder that `motionaura encode --checkpoint` wrote with that autoencoder; training reads latents there
        and decodes no video.
      token_cache: clips whose latents are kept in host memory, so that each is encoded once.  For short clips that come
        back whole; 0 encodes within the step.
    """

    meaning: ClassVar[Mapping[str, str]] = {
        "latent_space": "leave it empty, and name the autoencoder that it was trained with",
    }
    autoencoder_role: ClassVar[str] = "autoencoder"

    places = (*Recipe.places, "latent_cache")

    latent_space: str = ""
    latent_cache: Place = ""
    token_cache: Natural = 0
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.autoencoder_place or self.init_from):
            raise UserError(f"config.{self.autoencoder_role}: name the workdir of a trained {self.autoencoder_role}")
        if self.latent_cache and len(rates := self.data.frame_rates) > 1:
            raise UserError(
                f"config.data.frame_rates={','.join(f'{rate:g}' for rate in rates)}: config.latent_cache holds clips of one "
                f"rate; set --config.data.frame_rates to it"
            )
        sizes: dict[tuple[int, int, int], int] = {}
        for bucket in self.data.all_buckets():
            # The times of a step are spread over its batch, and only the shape of the clips tells how large that is.
            shape = (bucket.num_frames, bucket.height, bucket.width)
            if sizes.setdefault(shape, bucket.batch_size) != bucket.batch_size:
                raise UserError(
                    f"config.data.buckets: those of {'x'.join(map(str, shape))} need one batch_size, not "
                    f"{sizes[shape]} and {bucket.batch_size}; say with the weight how often each comes"
                )

    @property
    def autoencoder_place(self) -> str:
        """Return where the trained autoencoder is."""
        return getattr(self, self.autoencoder_role)

    @property
    def is_complete(self) -> bool:
        """Tell whether nothing is left for `completed` to fill in."""
        return bool(self.latent_space and self.autoencoder_place)

    def completed(self, origin: Self) -> Self:
        """Fill unset fields from the run `origin`: the autoencoder and its latent space."""
        found: dict[str, Any] = {self.autoencoder_role: self.autoencoder_place or origin.autoencoder_place}
        return dataclasses.replace(self, latent_space=self.latent_space or origin.latent_space, **found)

    def with_autoencoder(self, autoencoder: VideoAutoencoder) -> Self:
        """Fill in what the opened autoencoder decides; systems add their own."""
        return dataclasses.replace(self, latent_space=autoencoder.latent_space)
