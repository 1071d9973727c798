"""The demo in acts: videos of the included model at once, both trainings while a page fills, and the verdict."""

import contextlib
import logging
import os
import pathlib
import shutil
import sys
import time
import webbrowser
from collections.abc import Iterator, Mapping
from typing import Any

from motionaura_jax import assets
from motionaura_jax.core import files
from motionaura_jax.core.errors import UserError
from motionaura_jax.core.recipe import SCENES, Recipe
from motionaura_jax.data.media import write_json
from motionaura_jax.pipelines import adherence, demo_page
from motionaura_jax.pipelines.demo_page import DemoPage, Stage
from motionaura_jax.pipelines.text_to_video import TextToVideo
from motionaura_jax.systems import loading
from motionaura_jax.training import loop
from motionaura_jax.weights import steps

logger = logging.getLogger(__name__)

FOLDERS = {"tokenizer": "tokenizer", "denoiser": "text_to_video"}
"""Workdirs of the trainings in the folder of the demo."""
FIRST_PROMPTS = adherence.BATCH_SIZE
_FITTED = 64  # scenes that fit the model of neighbors, which has seven weights
_RENDERED = ("manifest", "scenes", "scene_style", "num_frames", "height", "width", "fps")


def play(
    output: pathlib.Path, recipes: Mapping[str, Recipe], *, prompts: int, seeds: int, open_page: bool = False
) -> dict[str, Any]:
    """Run the demo in `output`; the same call again resumes it.

    Args:
      recipes: of the trainings, in order, by their names in FOLDERS.
      prompts: number of held-out prompts of the verdict.
      seeds: videos per prompt.
      open_page: show the page in a browser, if this machine has a display.

    Returns:
      `page`, the result of each training, and what `demo_page.show` reads unless a signal ended a training.

    Raises:
      UserError: see `loop.fit`.
    """
    stages = [
        Stage(
            name=name,
            workdir=output / FOLDERS[name],
            steps=recipe.train.steps,
            paired=not getattr(getattr(recipe, "sample", None), "prompts", ()),
        )
        for name, recipe in recipes.items()
    ]
    watch = Stopwatch(output / "seconds.json")
    with DemoPage(output, stages) as page:
        result: dict[str, Any] = {"output": output, "page": page.path}
        page.tell("sampling the included model")
        logger.info("page: %s (it fills while the demo runs)", page.path)
        if open_page:
            show_in_browser(page.path)
        _first(output, watch)
        known = stages[0]
        for stage in stages:
            recipe = recipes[stage.name]
            logger.info("training the %s", stage.name)
            page.tell(f"training the {stage.name}")
            if stage is not known:
                share_scenes(recipes[known.name], known.workdir, recipe, stage.workdir)
            with watch.stage(f"train {stage.name}"):
                result[stage.name] = loop.fit(
                    loading.open_system(recipe, stage.workdir), stage.workdir, notify=page.follow
                )
            if result[stage.name].get("stopped"):
                return result
        page.tell("measuring held-out prompts")
        result |= _verdict(output, watch, prompts, seeds)
        page.tell("")
    return result


# ---------------------------------------------------------------- First act
def _first(output: pathlib.Path, watch: "Stopwatch") -> None:
    """Sample a few prompts with the included model, unless an earlier start did."""
    if demo_page.read(output / demo_page.FIRST):
        return
    if not steps.exists(str(assets.SCENES)):
        logger.warning("%s: the included model is missing; the demo starts with the training", assets.SCENES)
        return
    with watch.stage("first videos"):
        pipeline = TextToVideo(assets.SCENES)
        prompts = adherence.prompts_for(pipeline, FIRST_PROMPTS)
        drawn = adherence.measure(pipeline, prompts, keep=FIRST_PROMPTS)
        videos = demo_page.save_videos(drawn.shown, output, "first", pipeline.recipe.data.rates[0])
        write_json(output / demo_page.FIRST, {"first": videos})


def show_in_browser(page: pathlib.Path) -> None:
    """Open the page in a browser; without a display, or if none starts, say so."""
    display = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    opened = False
    if display:
        with contextlib.suppress(webbrowser.Error, OSError, ValueError):
            opened = webbrowser.open(page.resolve().as_uri())
    if not opened:
        logger.warning("no browser can be opened here; open %s yourself", page)


# ---------------------------------------------------------------- Second act
def share_scenes(known: Recipe, source: pathlib.Path, recipe: Recipe, workdir: pathlib.Path) -> None:
    """Copy the rendered scenes of one training to another that would render the same ones.

    A copy that fails changes nothing: the training renders them itself.
    """
    if any(getattr(known.data, name) != getattr(recipe.data, name) for name in _RENDERED):
        return
    for folder in sorted((source / SCENES).glob("*")):
        target = workdir / SCENES / folder.name
        draft = target.with_name(f".{target.name}.tmp")
        if target.exists():
            continue
        try:
            files.check_own(folder)
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(folder, draft)
            draft.rename(target)
        except (OSError, UserError):
            shutil.rmtree(draft, ignore_errors=True)


# ---------------------------------------------------------------- Third act
def _verdict(output: pathlib.Path, watch: "Stopwatch", count: int, seeds: int) -> dict[str, Any]:
    """Generate and score videos of held-out prompts and measure the baselines; the page reads them from a file."""
    logger.info("generating %d x %d videos of held-out prompts", count, seeds)
    with watch.stage("measuring"):
        pipeline = TextToVideo(output / FOLDERS["denoiser"])
        prompts = adherence.prompts_for(pipeline, count)
        verdict = adherence.judge(pipeline, prompts, seeds=seeds, fitted_on=_FITTED)
    baseline, limits = (
        {row.attribute: row.share for row in part.rows} for part in (verdict.one_step, verdict.tokenizer)
    )
    result = {
        "prompts": count,
        "seeds": seeds,
        "adherence": [
            {
                **row.to_dict(),
                "one_step_share": baseline.get(row.attribute),
                "tokenizer_share": limits.get(row.attribute),
            }
            for row in verdict.generated.rows
        ],
        "bounds": verdict.bounds,
        "tokenizer_psnr": verdict.tokenizer.psnr,
        "seconds": watch.seconds,
    }
    fps = pipeline.recipe.data.rates[0]
    videos = {
        "generated": demo_page.save_videos(verdict.generated.shown, output, "drawn", fps),
        "reconstructed": demo_page.save_videos(verdict.tokenizer.shown, output, "kept", fps),
    }
    write_json(output / demo_page.VERDICT, {**result, **videos, "step": pipeline.step})
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
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            write_json(self._path, self.seconds)
