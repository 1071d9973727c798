"""Demo on a bare machine: videos at once, then text to video trained from scratch on rendered scenes, then the verdict.

    python -m motionaura_jax.demo [--output=runs/demo] [--tokenizer.train.steps=800 ...] [--denoiser.train.steps=2000 ...]

The page `index.html` in the output folder fills while the demo runs. `--tokenizer.KEY` and `--denoiser.KEY` set keys of the
configs `tokenizer:demo` and `text_to_video:demo`. `--full` trains longer. `--continue` starts from the committed checkpoint
instead of from random weights. The same command again resumes.
"""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from motionaura_jax import assets
from motionaura_jax.core import cli, files, process
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import between
from motionaura_jax.pipelines import demo_page

if TYPE_CHECKING:
    from motionaura_jax.core.recipe import Recipe

CONFIGS = {"tokenizer": "tokenizer:demo", "denoiser": "text_to_video:demo"}
Prompts = Annotated[int, between(2, 10_000)]
Seeds = Annotated[int, between(1, 1000)]
TRAINED_ON = ("scene_style", "num_frames", "height", "width", "fps")
DEVICES = 2  # that the CPU is split into; divides the batch sizes of both presets
FULL = 4  # times the steps of the presets
_OWN = {
    **dict.fromkeys(("seconds.json", "index.html", "tokenizer", "text_to_video"), 0),
    **dict.fromkeys((demo_page.FIRST, demo_page.VERDICT), 0),
    "videos": 1,
}
"""What the demo writes, and how many levels below it writes itself."""
CONTINUED = {"optimizer.learning_rate": "2e-4", "train.steps": "300"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = cli.Parser("demo", "Train text to video on rendered scenes and measure how well it follows its prompts.")
    folder = "folder of the demo (default: runs/demo, or runs/demo_full with --full)"
    parser.add_argument("--output", type=cli.path, default=argparse.SUPPRESS, help=folder)
    parser.add_argument("--continue", dest="go_on", action="store_true", help="start from the committed checkpoint")
    parser.add_argument("--full", action="store_true", help=f"train {FULL} times as long")
    parser.add_argument("--open", action="store_true", help="open the page in a browser, if there is a display")
    parser.add_argument("--prompts", type=cli.number(Prompts), default=32, help="number of held-out prompts")
    parser.add_argument("--seeds", type=cli.number(Seeds), default=1, help="videos per prompt")
    parser.epilog = "Every key of both trainings can be set: --tokenizer.KEY=VALUE, --denoiser.KEY=VALUE"
    args, flags = parser.parse_with_overrides(argv, prefix=tuple(f"--{stage}." for stage in CONFIGS))
    return cli.run(lambda: _demo(args, flags), as_json=args.json, show=demo_page.show)


def _demo(args: argparse.Namespace, flags: Sequence[str]) -> dict[str, Any]:
    process.split_cpu(DEVICES)
    output = getattr(args, "output", pathlib.Path("runs/demo_full" if args.full else "runs/demo"))
    files.check_folder(output)
    recipes = _continue(flags, args.full) if args.go_on else _from_scratch(flags, output / "tokenizer", args.full)
    for name, depth in _OWN.items():
        files.check_own(output / name, depth=depth)

    from motionaura_jax.pipelines import acts

    return acts.play(output, recipes, prompts=args.prompts, seeds=args.seeds, open_page=args.open)


def _from_scratch(flags: Sequence[str], tokenizer: pathlib.Path, full: bool) -> dict[str, "Recipe"]:
    from motionaura_jax.core import config

    values = {stage: config.read(location) for stage, location in CONFIGS.items()}
    values["denoiser"]["tokenizer"] = str(tokenizer)
    return {stage: _recipe(stage, values[stage], flags, full) for stage in CONFIGS}


def _continue(flags: Sequence[str], full: bool) -> dict[str, "Recipe"]:
    """Take the keys of the model from the committed checkpoint, and those of the run from the preset."""
    for flag in flags:
        if flag.startswith("--tokenizer."):
            raise UserError(f"{flag}: --continue does not train the tokenizer; leave this flag out")

    from motionaura_jax.core import config
    from motionaura_jax.systems.text_to_video.recipe import TextToVideoRecipe
    from motionaura_jax.weights import load, release

    if not release.is_release(assets.SCENES):
        raise UserError(f"{assets.SCENES}: the committed checkpoint is missing; run the demo without --continue")
    start = config.to_dict(load.load_recipe(assets.SCENES, TextToVideoRecipe, "text_to_video"))
    preset = config.read(CONFIGS["denoiser"])
    run = {name: preset.get(name, {}) for name in ("data", "optimizer", "train", "checkpoint", "evaluate")}
    run["data"] |= {name: start["data"][name] for name in TRAINED_ON}
    values = {**start, **run, "init_from": str(assets.SCENES)}
    shorter = [f"--denoiser.{key}={value}" for key, value in CONTINUED.items()]
    values = config.override(values, shorter, "--denoiser.")
    return {"denoiser": _recipe("denoiser", values, flags, full)}


def _recipe(stage: str, values: Mapping[str, Any], flags: Sequence[str], full: bool) -> "Recipe":
    """Build the recipe of one stage from `values` and the flags of this stage; `full` is weaker than a flag."""
    from motionaura_jax.core import config
    from motionaura_jax.systems import registry

    prefix = f"--{stage}."
    if full:
        longer = FULL * int(values["train"]["steps"])
        values = config.override(values, [f"{prefix}train.steps={longer}"], prefix)
    changed = config.override(values, [flag for flag in flags if flag.startswith(prefix)], prefix)
    recipe = config.build(registry.system_class(changed["system"]).Recipe, changed, where=stage)
    if recipe.data.manifest != "scenes":
        raise UserError(f"{prefix}data.manifest: the demo measures rendered scenes; for other clips use train")
    return recipe


if __name__ == "__main__":
    raise SystemExit(main())
