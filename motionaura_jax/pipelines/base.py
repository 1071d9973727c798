"""Base of the pipelines over diffusion systems: loading, valid sizes, batches of one compiled size, random keys."""

import abc
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, Num, UInt8, UInt32

from motionaura_jax.core import memory
from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.core.types import PyTree
from motionaura_jax.models.autoencoders.base import VideoAutoencoder
from motionaura_jax.models.autoencoders.geometry import Size
from motionaura_jax.parallel import rules
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import batch_shards, make_mesh
from motionaura_jax.pipelines.decoding import decode_video
from motionaura_jax.systems.diffusion import DiffusionSystem
from motionaura_jax.weights import hub, steps
from motionaura_jax.weights.checksum import digest
from motionaura_jax.weights.load import Loaded

BATCH = 8  # videos that a device usually generates together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one call that generates videos.

    Attributes:
      size: frames, height and width; from `Pipeline.size`.
      fps: frame rate on which the model is conditioned.
      seed: determines the randomness of a job together with its position; see `Pipeline.keys`.
      sample: sampler, steps, guidance; a `SampleConfig` of the system.
      window: frames generated at once; longer videos are continued window by window.
      batch_size: videos generated together, at least one on each device that shares them. The last batch is padded, so
        that one program serves all batches.
    """

    size: Size
    fps: float
    seed: int
    sample: Any
    window: int
    batch_size: int


class Pipeline(abc.ABC):
    """Trained diffusion system with its parts, ready to generate videos.

    Attributes:
      recipe: the recipe that the model was trained with.
      step: training step of the checkpoint.
      autoencoder: decodes what the system generates.
      digest: hash of the weights, 16 hex digits.
    """

    System: ClassVar[type[DiffusionSystem]]

    def __init__(
        self,
        checkpoint: str | Path,
        loaded: Loaded,
        recipe: Any,
        *,
        autoencoder: str = "",
        mesh: MeshConfig = MeshConfig(),  # noqa: B008
    ):
        """Take the weights of a checkpoint and open its other parts.

        Args:
          checkpoint: location of `loaded` as the caller gave it, for messages.
          recipe: recipe of `loaded`, with the new paths of parts that have moved.
          autoencoder: path of the autoencoder, if it has moved since training.
          mesh: split of the work over the devices of this process; by default each device generates its own videos.

        Raises:
          UserError: a part is missing or is not the one from training, or the mesh does not fit.
        """
        self._mesh = make_mesh(mesh, jax.local_devices())
        self._system = self.System(recipe)
        self.recipe, self.step = self._system.recipe, loaded.step
        role = self.recipe.autoencoder_role
        place = hub.checkpoint_folder(autoencoder or self.recipe.autoencoder_place)
        if not steps.exists(place):
            raise UserError(f"{place}: the {role} of {checkpoint} is missing; give its folder with --{role}")
        self.autoencoder: VideoAutoencoder = self.System.open_autoencoder(place, self.recipe.latent_space)
        self.digest = digest(loaded.params)
        self._loaded: PyTree = loaded.params
        self._sample = jax.jit(self._system.sample, static_argnames="steps")

    @abc.abstractmethod
    def latents(self, jobs: Sequence[Any], settings: Settings) -> Num[np.ndarray, "b t h w *c"]:
        """Generate the latents of one batch of jobs."""

    def generate(self, jobs: Sequence[Any], settings: Settings) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        """Yield the videos of `jobs` in order; the result does not depend on which jobs share a batch."""
        shards = batch_shards(self._mesh)
        size = -(-settings.batch_size // shards) * shards
        for start in range(0, len(jobs), size):
            part = list(jobs[start : start + size])
            latents = self.latents([*part, *part[-1:] * (size - len(part))], settings)[: len(part)]
            yield from decode_video(self._decoder, self._system.latent(latents, settings.size), mesh=self._mesh)

    def check_memory(self, settings: Settings) -> None:
        """Refuse sizes that cannot fit into the memory of this machine or of a device.

        The figures count only what every run holds at once: a decoded video, the latents, and `step_bytes`.

        Raises:
          UserError: names the flag that is furthest from the training clips, and its largest value that fits.
        """
        bucket = self.recipe.data.all_buckets()[0]
        usual = {"num_frames": bucket.num_frames, "height": bucket.height, "width": bucket.width, "batch_size": BATCH}
        given = {**dict(zip(usual, settings.size, strict=False)), "batch_size": settings.batch_size}
        name = max(given, key=lambda key: given[key] / usual[key])

        def changed(value: int) -> Settings:
            """Return the settings with another value of the flag."""
            new = {**given, name: value}
            size = (new["num_frames"], new["height"], new["width"])
            window = min(settings.window, size[0])
            return dataclasses.replace(settings, size=size, window=window, batch_size=new["batch_size"])

        def valid(value: int) -> int:
            """Round down to a value that the autoencoder can make."""
            first, stride = (1, 1) if name == "batch_size" else self._steps(name)
            return first + (value - first) // stride * stride if value >= first else 0

        device = jax.local_devices()[0]
        own = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
        flag = f"--{name}"
        if own is not None:
            on_device = lambda value: self.step_bytes(changed(value)) // self._mesh.size  # noqa: E731
            memory.require(flag, given[name], on_device, limit=own, valid=valid)
        on_host = lambda value: self._host_bytes(changed(value), own is None)  # noqa: E731
        memory.require(flag, given[name], on_host, valid=valid)

    def step_bytes(self, settings: Settings) -> int:
        """Return the bytes that one step of sampling holds at least, over all devices; systems refine it."""
        return 0

    def _host_bytes(self, settings: Settings, with_step: bool) -> int:
        cells = math.prod(self.autoencoder.geometry.latent_shape(*settings.size))
        video = math.prod(settings.size) * 3 * (np.float32().nbytes + np.uint8().nbytes)
        latents = cells * settings.batch_size * np.int32().nbytes
        return video + latents + (self.step_bytes(settings) if with_step else 0)

    def size(self, num_frames: int | None = None, height: int | None = None, width: int | None = None) -> Size:
        """Check a size; None takes that of the first training bucket.

        Raises:
          UserError: the autoencoder cannot make this size; names the nearest possible values.
        """
        return self._length("num_frames", num_frames), self._length("height", height), self._length("width", width)

    def settings(
        self,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        seed: int = 0,
        window_frames: int | None = None,
        batch_size: int = 1,
        **sampling: Any,
    ) -> Settings:
        """Return settings of a call; None stands for the value in training.

        Args:
          sampling: keys of `recipe.sample`, such as `num_inference_steps` and `guidance_scale`.

        Raises:
          UserError: an unknown key, or a value that is invalid or that this model cannot make.
        """
        known = self.recipe.sample.sampling
        for name in sampling:
            if name not in known:
                raise UserError(f"{name}: no such setting of sampling{nearest(name, known)}")
        size = self.size(num_frames, height, width)
        return Settings(
            size=size,
            fps=fps or self.recipe.data.rates[0],
            seed=seed,
            sample=dataclasses.replace(
                self.recipe.sample, **{name: value for name, value in sampling.items() if value is not None}
            ),
            window=self.window(window_frames, size[0]),
            batch_size=batch_size,
        )

    def window(self, frames: int | None, num_frames: int) -> int:
        """Return the frames generated at once: `frames`, else at most the longest clips that the model was trained on.

        Raises:
          UserError: see `size`.
        """
        longest = max(bucket.num_frames for bucket in self.recipe.data.all_buckets())
        return min(num_frames, self._length("num_frames", frames or longest, "window_frames"))

    def keys(self, seed: int, places: UInt32[np.ndarray, "b n"], window: int = 0) -> Key[Array, " b"]:
        """Return one key per video, from the seed, the numbers that identify its job, and the window."""

        def one(place: Array) -> Array:
            return functools.reduce(jax.random.fold_in, [*place, window], jax.random.key(seed))

        return jax.vmap(one)(jnp.asarray(places))

    @functools.cached_property
    def _params(self) -> PyTree:
        # The first device work happens here, after every invalid argument has been refused.
        with jax.set_mesh(self._mesh):
            loaded = jax.device_put(self._loaded, rules.shardings(self._loaded, self._mesh))
            params = jax.jit(self._system.for_inference)(loaded)
        self._loaded = None  # two copies would take twice the memory
        return params

    @functools.cached_property
    def _decoder(self) -> VideoAutoencoder:
        return jax.device_put(self.autoencoder, rules.shardings(self.autoencoder, self._mesh))

    def _length(self, name: str, given: int | None, flag: str = "") -> int:
        """Check the number of frames, the height or the width (`name`), which `flag` sets; see `size`."""
        trained = [getattr(bucket, name) for bucket in self.recipe.data.all_buckets()]
        value = trained[0] if given is None else given
        first, stride = self._steps(name)
        if value not in trained and (value < first or (value - first) % stride):
            below = first + max(0, value - first) // stride * stride
            near = [below] if value < first else [below, below + stride]
            raise UserError(
                f"--{flag or name}={value}: this model makes {first}, {first + stride}, {first + 2 * stride}, ...; "
                f"the nearest is {' or '.join(map(str, near))}"
            )
        return value

    def _steps(self, name: str) -> tuple[int, int]:
        """Return the smallest number of frames, rows or columns, and the distance to the next one."""
        geometry = self.autoencoder.geometry
        stride = dict(zip(("num_frames", "height", "width"), geometry.strides, strict=True))[name]
        return 1 if geometry.causal and name == "num_frames" else stride, stride


def window_starts(total: int, length: int) -> list[int]:
    """Return the first latent frame of each window: steps of half a window, the last one flush with the end."""
    step = max(1, length - length // 2)
    return [*range(0, max(0, total - length), step), max(0, total - length)]
