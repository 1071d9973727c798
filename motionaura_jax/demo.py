"""Demo on a bare machine: train a tokenizer and text to video on rendered scenes, then measure prompt adherence.

    python -m motionaura_jax.demo [--output=runs/demo] [--tokenizer.train.steps=800 ...] [--denoiser.train.steps=2000 ...]

`--tokenizer.KEY` and `--denoiser.KEY` set keys of the preset `demo` in `configs/tokenizer.py` and
`configs/text_to_video.py`. `--continue` starts from the committed checkpoint instead of from random weights.
The same command again resumes the training.
"""

import argparse
import contextlib
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from motionaura_jax import assets
from motionaura_jax.core import cli, files
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.limits import between
from motionaura_jax.pipelines import demo_page

if TYPE_CHECKING:
    from motionaura_jax.core.recipe import Recipe

logger = logging.getLogger(__name__)

CONFIGS = {"tokenizer": "configs/tokenizer.py:demo", "denoiser": "configs/text_to_video.py:demo"}
Prompts = Annotated[int, between(2, 10_000)]
Seeds = Annotated[int, between(1, 1000)]
TRAINED_ON = ("scene_style", "num_frames", "height", "width", "fps")
_OWN = {"seconds.json": 0, "index.html": 0, "videos": 1, "tokenizer": 0, "text_to_video": 0}
"""What the demo writes, and how many levels below it writes itself."""
CONTINUED = {"optimizer.learning_rate": "2e-4", "train.steps": "300"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = cli.Parser("demo", "Train text to video on rendered scenes and measure how well it follows its prompts.")
    parser.add_argument("--output", type=cli.path, default=pathlib.Path("runs/demo"), help="folder of the demo")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="start from the committed checkpoint")
    parser.add_argument("--prompts", type=cli.number(Prompts), default=32, help="number of held-out prompts")
    parser.add_argument("--seeds", type=cli.number(Seeds), default=1, help="videos per prompt")
    parser.epilog = "Every key of both trainings can be set: --tokenizer.KEY=VALUE, --denoiser.KEY=VALUE"
    args, flags = parser.parse_with_overrides(argv, prefix=tuple(f"--{stage}." for stage in CONFIGS))
    return cli.run(lambda: _demo(args, flags), as_json=args.json, show=demo_page.show)


def _demo(args: argparse.Namespace, flags: Sequence[str]) -> dict[str, Any]:
    files.check_folder(args.output)
    tokenizer = args.output / "tokenizer"
    recipes = _continue(flags) if args.go_on else _from_scratch(flags, tokenizer)
    for name, depth in _OWN.items():
        files.check_own(args.output / name, depth=depth)
    result: dict[str, Any] = {"output": args.output}
    watch = Stopwatch(args.output / "seconds.json")
    for stage, recipe in recipes.items():
        folder = tokenizer if stage == "tokenizer" else args.output / "text_to_video"
        logger.info("training the %s", stage)
        with watch.stage(f"train {stage}"):
            result[stage] = _train(recipe, folder)
        if result[stage].get("stopped"):
            return result
    return {**result, **_measure(args, watch)}


def _from_scratch(flags: Sequence[str], tokenizer: pathlib.Path) -> dict[str, "Recipe"]:
    from motionaura_jax.core import config

    values = {stage: config.read(location) for stage, location in CONFIGS.items()}
    values["denoiser"]["tokenizer"] = str(tokenizer)
    return {stage: _recipe(stage, values[stage], flags) for stage in CONFIGS}


def _continue(flags: Sequence[str]) -> dict[str, "Recipe"]:
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
    return {"denoiser": _recipe("denoiser", values, [*shorter, *flags])}


def _recipe(stage: str, values: Mapping[str, Any], flags: Sequence[str]) -> "Recipe":
    """Build the recipe of one stage from `values` and the flags of this stage."""
    from motionaura_jax.core import config
    from motionaura_jax.systems import registry

    prefix = f"--{stage}."
    changed = config.override(values, [flag for flag in flags if flag.startswith(prefix)], prefix)
    recipe = config.build(registry.system_class(changed["system"]).Recipe, changed, where=stage)
    if recipe.data.manifest != "scenes":
        raise UserError(f"{prefix}data.manifest: the demo measures rendered scenes; for other clips use train")
    return recipe


def _train(recipe: "Recipe", workdir: pathlib.Path) -> dict[str, Any]:
    from motionaura_jax.systems import loading
    from motionaura_jax.training import loop

    return loop.fit(loading.open_system(recipe, workdir), workdir)


def _measure(args: argparse.Namespace, watch: "Stopwatch") -> dict[str, Any]:
    """Generate and score videos of held-out prompts, and write the page."""
    from motionaura_jax.pipelines import adherence
    from motionaura_jax.pipelines.text_to_video import TextToVideo

    logger.info("generating %d x %d videos of held-out prompts", args.prompts, args.seeds)
    with watch.stage("measuring"):
        pipeline = TextToVideo(args.output / "text_to_video")
        prompts = adherence.prompts_for(pipeline, args.prompts)
        drawn = adherence.measure(pipeline, prompts, seeds=args.seeds)
        single = adherence.measure(pipeline, prompts, sample=adherence.one_step(pipeline.recipe.sample), keep=0)
        kept = adherence.measure_tokenizer(pipeline, prompts)
    limits = {row.attribute: row.share for row in kept.rows}
    baseline = {row.attribute: row.share for row in single.rows}
    result = {
        "adherence": [
            {
                **row.to_dict(),
                "one_step_share": baseline[row.attribute],
                "tokenizer_share": limits[row.attribute],
            }
            for row in drawn.rows
        ],
        "tokenizer_psnr": kept.psnr,
        "seconds": watch.seconds,
        "page": args.output / "index.html",
    }
    demo_page.write(result, drawn.shown, kept.shown, pipeline.recipe.data.rates[0])
    return result


class Stopwatch:
    """Wall-clock seconds of named stages, summed over all starts of one demo in the file `path`."""

    def __init__(self, path: pathlib.Path):
        known: dict[str, Any] = {}
        with contextlib.suppress(UserError):  # the first start, or a damaged file: a statistic is no reason to stop
            known = files.read_json(path, remedy="delete it")
        numbers = {name: value for name, value in known.items() if type(value) in (int, float)}
        self.seconds: dict[str, float] = {name: value for name, value in numbers.items() if 0 <= value < 2**53}
        self._path = path

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the block, even if it fails."""
        from motionaura_jax.data.media import write_json

        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            write_json(self._path, self.seconds)


if __name__ == "__main__":
    raise SystemExit(main())
