"""Text-to-video pipeline: prompts pass through text encoder, denoiser and tokenizer."""

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, UInt8

from motionaura_jax import assets
from motionaura_jax.conditioning.text import warn_of_words
from motionaura_jax.core.errors import UserError
from motionaura_jax.diffusion.likelihood import nelbo
from motionaura_jax.exporters import adapter
from motionaura_jax.ops.cross_entropy import cross_entropy
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.pipelines.base import BATCH, Pipeline, Settings, window_starts
from motionaura_jax.pipelines.prompts import Prompt
from motionaura_jax.systems.loading import load
from motionaura_jax.systems.text_to_video.recipe import SampleConfig
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem, warn_of_settings

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video. `number` (0, 1, ...) distinguishes videos of one prompt; with the prompt's position it seeds the video."""

    prompt: Prompt
    number: int = 0


class TextToVideo(Pipeline):
    """Trained text-to-video model with its tokenizer; see `Pipeline`.

    A video depends on `fold_in(fold_in(seed, prompt.position), number)`. Long videos are continued window by window; half
    of each window is already known.
    """

    System = TextToVideoSystem
    _system: TextToVideoSystem

    def __init__(
        self,
        checkpoint: str | Path = assets.SCENES,
        tokenizer: str = "",
        mesh: MeshConfig = MeshConfig(),  # noqa: B008
        text_encoder: str = "",
        lora: str | Path = "",
    ):
        """Open a checkpoint.

        Args:
          checkpoint: workdir, step folder or release folder; by default the included model of rendered scenes.
          tokenizer, text_encoder: paths of these parts, if they have moved since training.
          mesh: see `Pipeline`.
          lora: folder of an adapter to apply to the model.

        Raises:
          UserError: the checkpoint, tokenizer, text encoder or adapter is missing or does not belong to this model, or the
            mesh does not fit.
        """
        loaded = load(checkpoint, "text_to_video")
        loaded = adapter.applied(loaded, Path(lora)) if lora else loaded
        recipe: Any = loaded.recipe
        recipe = recipe.with_text_encoder(text_encoder) if text_encoder else recipe
        super().__init__(checkpoint, loaded, recipe, autoencoder=tokenizer, mesh=mesh)

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str = "",
        *,
        num_videos_per_prompt: int = 1,
        **settings: Any,
    ) -> UInt8[np.ndarray, "b t h w 3"]:
        """Generate videos; all arguments are those of `motionaura sample` and give the same videos.

        Args:
          prompt: one text or several; the place in the sequence seeds its videos, as a line of a prompts file does.
          settings: see `Pipeline.settings`.

        Raises:
          UserError: no prompt, or a setting that is invalid or that this model cannot make.
        """
        texts = [prompt] if isinstance(prompt, str) else prompt
        prompts = [Prompt(text=text, negative=negative_prompt, position=place) for place, text in enumerate(texts)]
        jobs = [Job(prompt=one, number=number) for one in prompts for number in range(num_videos_per_prompt)]
        if not jobs:
            raise UserError("nothing to generate; give at least one prompt and num_videos_per_prompt=1")
        chosen = self.settings(**{"batch_size": min(BATCH, len(jobs)), **settings})
        self.check_memory(chosen)
        self.check(prompts, chosen.sample, chosen.fps)
        return np.stack(list(self.generate(jobs, chosen)))

    def check(self, prompts: Sequence[Prompt], sample: SampleConfig, fps: float | None = None) -> None:
        """Warn about prompts and settings that will not have the intended effect."""
        warn_of_words(self._system.text.words, (part for one in prompts for part in (one.text, one.negative)))
        warn_of_settings(self.recipe, sample)
        if fps is not None and fps not in self.recipe.data.rates:
            known = ", ".join(f"{rate:g}" for rate in sorted(set(self.recipe.data.rates)))
            logger.warning("this model was trained at %s fps; motion at %g fps may be wrong", known, fps)
        if sample.guidance is None and any(prompt.negative for prompt in prompts):
            logger.warning("a negative prompt has no effect without guidance; raise --guidance_scale above 1")

    def step_bytes(self, settings: Settings) -> int:
        """Return the size of the logits of one step, with and without guidance."""
        cells = math.prod(self.autoencoder.geometry.latent_shape(settings.window, *settings.size[1:]))
        branches = 1 if settings.sample.guidance is None else 2
        return settings.batch_size * branches * cells * self.recipe.model.vocab_size * np.float32().nbytes

    def latents(self, jobs: Sequence[Job], settings: Settings) -> Int32[np.ndarray, "b t h w"]:
        """Generate tokens window by window; each window starts with known tokens of the previous one."""
        geometry, process, sample = self.autoencoder.geometry, self._system.process, settings.sample
        grid = geometry.latent_shape(*settings.size)
        length = geometry.latent_shape(settings.window, *settings.size[1:])[0]
        self._system.denoiser.check_mesh(self._mesh.shape, (length, *grid[1:]))
        tokens = np.full((len(jobs), *grid), process.mask_id, np.int32)
        text, fps = self._system.text, np.full(len(jobs), settings.fps, np.float32)
        raw = {"text": text.prompts(job.prompt.text for job in jobs), "fps": fps}
        negative = {"text": text.prompts(job.prompt.negative for job in jobs), "fps": fps}
        places = np.array([(job.prompt.position, job.number) for job in jobs], np.uint32)
        for number, start in enumerate(window_starts(grid[0], length)):
            with jax.set_mesh(self._mesh):
                sampled = self._sample(
                    self._params,
                    raw,
                    negative,
                    self.keys(settings.seed, places, number),
                    tokens[:, start : start + length],
                    self._system.make_sampler(sample),
                    sample.guidance,
                    steps=sample.num_inference_steps,
                )
            tokens[:, start : start + length] = np.asarray(sampled.x)
        return tokens

    def loss_by_level(
        self, tokens: Int32[np.ndarray, "b t h w"], texts: Sequence[str], *, fps: float, levels: int = 4, seed: int = 0
    ) -> Float32[np.ndarray, "levels b"]:
        """Return the bound of the negative log likelihood by masked share, in nats per token; see `likelihood.nelbo`.

        Args:
          tokens: of clips of a size that the model generates.
          texts: one per clip; "" measures without text.
          seed: gives the masks, which depend on the position of a clip.
        """
        raw = {"text": self._system.text.prompts(texts), "fps": np.full(len(texts), fps, np.float32)}
        places = np.arange(len(tokens), dtype=np.uint32)[:, None]
        with jax.set_mesh(self._mesh):
            return np.asarray(
                self._loss_by_level(self._params, raw, tokens, self.keys(seed, places), levels=levels), np.float32
            )

    @functools.cached_property
    def _loss_by_level(self) -> Any:
        def measure(params: Any, raw: Any, x0: Array, keys: Array, *, levels: int) -> Array:
            denoise = self._system.denoise(params, raw, raw, None)
            return nelbo(
                lambda x_t, m: cross_entropy(denoise(x_t, m, jnp.zeros(())), x0),
                x0,
                keys,
                mask_id=self._system.process.mask_id,
                levels=levels,
            )

        return jax.jit(measure, static_argnames="levels")
