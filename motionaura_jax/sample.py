"""Draws videos from text with a trained model.

python -m motionaura_jax.sample --checkpoint=runs/t2v --prompt="a large red circle moves up" --output=out.mp4
"""

import argparse
import dataclasses
import json
import logging
import pathlib
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import motionaura_jax
from motionaura_jax import assets
from motionaura_jax.core import cli
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import Count, KeySeed, Natural, NonNegative, OneOrMore, Positive, PositiveShare

if TYPE_CHECKING:
    from motionaura_jax.pipelines.base import Settings
    from motionaura_jax.pipelines.prompts import Prompt
    from motionaura_jax.pipelines.text_to_video import Job, TextToVideo
    from motionaura_jax.systems.text_to_video.recipe import SampleConfig

logger = logging.getLogger(__name__)

SAMPLERS = ("confidence", "halton", "random", "ancestral")
SHEET_ROWS = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = _parser().parse_args(argv)
    return cli.run(lambda: _sample(args), as_json=args.json)


def _parser() -> cli.Parser:
    parser = cli.Parser("sample", "Draw videos from text.  What is not given is as in the training of the checkpoint.")
    path, whole, real = pathlib.Path, cli.number(Count), cli.number(NonNegative)
    parser.add_argument(
        "--checkpoint",
        default=str(assets.SCENES),
        help="workdir, step folder or release; else our model of scenes",
    )
    parser.add_argument("--tokenizer", default="", help="its tokenizer, where that has moved")
    parser.add_argument("--text_encoder", default="", help="its published text encoder, where that has moved")
    parser.add_argument("--lora", default="", help="folder of an adapter to put on the model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="what to show")
    source.add_argument(
        "--prompts_file", type=path, help=".txt with a prompt per line, or .jsonl; draws what is missing when repeated"
    )
    parser.add_argument(
        "--output", default=path("sample.mp4"), type=path, help=".mp4, .gif, .npz or .png (numbered frames)"
    )
    parser.add_argument("--negative_prompt", default="", help="what to guide away from")
    parser.add_argument("--num_videos_per_prompt", type=whole, default=1, help="videos of each prompt")
    parser.add_argument("--num_frames", type=whole, help="length")
    parser.add_argument("--height", type=whole, help="pixels")
    parser.add_argument("--width", type=whole, help="pixels")
    parser.add_argument("--fps", type=cli.number(Positive), help="frames a second")
    parser.add_argument("--window_frames", type=whole, help="frames drawn at once; longer videos are continued")
    parser.add_argument("--num_inference_steps", type=whole, help="steps of the sampler")
    parser.add_argument("--guidance_scale", type=cli.number(OneOrMore), help="1 is no guidance")
    parser.add_argument("--guidance_ramp", choices=("linear", "constant"), help="from 0 up to the scale, or all along")
    parser.add_argument("--sampler", choices=SAMPLERS, help="order in which tokens are revealed")
    parser.add_argument("--temperature", type=real, help="of the drawn tokens; 0 takes the most likely one")
    parser.add_argument("--choice_temperature", type=real, help="of the choice of positions")
    parser.add_argument("--top_k", type=whole, help="draw among this many most likely tokens")
    parser.add_argument("--top_p", type=cli.number(PositiveShare), help="draw among tokens of this probability")
    parser.add_argument("--remask", type=cli.number(Natural), help="late steps that may revise revealed tokens")
    parser.add_argument("--seed", type=cli.number(KeySeed), default=0, help="the same one, the same videos")
    parser.add_argument("--batch_size", type=whole, help="videos drawn together; changes no video")
    parser.add_argument("--mesh", default="", help="how devices share the work, e.g. data:2,sequence:4; else by video")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    return parser


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One video to be drawn, the `--output` it goes to, and the settings that its sidecar will record.

    The sidecar is written first.  A file without one is thus never ours, and a video that is missing beside its sidecar is
    one at which a call was stopped.
    """

    job: "Job"
    path: pathlib.Path
    record: dict[str, Any]

    @property
    def sidecar(self) -> pathlib.Path:
        """The JSON file beside the video."""
        return self.path.with_suffix(".json")

    @property
    def files(self) -> list[pathlib.Path]:
        """The files of the video."""
        return self._files(self.record)

    @property
    def recorded_files(self) -> list[pathlib.Path]:
        """The files of the video that the sidecar tells of, which may be longer."""
        return self._files(self.recorded) if self.recorded else []

    def _files(self, record: Mapping[str, Any]) -> list[pathlib.Path]:
        from motionaura_jax.data import media

        return media.output_files(self.path, record["num_frames"])

    @property
    def recorded(self) -> dict[str, Any] | None:
        """What the sidecar says, if there is one that this command wrote."""
        try:
            found = json.loads(self.sidecar.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and {"checkpoint_hash", "num_frames"} <= found.keys() else None

    @property
    def is_ours(self) -> bool:
        """Whether the sidecar is that of this very video, from the same weights wherever they lie now."""
        places = {"checkpoint": "", "lora": ""}
        return {**(self.recorded or {}), **places} == {**self.record, **places}


def _sample(args: argparse.Namespace) -> dict[str, Any]:
    from motionaura_jax.data import media
    from motionaura_jax.pipelines.prompts import Prompt, read_prompts

    media.check_suffix(args.output)
    sheet = args.output.with_name(f"{args.output.stem}_sheet.png")
    prompts = read_prompts(args.prompts_file) if args.prompts_file else [Prompt(text=args.prompt)]
    prompts = [dataclasses.replace(p, negative=p.negative or args.negative_prompt) for p in prompts]

    from motionaura_jax.parallel.config import parse
    from motionaura_jax.pipelines.text_to_video import TextToVideo

    pipeline = TextToVideo(args.checkpoint, args.tokenizer, parse(args.mesh), args.text_encoder, args.lora)
    settings = _settings(pipeline, args, len(prompts))
    pipeline.check(prompts, settings.sample, settings.fps)
    targets = _targets(pipeline, args, prompts, settings)
    left = [target for target in targets if args.overwrite or not _is_done(target)]
    media.check_free(sheet, overwrite=args.overwrite or any(target.is_ours for target in targets))
    started = time.perf_counter()
    _draw(pipeline, targets, left, settings, sheet)
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
    from motionaura_jax.pipelines.base import Settings

    sample: SampleConfig = pipeline.recipe.sample
    given = {name: value for name, value in vars(args).items() if name in sample.sampling and value is not None}
    sample = dataclasses.replace(sample, **given)
    size = pipeline.size(args.num_frames, args.height, args.width)
    return Settings(
        size=size,
        fps=args.fps or pipeline.recipe.data.rates[0],
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
        **settings.sample.sampling,
        "checkpoint": str(args.checkpoint),
        "lora": args.lora,
        "checkpoint_step": pipeline.step,
        "checkpoint_hash": pipeline.digest,
        "latent_space": pipeline.autoencoder.latent_space,
        "versions": {"motionaura_jax": motionaura_jax.__version__, "jax": jax.__version__},
    }
    targets = []
    for prompt in prompts:
        for number, path in enumerate(_paths(args, prompt)):
            place = {"prompt_position": prompt.position, "video_number": number}
            record = {"prompt": prompt.text, "negative_prompt": prompt.negative, **place, **common}
            targets.append(Target(job=Job(prompt=prompt, number=number), path=path, record=record))
    return targets


def _is_done(target: Target) -> bool:
    """Whether an earlier call wrote this very video; one that it was stopped at is drawn again.

    Raises:
      UserError: a file is there that comes from elsewhere, or a video that was drawn with other settings.
    """
    from motionaura_jax.data import media

    if target.is_ours:
        return all(file.exists() for file in target.files)
    if target.recorded:
        raise UserError(f"{target.path}: was drawn with other settings; choose another --output or add --overwrite")
    media.check_free(*target.files, target.sidecar, overwrite=False)
    return False


def _draw(
    pipeline: "TextToVideo",
    targets: Sequence[Target],
    left: Sequence[Target],
    settings: "Settings",
    sheet: pathlib.Path,
) -> None:
    """Draws and writes the videos that are left, and the contact sheet of the first ones of all."""
    from motionaura_jax.data import media

    first, drawn = targets[:SHEET_ROWS], {}
    videos = pipeline.generate([target.job for target in left], settings)
    for target, video in zip(left, _with_progress(videos, len(left)), strict=True):
        # What --overwrite replaces must never lie beside a sidecar that is not its own.
        for file in {*target.files, *target.recorded_files}:
            file.unlink(missing_ok=True)
        media.write_json(target.sidecar, target.record)
        media.write_video(target.path, video, settings.fps)
        if target in first:
            drawn[target.path] = video
    if left or not sheet.exists():
        media.contact_sheet([(target.job.prompt.text, _shown(target, drawn)) for target in first], sheet)


def _shown(target: Target, drawn: dict[pathlib.Path, Any]) -> Any:
    """The frames of a video that was drawn now or lies there from an earlier call, without what pads an .mp4."""
    import numpy as np

    from motionaura_jax.data.video import read_video

    if target.path in drawn:
        return drawn[target.path]
    if target.path.suffix.lower() == ".npz":
        try:
            return np.load(target.path)["video"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{target.path}: is damaged ({error}); remove it and run the same command again") from error
    frames = np.concatenate([read_video(file)[0] for file in target.files])
    return frames[:, : target.record["height"], : target.record["width"]]


def _with_progress(videos: Iterator[Any], total: int) -> Iterator[Any]:
    from rich.progress import track

    console = cli.console()
    return iter(track(videos, "sampling", total=total, console=console, disable=not console.is_terminal))


if __name__ == "__main__":
    raise SystemExit(main())
