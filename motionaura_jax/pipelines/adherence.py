"""Prompt adherence of a text-to-video model, and its upper bound: what the tokenizer preserves of a scene."""

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
PROMPT_SEED = 1  # seed 0 samples the held-out clips of the training evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """Video, and for each attribute of its prompt whether the video shows it."""

    prompt: str
    video: Video
    right: dict[str, bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Adherence by attribute, and the first video of each of the first few prompts."""

    rows: list[Adherence]
    shown: list[Shown]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept(Measured):
    """Adherence of scenes after encoding and decoding; `shown` has the scene on the left and its reconstruction on the right.

    `psnr` is the mean over frames and scenes, in dB.
    """

    psnr: float


def scene_options(pipeline: TextToVideo) -> SceneOptions:
    """Return the options of the scenes that the model was trained on."""
    return PRESETS[pipeline.recipe.data.scene_style]


def prompts_for(pipeline: TextToVideo, count: int) -> list[ScenePrompt]:
    """Return `count` prompts with their scenes; training saw none of their combinations."""
    return held_out_prompts(count, PROMPT_SEED, scene_options(pipeline))


def measure(
    pipeline: TextToVideo,
    prompts: Sequence[ScenePrompt],
    *,
    seeds: int = 1,
    sample: SampleConfig | None = None,
    keep: int = 16,
) -> Measured:
    """Generate `seeds` videos of every prompt and score them against their scenes.

    Args:
      prompts: at least two different prompts.
      sample: sampler settings; by default those of the model's recipe.
      keep: number of prompts for which to return a video.
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
    """Render the scenes of `prompts` and reconstruct them with the tokenizer; no generated video can score higher."""
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
