"""How well a text-to-video model obeys its prompts, and how much of a scene its tokenizer lets through at all."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import UInt8

from motionaura_jax.metrics.frame import psnr
from motionaura_jax.pipelines.base import Settings
from motionaura_jax.pipelines.prompts import Prompt
from motionaura_jax.pipelines.reconstruct import reconstruct
from motionaura_jax.pipelines.text_to_video import Job, TextToVideo
from motionaura_jax.scenes.adherence import Adherence, adherence
from motionaura_jax.scenes.dataset import PRESETS, SceneOptions, held_out_prompts
from motionaura_jax.scenes.reader import SceneReading, read_scene, score_reading
from motionaura_jax.scenes.renderer import render
from motionaura_jax.scenes.scene import Scene
from motionaura_jax.systems.text_to_video.recipe import SampleConfig

Video = UInt8[np.ndarray, "t h w 3"]
ScenePrompt = tuple[str, Scene]

BATCH_SIZE = 16
PROMPT_SEED = 1  # seed 0 draws the held-out clips on which training is evaluated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """One video, and which attributes of its prompt are right in it."""

    prompt: str
    video: Video
    right: dict[str, bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Adherence by attribute, and the first video of each of the first prompts."""

    rows: list[Adherence]
    shown: list[Shown]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept(Measured):
    """What survives encoding and decoding; `shown` has the rendered scene left and its reconstruction right.

    `psnr` in dB is the mean over frames and scenes.
    """

    psnr: float


def scene_options(pipeline: TextToVideo) -> SceneOptions:
    """What the scenes were drawn from that the model was trained on."""
    return PRESETS[pipeline.recipe.data.scene_style]


def prompts_for(pipeline: TextToVideo, count: int) -> list[ScenePrompt]:
    """Returns `count` prompts with their scenes, all of combinations that were never trained."""
    return held_out_prompts(count, PROMPT_SEED, scene_options(pipeline))


def measure(
    pipeline: TextToVideo,
    prompts: Sequence[ScenePrompt],
    *,
    seeds: int = 1,
    sample: SampleConfig | None = None,
    keep: int = 16,
) -> Measured:
    """Draws `seeds` videos of every prompt and reads back what they show.

    Args:
      prompts: at least two different ones.
      sample: how to draw; by default as in the training of the model.
      keep: number of prompts of which a video is returned.
    """
    jobs = [
        Job(prompt=Prompt(text=text, position=position), number=number)
        for position, (text, _) in enumerate(prompts)
        for number in range(seeds)
    ]
    size, sample = pipeline.size(), sample or pipeline.recipe.sample
    settings = Settings(
        size=size,
        fps=pipeline.recipe.data.rates[0],
        seed=0,
        sample=sample,
        window=pipeline.window(None, size[0]),
        batch_size=min(BATCH_SIZE, len(jobs)),
    )
    pipeline.check([job.prompt for job in jobs], sample)
    pairs: list[tuple[Scene, SceneReading]] = []
    shown: list[Shown] = []
    for job, video in zip(jobs, pipeline.generate(jobs, settings), strict=True):
        scene = prompts[job.prompt.position][1]
        pairs.append((scene, read_scene(video)))
        if job.number == 0 and len(shown) < keep:
            shown.append(Shown(prompt=job.prompt.text, video=video, right=score_reading(pairs[-1][1], scene)))
    return Measured(rows=adherence(pairs, scene_options(pipeline)), shown=shown)


def measure_tokenizer(pipeline: TextToVideo, prompts: Sequence[ScenePrompt], *, keep: int = 8) -> Kept:
    """Renders the scenes of `prompts` and sends them through the tokenizer: no drawn video can obey better than these."""
    num_frames, height, width = pipeline.size()
    tokenizer = jax.device_put(pipeline.autoencoder)
    pairs: list[tuple[Scene, SceneReading]] = []
    shown: list[Shown] = []
    ratios: list[float] = []
    for text, scene in prompts:
        video = render(scene, num_frames=num_frames, height=height, width=width)
        decoded = reconstruct(tokenizer, video).frames
        pairs.append((scene, read_scene(decoded)))
        ratios.append(psnr(video, decoded))
        if len(shown) < keep:
            both = np.concatenate([video, decoded], axis=2)
            shown.append(Shown(prompt=text, video=both, right=score_reading(pairs[-1][1], scene)))
    return Kept(rows=adherence(pairs, scene_options(pipeline)), shown=shown, psnr=float(np.mean(ratios)))
