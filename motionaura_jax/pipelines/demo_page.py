"""Page of the demo, built from the files of its folder, and the tables of its verdict for page and terminal.

The page is rewritten while the demo runs: a browser that has it open loads it again every few seconds.
"""

import contextlib
import dataclasses
import logging
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from motionaura_jax.core import cli, files
from motionaura_jax.core.errors import UserError

if TYPE_CHECKING:
    from motionaura_jax.pipelines.adherence import Shown
    from motionaura_jax.pipelines.page import Clip, Page

logger = logging.getLogger(__name__)

FIRST, VERDICT = "first.json", "verdict.json"
HEADER = ("measure", "result", "interval", "chance", "shuffled", "one step", "limit")
BOUNDS = {
    "true": "its caption",
    "shuffled": "another clip's caption",
    "no text": "no caption",
    "neighbors": "copying neighbors",
}
RESUME = "stopped; run the same command again to resume"

_REFRESH = 8  # seconds
_ROWS = 6  # evaluations in the table of samples over time
_TITLES = {"tokenizer": "Tokenizer", "denoiser": "Text to video"}
_CHARTS: dict[str, dict[str, dict[str, str]]] = {
    "tokenizer": {
        "squared error (training)": {"mse": "mse"},
        "held-out PSNR (dB)": {"quantized": "eval_psnr", "continuous": "eval_psnr_continuous"},
        "codebook perplexity": {"perplexity": "perplexity"},
    },
    "denoiser": {
        "loss (training, nats per token)": {"loss": "loss"},
        "held-out bound (nats per token)": {"its caption": "eval_nelbo", "another clip's": "eval_nelbo_shuffled"},
        "held-out bound by masked share": {f"up to {level} %": f"eval_nelbo_{level}" for level in (25, 50, 75, 100)},
    },
}


# ---------------------------------------------------------------- Verdict
def show(result: Mapping[str, Any]) -> None:
    """Print the tables of the verdict and the path of the page."""
    if "adherence" in result:
        cli.show_table(HEADER, table(result))
        cli.show_table(*bounds_table(result["bounds"]))
        for line in findings(result):
            cli.console().print(line, markup=False, highlight=False)
        cli.show_table(("stage", "minutes"), times(result["seconds"]))
    else:
        cli.console().print(RESUME, markup=False, highlight=False)
    cli.console().print(f"page: {result['page']}", markup=False, highlight=False, soft_wrap=True)


def table(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return rows under HEADER: what the generated videos show, in percent, and references for each measure.

    The references are what guessing reaches; the same videos scored against the prompts of other videos; videos sampled in
    one step without guidance, which predicts every token on its own; and rendered scenes after the tokenizer alone, the
    level of a perfect denoiser.
    """
    return [
        (
            row["attribute"].replace("_", " "),
            _percent(row["share"]),
            f"{100 * row['low']:.0f}-{_percent(row['high'])}",
            *(_percent(row.get(name)) for name in ("chance", "shuffled", "one_step_share", "tokenizer_share")),
        )
        for row in result["adherence"]
    ]


def bounds_table(bounds: Mapping[str, Sequence[float]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of `adherence.bounds`."""
    levels = len(bounds["true"])
    header = ("nats per token, given", *(f"up to {round(100 * (level + 1) / levels)} %" for level in range(levels)))
    return header, [(BOUNDS[name], *(f"{value:.2f}" for value in row)) for name, row in bounds.items()]


def times(seconds: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return stages and their wall-clock minutes, over all starts, and the sum."""
    rows = [*seconds.items(), ("in all", sum(seconds.values()))]
    return [(stage, f"{value / 60:.1f}") for stage, value in rows]


def findings(result: Mapping[str, Any]) -> list[str]:
    """Say in sentences which baselines the model does not beat; an interval that holds the baseline does not beat it."""
    rows, bounds = result["adherence"], result["bounds"]
    single = [row for row in rows if row["one_step_share"] is not None and row["one_step_share"] >= row["low"]]
    luck = [row for row in rows if row["shuffled"] is not None and row["shuffled"] >= row["low"]]
    copied = [
        index for index, (own, near) in enumerate(zip(bounds["true"], bounds["neighbors"], strict=True)) if near <= own
    ]
    levels = bounds_table(bounds)[0][1:]
    return [
        _sentence(
            "One sampling step without guidance does as well in",
            [row["attribute"].replace("_", " ") for row in single],
            "Every measure is higher than after one sampling step without guidance.",
        ),
        _sentence(
            "The prompts of other videos fit as well in",
            [row["attribute"].replace("_", " ") for row in luck],
            "Every measure that prompts name is higher than with the prompts of other videos.",
        ),
        _sentence(
            "Copying visible neighbors predicts tokens as well with masked shares",
            [levels[index] for index in copied],
            "At every masked share the model predicts tokens better than copying visible neighbors.",
        ),
    ]


def _sentence(start: str, names: Sequence[str], otherwise: str) -> str:
    return f"{start} {', '.join(names)}." if names else otherwise


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


# ---------------------------------------------------------------- Files
def save_videos(shown: Sequence["Shown"], folder: pathlib.Path, name: str, fps: float) -> list[dict[str, Any]]:
    """Write videos to `folder`/videos; return what the page needs to show them, as JSON values."""
    from motionaura_jax.data.media import write_video

    items = []
    for index, one in enumerate(shown):
        path = pathlib.Path("videos", f"{name}_{index:02d}.mp4")
        write_video(folder / path, one.video, fps)
        wrong = [attribute.replace("_", " ") for attribute, right in one.right.items() if not right]
        items.append({"prompt": one.prompt, "file": path.as_posix(), "wrong": wrong})
    return items


def read(path: pathlib.Path) -> dict[str, Any] | None:
    """Read FIRST or VERDICT; return None for a file that is absent, damaged, or names videos that are not there."""
    try:
        found = files.read_json(path, remedy="delete it")
        videos = [item for name in ("first", "generated", "reconstructed") for item in found.get(name, ())]
        texts = [text for item in videos for text in (item["prompt"], *item["wrong"])]
        places = [item["file"] for item in videos if re.fullmatch(r"videos/\w+\.mp4", item["file"])]
        sound = len(places) == len(videos) and all(isinstance(text, str) for text in texts)
        return found if sound and all((path.parent / place).is_file() for place in places) else None
    except (UserError, TypeError, KeyError, AttributeError):
        return None


# ---------------------------------------------------------------- Page
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Training that the page shows.

    Attributes:
      name: "tokenizer" or "denoiser".
      steps: number of steps until the end.
      paired: its samples have a held-out clip on their left.
    """

    name: str
    workdir: pathlib.Path
    steps: int
    paired: bool = True


class DemoPage:
    """Page that follows a demo.  As a context manager it stops reloading at the end, however the demo ends.

    A page that cannot be written never stops the demo: that is one warning.

    Args:
      folder: of the demo; the page is `index.html` in it.
      pause: seconds between two versions of the page during a training.
    """

    def __init__(self, folder: pathlib.Path, stages: Sequence[Stage], *, pause: float = 4.0):
        self.path = folder / "index.html"
        self._folder, self._stages, self._pause = folder, stages, pause
        self._now, self._running, self._written, self._warned = "", False, 0.0, False

    def __enter__(self) -> "DemoPage":
        self._running = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._running = False
        self.tell(RESUME if kind or self._now != "" else "")

    def tell(self, now: str) -> None:
        """Say what the demo does now, and write the page; "" once everything is done."""
        self._now = now
        self._write()

    def follow(self, step: int) -> None:
        """Write the page after a log or an evaluation of a training, unless it was written a moment ago."""
        if time.monotonic() - self._written >= self._pause:
            self._write()

    def _write(self) -> None:
        try:
            self._build().write(self.path)
        except UserError as error:
            if not self._warned:
                logger.warning("the page cannot be written: %s", error)
            self._warned = True
        self._written = time.monotonic()

    def _build(self) -> "Page":
        from motionaura_jax.pipelines.page import Page

        page = Page(
            "MotionAura on rendered scenes",
            "A 3D-MBQ-VAE tokenizer and an absorbing-diffusion spectral transformer, trained from scratch on this machine. "
            "All scores are measured from the pixels of the videos.",
            refresh=_REFRESH if self._running else 0,
        )
        if self._running:
            page.paragraph(
                f"Now: {self._now}. Written at {time.strftime('%X')}; the page loads itself again while the demo runs."
            )
        elif self._now:
            page.paragraph(f"The demo is {self._now}.")
        self._first(page)
        page.heading("2. Trained from scratch")
        for stage in self._stages:
            self._training(page, stage)
        self._verdict(page)
        return page

    def _first(self, page: "Page") -> None:
        found = read(self._folder / FIRST)
        page.heading("1. At once: the included model")
        page.paragraph("The model that comes with the package, with prompts whose combinations its training never saw.")
        if found:
            page.videos(_clips(found["first"]))
        else:
            page.paragraph(
                "The first videos appear here in less than a minute." if self._running else "No videos.", soft=True
            )

    def _training(self, page: "Page", stage: Stage) -> None:
        rows = _metrics(stage.workdir)
        page.heading(_TITLES[stage.name], 3)
        page.progress(*_progress(rows, stage.steps, f"training the {stage.name}" in self._now and self._running))
        if rows:
            page.curves(
                {
                    title: {
                        label: [(row["step"], row[key]) for row in rows if row.get(key) is not None]
                        for label, key in lines.items()
                    }
                    for title, lines in _CHARTS[stage.name].items()
                }
            )
        samples = _samples(stage.workdir, self._folder)
        if stage.name == "tokenizer":
            for step, clips in list(samples.items())[-1:]:
                page.paragraph(
                    f"Held-out scenes after step {step}: the scene on the left, its reconstruction on the right."
                )
                page.videos([dataclasses.replace(clip, caption="") for clip in clips])
        elif samples:
            self._over_time(page, samples, stage.paired)

    def _over_time(self, page: "Page", samples: Mapping[int, Sequence["Clip"]], paired: bool) -> None:
        """Show the same prompts after several evaluations, one row each."""
        page.paragraph("The same held-out prompts after every evaluation, from the same noise.")
        steps = list(samples)
        kept = sorted({steps[round(index * (len(steps) - 1) / (_ROWS - 1))] for index in range(_ROWS)})
        last = samples[steps[-1]]

        def half(clips: Sequence["Clip"], side: str) -> list["Clip"]:
            return [dataclasses.replace(clip, half=side) for clip in clips]

        rows = [(f"step {step}", half(samples[step], "right" if paired else "")) for step in kept]
        if paired:
            rows.append(("scene", half(last, "left")))
        page.video_rows([clip.caption for clip in last], rows)

    def _verdict(self, page: "Page") -> None:
        found = read(self._folder / VERDICT)
        page.heading("3. The verdict")
        if not found:
            page.paragraph(
                "Follows after both trainings: held-out prompts, and baselines that could refute them.", soft=True
            )
            return
        with contextlib.suppress(
            KeyError, TypeError, ValueError, AttributeError
        ):  # a damaged file is made anew at the end
            tables = table(found), *bounds_table(found["bounds"]), findings(found), times(found["seconds"])
            rows, header, bounds, sentences, minutes = tables
            page.paragraph(
                f"{found['prompts']} held-out prompts, {found['seeds']} video(s) each, after {found['step']} steps. No training "
                f"scene has their combinations. Tokenizer: {found['tokenizer_psnr']:.1f} dB."
            )
            page.table(HEADER, rows)
            page.paragraph(
                "Interval: 95 % (Wilson). Shuffled: the same videos scored against the prompts of other videos. One step: "
                "videos sampled in one step without guidance, so that no token sees another. Limit: rendered scenes after "
                "encoding and decoding, which no denoiser can exceed.",
                soft=True,
            )
            page.paragraph("Bound of the negative log likelihood of held-out scenes, by the share of masked tokens:")
            page.table(header, bounds)
            for sentence in sentences:
                page.paragraph(sentence)
            page.heading("Prompts and generated videos", 3)
            page.videos(_clips(found["generated"]))
            page.heading("The tokenizer alone: scene left, reconstruction right", 3)
            page.videos(_clips(found["reconstructed"]))
            page.heading("Time", 3)
            page.table(("stage", "minutes"), minutes)


def _clips(items: Sequence[Mapping[str, Any]]) -> list["Clip"]:
    from motionaura_jax.pipelines.page import Clip

    return [
        Clip(
            path=item["file"],
            caption=item["prompt"],
            note=f"wrong: {', '.join(item['wrong'])}" if item["wrong"] else "all right",
            good=not item["wrong"],
        )
        for item in items
    ]


def _metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    from motionaura_jax.training.monitoring import writers

    with contextlib.suppress(UserError):
        return writers.read_metrics(workdir / writers.FILE)
    return []


def _progress(rows: Sequence[Mapping[str, Any]], steps: int, active: bool) -> tuple[str, float]:
    """Return a line on how far a training is, and the share that is done."""
    done = max((row["step"] for row in rows), default=0)
    if done >= steps:
        return f"trained for {steps} steps", 1.0
    text = f"step {done} of {steps}"
    speeds = [row["steps_per_second"] for row in rows if row.get("steps_per_second")]
    if active and not done:
        text += ": rendering scenes and compiling"
    elif active and speeds:
        minutes, seconds = divmod(round((steps - done) / speeds[-1]), 60)
        text += f", {speeds[-1]:.2f} steps/s, about {minutes} min {seconds:02d} s left"
    return text, done / steps


def _samples(workdir: pathlib.Path, folder: pathlib.Path) -> dict[int, list["Clip"]]:
    """Return the videos of each evaluation by step, in order."""
    from motionaura_jax.pipelines.page import Clip

    found: dict[int, list[Clip]] = {}
    for place in sorted(_evaluations(workdir / "samples")):
        # The names of the files are their captions: `0_a_red_star.mp4`.
        paths = sorted(place.glob("*.mp4"), key=lambda path: (len(path.name.split("_")[0]), path.name))
        found[int(place.name)] = [
            Clip(
                path=path.relative_to(folder).as_posix(),
                caption=re.sub(r"^\d+_", "", path.stem).replace("_", " "),
            )
            for path in paths
        ]
    return {step: clips for step, clips in found.items() if clips}


def _evaluations(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    if folder.is_dir():
        yield from (place for place in folder.iterdir() if re.fullmatch(r"\d{1,18}", place.name) and place.is_dir())
