"""Videos from text: prompts through text encoder, denoiser and tokenizer, in batches of one compiled size."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Key, UInt8, UInt32

from motionaura_jax.core.errors import UserError
from motionaura_jax.core.types import Latent, PyTree
from motionaura_jax.exporters import adapter
from motionaura_jax.models.autoencoders.tokenizer import Tokenizer
from motionaura_jax.parallel import rules
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import batch_shards, make_mesh
from motionaura_jax.pipelines.decoding import decode_video
from motionaura_jax.pipelines.prompts import Prompt
from motionaura_jax.systems.loading import load, open_autoencoder
from motionaura_jax.systems.text_to_video import advice
from motionaura_jax.systems.text_to_video.layout import check_layout
from motionaura_jax.systems.text_to_video.recipe import SampleConfig, TextToVideoRecipe, make_sampler
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.weights import hub, steps
from motionaura_jax.weights.checksum import digest

logger = logging.getLogger(__name__)

Size = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to draw videos.

    Attributes:
      size: frames, height and width; from `TextToVideo.size`.
      fps: frame rate that the model is told.
      seed: a video draws from `fold_in(fold_in(seed, prompt.position), number)`, see `Job`.
      sample: sampler, steps, guidance.
      window: frames drawn at once; longer videos are continued window by window, half of each being known already.
      batch_size: videos drawn together, at least one on each device that shares them.  The last batch is filled up, so
        that one program serves all.
    """

    size: Size
    fps: float
    seed: int
    sample: SampleConfig
    window: int
    batch_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video: `number` (0, 1, ...) tells the videos of a prompt apart; with its position it fixes the randomness."""

    prompt: Prompt
    number: int = 0


class TextToVideo:
    """A trained text-to-video model with its tokenizer, ready to draw.

    Attributes:
      recipe: what the model was trained with.
      step: training step of the checkpoint.
      digest: hash of the weights, 16 hex digits.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        tokenizer: str = "",
        mesh: MeshConfig = MeshConfig(),  # noqa: B008
        text_encoder: str = "",
        lora: str | Path = "",
    ):
        """Opens a checkpoint.

        Args:
          checkpoint: workdir, step folder or release folder.
          tokenizer: where the tokenizer is now, if not where it was during training.
          mesh: how the devices of this process share the work; by default each draws videos of its own.
          text_encoder: where the published text encoder is now, likewise.
          lora: folder of an adapter to put on the model.

        Raises:
          UserError: no such checkpoint, a tokenizer, text encoder or adapter that is missing or another one, or a mesh
            that does not fit.
        """
        self._mesh = make_mesh(mesh, jax.local_devices())
        loaded = load(checkpoint, "text_to_video")
        loaded = adapter.applied(loaded, Path(lora)) if lora else loaded
        recipe: TextToVideoRecipe = loaded.recipe  # type: ignore[assignment]
        self._system = TextToVideoSystem(recipe.with_text_encoder(text_encoder) if text_encoder else recipe)
        self.recipe, self.step = self._system.recipe, loaded.step
        place = hub.checkpoint_folder(tokenizer or self.recipe.tokenizer)
        if not steps.exists(place):
            raise UserError(f"{place}: the tokenizer of {checkpoint} is not there; name its folder with --tokenizer")
        self.tokenizer = open_autoencoder(place, self.recipe.latent_space, tokens=True)
        self.digest = digest(loaded.params)
        self._loaded: PyTree = loaded.params
        self._sample = jax.jit(self._system.sample_tokens, static_argnames="steps")

    @functools.cached_property
    def _params(self) -> PyTree:
        # The first work of the device: by then all that can be refused has been refused.
        with jax.set_mesh(self._mesh):
            loaded = jax.device_put(self._loaded, rules.shardings(self._loaded, self._mesh))
            params = jax.jit(self._system.folded)(loaded)
        self._loaded = None  # two copies would take twice the memory
        return params

    @functools.cached_property
    def _decoder(self) -> Tokenizer:
        return jax.device_put(self.tokenizer, rules.shardings(self.tokenizer, self._mesh))

    def size(self, num_frames: int | None = None, height: int | None = None, width: int | None = None) -> Size:
        """Checks a size, or takes that of the first training bucket where it is None.

        Raises:
          UserError: a value that the tokenizer cannot make; names the nearest possible ones.
        """
        return self._length("num_frames", num_frames), self._length("height", height), self._length("width", width)

    def window(self, frames: int | None, num_frames: int) -> int:
        """Frames drawn at once: `frames`, else at most the longest clips that the model was trained on.

        Raises:
          UserError: see `size`.
        """
        longest = max(bucket.num_frames for bucket in self.recipe.data.all_buckets())
        return min(num_frames, self._length("num_frames", frames or longest, "window_frames"))

    def _length(self, name: str, given: int | None, flag: str = "") -> int:
        """Checks frames, height or width (`name`), which `flag` sets; see `size`."""
        config = self.tokenizer.config
        trained = [getattr(bucket, name) for bucket in self.recipe.data.all_buckets()]
        value = trained[0] if given is None else given
        stride = dict(zip(("num_frames", "height", "width"), config.strides, strict=True))[name]
        first = 1 if config.causal and name == "num_frames" else stride
        if value not in trained and (value < first or (value - first) % stride):
            below = first + max(0, value - first) // stride * stride
            near = [below] if value < first else [below, below + stride]
            raise UserError(
                f"--{flag or name}={value}: this model makes {first}, {first + stride}, {first + 2 * stride}, ...; "
                f"the nearest is {' or '.join(map(str, near))}"
            )
        return value

    def check(self, prompts: Sequence[Prompt], sample: SampleConfig, fps: float | None = None) -> None:
        """Warns of everything that will not act as it reads, as `systems.text_to_video.advice` lists it."""
        advice.warn_of_words(self._system.text.words, (part for one in prompts for part in (one.text, one.negative)))
        advice.warn_of_settings(self.recipe, sample)
        if fps is not None:
            advice.warn_of_rate(self.recipe, fps)
        if sample.guidance is None and any(prompt.negative for prompt in prompts):
            logger.warning("a negative prompt has no effect without guidance; raise --guidance_scale above 1")

    def draw(self, jobs: Sequence[Job], settings: Settings) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        """Yields the videos of `jobs` in their order; which jobs share a batch does not matter."""
        shards = batch_shards(self._mesh)
        size = -(-settings.batch_size // shards) * shards
        for start in range(0, len(jobs), size):
            part = list(jobs[start : start + size])
            tokens = self.tokens([*part, *part[-1:] * (size - len(part))], settings)[: len(part)]
            yield from self.decode(tokens, settings.size)

    def tokens(self, jobs: Sequence[Job], settings: Settings) -> Int32[np.ndarray, "b t h w"]:
        """Draws window after window; tokens of the window before are known to the next one."""
        config, process = self.tokenizer.config, self._system.process
        grid = config.latent_shape(*settings.size)
        length = config.latent_shape(settings.window, *settings.size[1:])[0]
        check_layout(self.recipe.model, self._mesh.shape, (length, *grid[1:]))
        tokens = np.full((len(jobs), *grid), process.mask_id, np.int32)
        sample = settings.sample
        text = self._system.text.prompts(job.prompt.text for job in jobs)
        negative = self._system.text.prompts(job.prompt.negative for job in jobs)
        fps = np.full(len(jobs), settings.fps, np.float32)
        places = np.array([(job.prompt.position, job.number) for job in jobs], np.uint32)
        for number, start in enumerate(window_starts(grid[0], length)):
            with jax.set_mesh(self._mesh):
                drawn = self._sample(
                    self._params,
                    text,
                    negative,
                    fps,
                    _keys(settings.seed, places, number),
                    tokens[:, start : start + length],
                    make_sampler(sample, process.vocab_size),
                    sample.guidance,
                    steps=sample.num_inference_steps,
                )
            tokens[:, start : start + length] = np.asarray(drawn.tokens)
        return tokens

    def decode(self, tokens: Int32[np.ndarray, "b t h w"], size: Size) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        """Decode one by one on each device, and large videos in tiles, as memory must not grow with the batch."""
        latent = Latent(tokens=tokens, size=size, latent_space=self.tokenizer.latent_space)  # type: ignore[arg-type]
        return decode_video(self._decoder, latent, mesh=self._mesh)


def window_starts(total: int, length: int) -> list[int]:
    """First latent frame of each window: steps of half a window, the last one flush with the end."""
    step = max(1, length - length // 2)
    return [*range(0, max(0, total - length), step), max(0, total - length)]


def _keys(seed: int, places: UInt32[np.ndarray, "b 2"], window: int) -> Key[Array, " b"]:
    """One key per video, from seed, position of the prompt, number of the video and window."""

    def one(place: Array) -> Array:
        return functools.reduce(jax.random.fold_in, [*place, window], jax.random.key(seed))

    return jax.vmap(one)(jnp.asarray(places))
