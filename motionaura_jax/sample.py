"""Draws videos from text with a trained model.

python -m motionaura_jax.sample --checkpoint=runs/t2v --prompt="a large red circle moves up" --output=out.mp4
"""

import argparse
import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import motionaura_jax
from motionaura_jax import assets, cli
from motionaura_jax.errors import UserError

if TYPE_CHECKING:
    from motionaura_jax.pipelines.prompts import Prompt
    from motionaura_jax.pipelines.text_to_video import Job, Settings, TextToVideo
    from motionaura_jax.systems.text_to_video.recipe import SampleConfig

logger = logging.getLogger(__name__)

SAMPLERS = ("confidence", "halton", "random", "ancestral")
SHEET_ROWS = 16
SAMPLE_FLAGS = (
    "sampler",
    "num_inference_steps",
    "guidance_scale",
    "temperature",
    "choice_temperature",
    "top_k",
    "top_p",
    "remask",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    return cli.run(lambda: _sample(args), as_json=args.json)


def _parser() -> cli.Parser:
    parser = cli.Parser("sample", "Draw videos from text.  What is not given is as in the training of the checkpoint.")
    path, whole, real = pathlib.Path, cli.at_least(int, 1), cli.at_least(float, 0.0)
    parser.add_argument(
        "--checkpoint",
        default=assets.SCENES,
        type=path,
        help="workdir, step folder or release; else our model of scenes",
    )
    parser.add_argument("--tokenizer", default="", help="its tokenizer, where that has moved")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="what to show")
    source.add_argument(
        "--prompts_file", type=path, help=".txt with a prompt per line, or .jsonl; resumes when repeated"
    )
    parser.add_argument(
        "--output", default=path("sample.mp4"), type=path, help=".mp4, .gif, .npz or .png (numbered frames)"
    )
    parser.add_argument("--negative_prompt", default="", help="what to guide away from")
    parser.add_argument("--num_videos_per_prompt", type=whole, default=1, help="videos of each prompt")
    parser.add_argument("--num_frames", type=whole, help="length")
    parser.add_argument("--height", type=whole, help="pixels")
    parser.add_argument("--width", type=whole, help="pixels")
    parser.add_argument("--fps", type=cli.at_least(float, 1e-3), help="frames a second")
    parser.add_argument("--window_frames", type=whole, help="frames drawn at once; longer videos are continued")
    parser.add_argument("--num_inference_steps", type=whole, help="steps of the sampler")
    parser.add_argument("--guidance_scale", type=cli.at_least(float, 1.0), help="1 is no guidance")
    parser.add_argument("--sampler", choices=SAMPLERS, help="order in which tokens are revealed")
    parser.add_argument("--temperature", type=real, help="of the drawn tokens; 0 takes the most likely one")
    parser.add_argument("--choice_temperature", type=real, help="of the choice of positions")
    parser.add_argument("--top_k", type=whole, help="draw among this many most likely tokens")
    parser.add_argument("--top_p", type=cli.at_least(float, 1e-6), help="draw among tokens of this total probability")
    parser.add_argument("--remask", type=cli.at_least(int, 0), help="late steps that may revise revealed tokens")
    parser.add_argument("--seed", type=cli.at_least(int, 0), default=0, help="the same seed gives the same videos")
    parser.add_argument("--batch_size", type=whole, help="videos drawn together; changes no video")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    return parser


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One video to be drawn, the file it goes to, and the settings that its sidecar will record."""

    job: "Job"
    path: pathlib.Path
    record: dict[str, Any]

    @property
    def sidecar(self) -> pathlib.Path:
        """The JSON file beside the video, written after it."""
        return self.path.with_suffix(".json")


def _sample(args: argparse.Namespace) -> dict[str, Any]:
    from motionaura_jax.data import media
    from motionaura_jax.pipelines.prompts import Prompt, read_prompts

    media.check_suffix(args.output)
    prompts = read_prompts(args.prompts_file) if args.prompts_file else [Prompt(text=args.prompt)]
    prompts = [dataclasses.replace(p, negative=p.negative or args.negative_prompt) for p in prompts]
    if not args.prompts_file and not args.overwrite:
        for path in _paths(args, prompts[0]):
            media.check_output(path, overwrite=False)

    from motionaura_jax.pipelines.text_to_video import TextToVideo

    pipeline = TextToVideo(args.checkpoint, args.tokenizer)
    settings = _settings(pipeline, args, len(prompts))
    pipeline.check(prompts, settings.sample)
    targets = _targets(pipeline, args, prompts, settings)
    left = [target for target in targets if args.overwrite or not _is_done(target)]
    started = time.perf_counter()
    sheet = _draw(pipeline, left, settings, args.output)
    return {
        "outputs": [str(target.path) for target in targets],
        "sheet": sheet,
        "drawn": len(left),
        "kept": len(targets) - len(left),
        "seconds": time.perf_counter() - started,
        "checkpoint_step": pipeline.step,
    }


def _settings(pipeline: "TextToVideo", args: argparse.Namespace, prompts: int) -> "Settings":
    """Flags over the defaults of the checkpoint; all that can be refused is refused here."""
    from motionaura_jax.pipelines.text_to_video import Settings

    given = {name: getattr(args, name) for name in SAMPLE_FLAGS if getattr(args, name) is not None}
    sample: SampleConfig = dataclasses.replace(pipeline.recipe.sample, **given)
    size = pipeline.size(args.num_frames, args.height, args.width)
    return Settings(
        size=size,
        fps=args.fps or pipeline.recipe.data.fps,
        seed=args.seed,
        sample=sample,
        window=pipeline.window(args.window_frames, size[0]),
        batch_size=args.batch_size or min(8, prompts * args.num_videos_per_prompt),
    )


def _paths(args: argparse.Namespace, prompt: "Prompt") -> list[pathlib.Path]:
    """OUT.mp4; OUT_0003.mp4 for line 3 of a prompts file; with several videos of a prompt OUT_00.mp4, OUT_01.mp4, ..."""
    line = f"_{prompt.position + 1:04d}" if args.prompts_file else ""
    several = args.num_videos_per_prompt > 1
    numbers = [f"_{number:02d}" if several else "" for number in range(args.num_videos_per_prompt)]
    return [args.output.with_stem(f"{args.output.stem}{line}{number}") for number in numbers]


def _targets(
    pipeline: "TextToVideo", args: argparse.Namespace, prompts: Sequence["Prompt"], settings: "Settings"
) -> list[Target]:
    import jax

    from motionaura_jax.pipelines.text_to_video import Job

    common = {
        "seed": settings.seed,
        "fps": settings.fps,
        **dict(zip(("num_frames", "height", "width"), settings.size, strict=True)),
        "window_frames": settings.window,
        **{name: getattr(settings.sample, name) for name in SAMPLE_FLAGS},
        "checkpoint": str(args.checkpoint),
        "checkpoint_step": pipeline.step,
        "checkpoint_hash": pipeline.digest,
        "latent_space": pipeline.tokenizer.latent_space,
        "versions": {"motionaura_jax": motionaura_jax.__version__, "jax": jax.__version__},
    }
    targets = []
    for prompt in prompts:
        for number, path in enumerate(_paths(args, prompt)):
            index = prompt.position * args.num_videos_per_prompt + number
            record = {"prompt": prompt.text, "negative_prompt": prompt.negative, "sample_index": index, **common}
            targets.append(Target(job=Job(prompt=prompt, index=index), path=path, record=record))
    return targets


def _is_done(target: Target) -> bool:
    """Whether an earlier call wrote this very video.

    Raises:
      UserError: the file is there, but comes from elsewhere or was drawn with other settings.
    """
    from motionaura_jax.data import media

    try:
        found = json.loads(target.sidecar.read_text("utf-8"))
    except (OSError, ValueError):
        found = None
    try:
        media.check_output(target.path, overwrite=False)
    except UserError:
        if found == target.record:
            return True
        if found is None:
            raise
        raise UserError(
            f"{target.path}: was drawn with other settings; choose another --output or add --overwrite"
        ) from None
    return False


def _draw(
    pipeline: "TextToVideo", targets: Sequence[Target], settings: "Settings", output: pathlib.Path
) -> pathlib.Path | None:
    """Draws and writes the videos; returns the contact sheet of the first ones."""
    from motionaura_jax.data import media

    rows: list[tuple[str, Any]] = []
    videos = pipeline.draw([target.job for target in targets], settings)
    for target, video in zip(targets, _with_progress(videos, len(targets)), strict=True):
        media.write_video(target.path, video, settings.fps)
        media.write_json(target.sidecar, target.record)
        if len(rows) < SHEET_ROWS:
            rows.append((target.job.prompt.text, video))
    if not rows:
        return None
    return media.contact_sheet(rows, output.with_name(f"{output.stem}_sheet.png"))


def _with_progress(videos: Iterator[Any], total: int) -> Iterator[Any]:
    from rich.progress import track

    console = cli.console()
    return iter(track(videos, "sampling", total=total, console=console, disable=not console.is_terminal))


if __name__ == "__main__":
    raise SystemExit(main())
