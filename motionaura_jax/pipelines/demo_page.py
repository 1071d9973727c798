"""Result of the demo: a table for the terminal and the page, and the page with its videos and curves."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from motionaura_jax.core import cli

if TYPE_CHECKING:
    from motionaura_jax.pipelines.adherence import Shown

HEADER = ("measure", "result", "95 % interval", "chance", "shuffled", "one step", "tokenizer")
OBJECT = ("color", "motion", "shape", "size")

_TOKENIZER_CURVES = {
    "tokenizer: squared error (training)": {"mse": "mse"},
    "tokenizer: held-out PSNR (dB)": {"quantized": "eval_psnr", "continuous": "eval_psnr_continuous"},
    "tokenizer: codebook perplexity": {"perplexity": "perplexity"},
}
_DENOISER_CURVES = {
    "text to video: loss (training, nats per token)": {"loss": "loss"},
    "text to video: held-out bound (nats per token)": {"true": "eval_nelbo", "shuffled prompts": "eval_nelbo_shuffled"},
}


def show(result: Mapping[str, Any]) -> None:
    """Print the table and the path of the page."""
    if "page" not in result:
        cli.console().print("stopped; run the same command again to resume")
        return
    cli.show_table(HEADER, table(result))
    cli.console().print(f"page: {result['page']}", markup=False, highlight=False, soft_wrap=True)


def table(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return rows under HEADER: adherence by attribute, fidelity of the tokenizer, wall-clock time by stage.

    The last three columns are references: the same videos scored against the prompts of other videos, which is the level
    of chance; videos sampled in one step without guidance, which predicts every token on its own; and rendered scenes after
    the tokenizer alone, which is the level of a perfect denoiser.
    """
    from motionaura_jax.scenes.adherence import cells, percent

    rows = [
        (*cells(row), percent(row.get("one_step_share")), percent(row["tokenizer_share"]))
        for row in result["adherence"]
    ]
    rows.append(_short("videos measured", str(result["adherence"][0]["n"])))
    rows.append(_short("tokenizer PSNR", f"{result['tokenizer_psnr']:.1f} dB"))
    return rows + [_short(stage, f"{seconds / 60:.1f} min") for stage, seconds in result["seconds"].items()]


def write(result: Mapping[str, Any], drawn: Sequence["Shown"], kept: Sequence["Shown"], fps: float) -> None:
    """Write the page, and its videos to `videos/` next to it."""
    from motionaura_jax.pipelines.page import Page

    path = pathlib.Path(result["page"])
    page = Page(
        "MotionAura on rendered scenes",
        "A 3D-MBQ-VAE tokenizer and an absorbing-diffusion spectral transformer. The prompts below combine color, shape "
        "and motion in ways that no training scene did. The scores are measured from the pixels of the videos.",
    )
    page.table(HEADER, table(result))
    page.paragraph(
        "Shuffled: the same videos scored against the prompts of other videos. One step: videos sampled in a single step "
        "without guidance, so that no token sees another. Tokenizer: rendered scenes after encoding "
        "and decoding, the upper bound for any denoiser."
    )
    page.heading("Prompts and generated videos")
    page.videos(_videos(drawn, path, "drawn", fps))
    page.heading("Tokenizer: rendered scene left, reconstruction right")
    page.videos(_videos(kept, path, "kept", fps))
    page.heading("Training")
    page.curves(
        {
            **_curves(path.parent / "tokenizer" / "metrics.jsonl", _TOKENIZER_CURVES),
            **_curves(path.parent / "text_to_video" / "metrics.jsonl", _DENOISER_CURVES),
        }
    )
    page.write(path)


def _short(name: str, value: str) -> tuple[str, ...]:
    return (name, value, *[""] * (len(HEADER) - 2))


def _videos(shown: Sequence["Shown"], page: pathlib.Path, name: str, fps: float) -> list[tuple[str, str]]:
    """Write the videos; return captions that name the wrong attributes, and paths relative to the page."""
    from motionaura_jax.data.media import write_video

    items = []
    for index, one in enumerate(shown):
        target = page.parent / "videos" / f"{name}_{index:02d}.mp4"
        write_video(target, one.video, fps)
        wrong = [attribute for attribute in OBJECT if not one.right.get(attribute, True)]
        verdict = f"wrong: {', '.join(wrong)}" if wrong else "all right"
        items.append((f"{one.prompt} \N{EM DASH} {verdict}", target.relative_to(page.parent).as_posix()))
    return items


def _curves(
    path: pathlib.Path, charts: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Read the lines of some charts from `metrics.jsonl`; return no charts if that training did not run."""
    from motionaura_jax.training.monitoring.writers import read_metrics

    rows = read_metrics(path)
    if not rows:
        return {}
    return {
        title: {
            label: [(row["step"], row[key]) for row in rows if row.get(key) is not None] for label, key in lines.items()
        }
        for title, lines in charts.items()
    }
