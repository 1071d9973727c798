"""The main job on a bare machine: renders scenes, trains a tokenizer on them and shows held-out reconstructions.

python -m motionaura_jax.demo [--output=runs/demo] [--config.train.steps=1000 ...]
"""

import pathlib
import time
from collections.abc import Sequence
from typing import Any

from motionaura_jax import cli

SHOWN_METRICS = {
    "eval_psnr": "PSNR, held-out clips (dB)",
    "eval_psnr_continuous": "the same without quantization (dB)",
    "eval_ssim": "SSIM",
    "eval_codes_used": "share of codes used",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = cli.Parser("demo", "Train a tiny tokenizer on rendered scenes and write a page that shows what it does.")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/demo"), help="folder of the demo")
    args, overrides = parser.parse_with_overrides(argv)
    return cli.run(lambda: _demo(args.output, overrides), as_json=args.json)


def _demo(output: pathlib.Path, overrides: Sequence[str]) -> dict[str, Any]:
    from motionaura_jax import config, train
    from motionaura_jax.systems import base

    started = time.perf_counter()
    values = config.read("configs/tokenizer.py:demo", overrides)
    system = base.system_class(values["system"])
    workdir = output / "tokenizer"
    result = train.fit(system(config.build(system.Recipe, values)), workdir)
    seconds = time.perf_counter() - started
    page = output / "index.html"
    _write_page(page, workdir, seconds)
    return {**result, "seconds": seconds, "page": page}


def _write_page(page: pathlib.Path, workdir: pathlib.Path, seconds: float) -> None:
    from motionaura_jax.report import Page
    from motionaura_jax.training.writers import read_metrics

    shown = Page(
        "MotionAura tokenizer", f"A 3D-MBQ-VAE trained from scratch on rendered scenes in {seconds / 60:.1f} minutes."
    )
    rows = read_metrics(workdir / "metrics.jsonl")

    def line(key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in rows if row.get(key) is not None]

    last = {label: line(key)[-1][1] for key, label in SHOWN_METRICS.items() if line(key)}
    shown.table(("measure", "value"), [(label, f"{value:.4g}") for label, value in last.items()])
    shown.heading("Held-out scenes: input left, reconstruction right")
    newest = max((folder for folder in (workdir / "samples").glob("*") if folder.is_dir()), default=None)
    clips = sorted(newest.glob("*.mp4")) if newest else []
    shown.videos([(clip.stem.replace("_", " "), clip.relative_to(page.parent).as_posix()) for clip in clips])
    shown.heading("Training")
    shown.curves(
        {
            "squared error (training)": {"mse": line("mse")},
            "held-out PSNR (dB)": {"quantized": line("eval_psnr"), "continuous": line("eval_psnr_continuous")},
            "codebook perplexity": {"perplexity": line("perplexity")},
            "masked frame index loss (nats)": {"mfi": line("mfi")},
        }
    )
    shown.write(page)


if __name__ == "__main__":
    raise SystemExit(main())
