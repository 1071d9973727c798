"""Generate videos from text with a trained model.

python -m motionaura_jax.sample --checkpoint=runs/t2v --prompt="a red circle moves up" --output=out.mp4
"""

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import motionaura_jax
from motionaura_jax import assets
from motionaura_jax.core import cli
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.files import readable
from motionaura_jax.core.limits import (
    MAX_VIDEOS,
    Batch,
    Count,
    Frames,
    KeySeed,
    Natural,
    NonNegative,
    OneOrMore,
    PositiveShare,
    Rate,
    Share,
    Side,
    Steps,
    Videos,
)

if TYPE_CHECKING:
    from motionaura_jax.pipelines.base import Settings
    from motionaura_jax.pipelines.outputs import Target
    from motionaura_jax.pipelines.prompts import Prompt
    from motionaura_jax.pipelines.text_to_video import TextToVideo

_OUTPUT = ".mp4, .webp, .gif, .npz or .png (numbered frames)"
_SHEET = ".png with frames of the first videos, or .webp or .gif in which they move; by default OUTPUT_sheet.png"
SAMPLERS = ("confidence", "halton", "random", "ancestral")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    args = _parser().parse_args(argv)
    return cli.run(lambda: _sample(args), as_json=args.json)


def _parser() -> cli.Parser:
    parser = cli.Parser("sample", "Generate videos from text. Flags default to their values in training.")
    frames, side, real = cli.number(Frames), cli.number(Side), cli.number(NonNegative)
    parser.add_argument(
        "--checkpoint",
        type=cli.place,
        default=str(assets.SCENES),
        help="workdir, step folder or release; by default our model of scenes",
    )
    parser.add_argument("--tokenizer", type=cli.place, default="", help="its tokenizer, if it has moved")
    parser.add_argument(
        "--text_encoder", type=cli.place, default="", help="its published text encoder, if it has moved"
    )
    parser.add_argument("--lora", type=cli.place, default="", help="folder of an adapter to apply to the model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", type=cli.text, help="what to show")
    source.add_argument(
        "--prompts_file",
        type=cli.path,
        help=".txt with a prompt per line, or .jsonl; a repeated call generates only missing videos",
    )
    parser.add_argument("--output", default=pathlib.Path("sample.mp4"), type=cli.path, help=_OUTPUT)
    parser.add_argument("--sheet", type=cli.path, help=_SHEET)
    parser.add_argument("--negative_prompt", type=cli.text, default="", help="what to guide away from")
    parser.add_argument("--num_videos_per_prompt", type=cli.number(Videos), default=1, help="videos per prompt")
    parser.add_argument("--num_frames", type=frames, help="frames per video")
    parser.add_argument("--height", type=side, help="in pixels")
    parser.add_argument("--width", type=side, help="in pixels")
    parser.add_argument("--fps", type=cli.number(Rate), help="frames per second")
    parser.add_argument("--window_frames", type=frames, help="frames generated at once; longer videos are continued")
    parser.add_argument("--num_inference_steps", type=cli.number(Steps), help="number of sampling steps")
    parser.add_argument("--guidance_scale", type=cli.number(OneOrMore), help="strength of the guidance; 1 means none")
    parser.add_argument("--guidance_ramp", choices=("linear", "constant"), help="from 0 up to the scale, or constant")
    share = cli.number(Share)
    parser.add_argument("--guidance_start", type=share, help="progress, from 0 to 1, at which guidance begins")
    parser.add_argument("--guidance_end", type=share, help="progress, from 0 to 1, after which guidance ends")
    parser.add_argument("--sampler", choices=SAMPLERS, help="order in which tokens are revealed")
    parser.add_argument("--temperature", type=real, help="of the sampled tokens; 0 takes the most likely token")
    parser.add_argument("--choice_temperature", type=real, help="of the choice of positions to reveal")
    parser.add_argument("--top_k", type=cli.number(Count), help="sample among this many most likely tokens")
    parser.add_argument(
        "--top_p", type=cli.number(PositiveShare), help="sample among the most likely tokens of this probability"
    )
    parser.add_argument("--remask", type=cli.number(Natural), help="number of late steps that may revise tokens")
    parser.add_argument("--remask_rate", type=share, help="share of tokens that the ancestral sampler masks again")
    parser.add_argument("--remask_rule", choices=("cap", "rescale"), help="what the rate is a share of")
    parser.add_argument("--seed", type=cli.number(KeySeed), default=0, help="equal seeds give equal videos")
    parser.add_argument(
        "--batch_size", type=cli.number(Batch), help="videos generated together; does not change the videos"
    )
    parser.add_argument("--mesh", default="", help="split of the work, e.g. data:2,sequence:4; by default by video")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    return parser


def _sample(args: argparse.Namespace) -> dict[str, Any]:
    from motionaura_jax.data import media
    from motionaura_jax.pipelines.prompts import Prompt, read_prompts

    media.check_suffix(args.output)
    sheet = args.sheet or args.output.with_name(f"{args.output.stem}_sheet.png")
    media.check_suffix(sheet, media.SHEET_SUFFIXES)
    prompts = read_prompts(args.prompts_file) if args.prompts_file else [Prompt(text=args.prompt)]
    prompts = [dataclasses.replace(p, negative=p.negative or args.negative_prompt) for p in prompts]
    if len(prompts) * args.num_videos_per_prompt > MAX_VIDEOS:
        most = MAX_VIDEOS // len(prompts)
        raise UserError(
            f"--num_videos_per_prompt={args.num_videos_per_prompt}: {len(prompts)} prompts would give more than "
            f"{MAX_VIDEOS} videos; the largest value that fits is {most}" + ("" if most else "; split --prompts_file")
        )

    from motionaura_jax.parallel.config import parse
    from motionaura_jax.pipelines import outputs
    from motionaura_jax.pipelines.text_to_video import TextToVideo

    pipeline = TextToVideo(args.checkpoint, args.tokenizer, parse(args.mesh), args.text_encoder, args.lora)
    settings = _settings(pipeline, args, len(prompts))
    pipeline.check_memory(settings)
    pipeline.check(prompts, settings.sample, settings.fps)
    targets = _targets(pipeline, args, prompts, settings)
    started = time.perf_counter()
    generated = outputs.write(pipeline, targets, settings, sheet, overwrite=args.overwrite)
    return {
        "outputs": [str(target.path) for target in targets],
        "sheet": sheet,
        "drawn": len(generated),
        "kept": len(targets) - len(generated),
        "seconds": time.perf_counter() - started,
        "checkpoint_step": pipeline.step,
    }


def _settings(pipeline: "TextToVideo", args: argparse.Namespace, prompts: int) -> "Settings":
    """Combine the flags with the defaults of the checkpoint; refuse every invalid value here."""
    from motionaura_jax.pipelines.base import BATCH

    names = ("num_frames", "height", "width", "fps", "seed", "window_frames", *pipeline.recipe.sample.sampling)
    given = {name: value for name, value in vars(args).items() if name in names}
    return pipeline.settings(**given, batch_size=args.batch_size or min(BATCH, prompts * args.num_videos_per_prompt))


def _paths(args: argparse.Namespace, prompt: "Prompt") -> list[pathlib.Path]:
    """Return OUT.mp4; OUT_0003.mp4 for line 3 of a prompts file; OUT_00.mp4, OUT_01.mp4, ... for several per prompt."""
    line = f"_{prompt.position + 1:04d}" if args.prompts_file else ""
    several = args.num_videos_per_prompt > 1
    numbers = [f"_{number:02d}" if several else "" for number in range(args.num_videos_per_prompt)]
    return [args.output.with_stem(f"{args.output.stem}{line}{number}") for number in numbers]


def _targets(
    pipeline: "TextToVideo", args: argparse.Namespace, prompts: Sequence["Prompt"], settings: "Settings"
) -> list["Target"]:
    import jax

    from motionaura_jax.pipelines.outputs import Target
    from motionaura_jax.pipelines.text_to_video import Job

    common = {
        "seed": settings.seed,
        "fps": settings.fps,
        **dict(zip(("num_frames", "height", "width"), settings.size, strict=True)),
        "window_frames": settings.window,
        **settings.sample.sampling,
        "checkpoint": readable(args.checkpoint),
        "lora": readable(args.lora),
        "checkpoint_step": pipeline.step,
        "checkpoint_hash": pipeline.digest,
        "latent_space": pipeline.autoencoder.latent_space,
        "versions": {"motionaura_jax": motionaura_jax.__version__, "jax": jax.__version__},
    }
    defaults, targets = type(settings.sample)().sampling, []
    for prompt in prompts:
        for number, path in enumerate(_paths(args, prompt)):
            place = {"prompt_position": prompt.position, "video_number": number}
            record = {"prompt": prompt.text, "negative_prompt": prompt.negative, **place, **common}
            targets.append(
                Target(
                    job=Job(prompt=prompt, number=number),
                    path=path,
                    label=prompt.text,
                    record=record,
                    defaults=defaults,
                )
            )
    return targets


if __name__ == "__main__":
    raise SystemExit(main())
