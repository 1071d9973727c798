"""Prompt adherence of a text-to-video model between two bounds: what the tokenizer preserves, and what one step reaches.

One sampling step without guidance predicts every token on its own.  What it scores, no iteration, sampler or guidance has
earned.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from motionaura_jax.data.frames import to_float
from motionaura_jax.diffusion import neighbors
from motionaura_jax.metrics.frame import psnr
from motionaura_jax.models.autoencoders.base import VideoAutoencoder
from motionaura_jax.pipelines.base import Settings
from motionaura_jax.pipelines.prompts import Prompt
from motionaura_jax.pipelines.reconstruct import reconstruct
from motionaura_jax.pipelines.text_to_video import Job, TextToVideo
from motionaura_jax.scenes.adherence import Adherence, adherence
from motionaura_jax.scenes.dataset import PRESETS, SceneOptions, held_out_prompts, make_scene
from motionaura_jax.scenes.reader import SceneReading, read_scene, score_reading
from motionaura_jax.scenes.renderer import render
from motionaura_jax.scenes.scene import Scene
from motionaura_jax.systems.text_to_video.recipe import SampleConfig

Video = UInt8[np.ndarray, "t h w 3"]
ScenePrompt = tuple[str, Scene]

BATCH_SIZE = 8  # as fast as 16 on a CPU; the demo starts with as many videos, so that both compile one program
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Generated videos next to what could refute them: one step without guidance, the tokenizer alone, bounds by level."""

    generated: Measured
    one_step: Measured
    tokenizer: Kept
    bounds: Mapping[str, list[float]]


def scene_options(pipeline: TextToVideo) -> SceneOptions:
    """Return the options of the scenes that the model was trained on."""
    return PRESETS[pipeline.recipe.data.scene_style]


def prompts_for(pipeline: TextToVideo, count: int) -> list[ScenePrompt]:
    """Return `count` prompts with their scenes; training saw none of their combinations."""
    return held_out_prompts(count, PROMPT_SEED, scene_options(pipeline))


def one_step(sample: SampleConfig) -> SampleConfig:
    """Return the settings of the baseline: a single step without guidance, all else unchanged."""
    return dataclasses.replace(sample, num_inference_steps=1, guidance_scale=1.0)


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
    options = scene_options(pipeline)
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
        pairs.append((scene, read_scene(video, world=options.world)))
        if job.number == 0 and len(shown) < keep:
            shown.append(Shown(prompt=job.prompt.text, video=video, right=score_reading(pairs[-1][1], scene)))
    return Measured(rows=adherence(pairs, options), shown=shown)


def measure_tokenizer(pipeline: TextToVideo, prompts: Sequence[ScenePrompt], *, keep: int = 8) -> Kept:
    """Render the scenes of `prompts` and reconstruct them with the tokenizer; no generated video can score higher."""
    num_frames, height, width = pipeline.size()
    options = scene_options(pipeline)
    tokenizer = jax.device_put(pipeline.autoencoder)
    pairs: list[tuple[Scene, SceneReading]] = []
    shown: list[Shown] = []
    ratios: list[float] = []
    for text, scene in prompts:
        video = render(scene, num_frames=num_frames, height=height, width=width)
        decoded = reconstruct(tokenizer, video).frames
        pairs.append((scene, read_scene(decoded, world=options.world)))
        ratios.append(psnr(video, decoded))
        if len(shown) < keep:
            both = np.concatenate([video, decoded], axis=2)
            shown.append(Shown(prompt=text, video=both, right=score_reading(pairs[-1][1], scene)))
    return Kept(rows=adherence(pairs, options), shown=shown, psnr=float(np.mean(ratios)))


def judge(
    pipeline: TextToVideo,
    prompts: Sequence[ScenePrompt],
    *,
    seeds: int = 1,
    sample: SampleConfig | None = None,
    keep: int = 16,
    fitted_on: int = 256,
) -> Verdict:
    """Measure generated videos and their baselines on the same prompts and seeds; see `measure` and `bounds`."""
    sample = sample or pipeline.recipe.sample
    return Verdict(
        generated=measure(pipeline, prompts, seeds=seeds, sample=sample, keep=keep),
        one_step=measure(pipeline, prompts, seeds=seeds, sample=one_step(sample), keep=0),
        tokenizer=measure_tokenizer(pipeline, prompts),
        bounds=bounds(pipeline, prompts, fitted_on=fitted_on),
    )


def bounds(
    pipeline: TextToVideo, prompts: Sequence[ScenePrompt], *, levels: int = 4, fitted_on: int = 256
) -> dict[str, list[float]]:
    """Return bounds of the negative log likelihood by masked share, nats per token, on the tokens of rendered scenes.

    A model that knows videos needs far less at little masking than at full masking, and beats its neighbor-copying model.

    Args:
      prompts: at least two different prompts.
      levels: equal parts of the masked share, rising.
      fitted_on: number of training scenes on which to fit the neighbor-copying model.

    Returns:
      For "true", "shuffled" and "no text" the model with these captions; for "neighbors" the copying of visible neighbors,
      which reads none.
    """
    options, fps = scene_options(pipeline), pipeline.recipe.data.rates[0]
    tokens = _tokens(pipeline, [scene for _, scene in prompts])
    texts = [text for text, _ in prompts]
    conditions = {"true": texts, "shuffled": [*texts[1:], texts[0]], "no text": [""] * len(texts)}
    rows = {name: pipeline.loss_by_level(tokens, given, fps=fps, levels=levels) for name, given in conditions.items()}
    seen = _tokens(pipeline, [make_scene(index, split="train", options=options) for index in range(fitted_on)])
    copying = neighbors.fit(seen, pipeline.autoencoder.vocab_size)
    keys = jax.random.split(jax.random.key(0), len(tokens))
    rows["neighbors"] = np.asarray(copying.loss_by_level(jnp.asarray(tokens), keys, levels=levels))
    return {name: row.mean(axis=1).tolist() for name, row in rows.items()}


def _tokens(pipeline: TextToVideo, scenes: Sequence[Scene]) -> Int32[np.ndarray, "b t h w"]:
    """Render scenes and encode them, one by one."""
    num_frames, height, width = pipeline.size()
    tokenizer = jax.device_put(pipeline.autoencoder)
    videos = (render(scene, num_frames=num_frames, height=height, width=width) for scene in scenes)
    return np.concatenate([np.asarray(_encode(tokenizer, to_float(video)[None]), np.int32) for video in videos])


@jax.jit
def _encode(tokenizer: VideoAutoencoder, video: Float[Array, "b t h w 3"]) -> Int32[Array, "b t h w"]:
    return tokenizer.encode(video).tokens  # type: ignore[return-value]
