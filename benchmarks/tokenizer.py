"""Benchmark of 3D-MBQ-VAE against a plain 3-D VQ-VAE on real clips, at equal parameters, tokens, codebook and CPU seconds.

    python -m benchmarks.tokenizer shrink --output=runs/bench/clips
    python -m benchmarks.tokenizer run --network=ours --cpu_seconds=900 --output=runs/bench/ours.json
    python -m benchmarks.tokenizer run --network=plain --cpu_seconds=900 --output=runs/bench/plain.json
    python -m benchmarks.tokenizer report runs/bench/*.json --figure=docs/figures/tokenizer.svg

`shrink` stores the clips losslessly at 72 pixels and their original frame rate, so that decoding large frames slows down
neither network.  Run both networks at the same time, each pinned to its own core (`taskset -c 0 ...`).  CPU seconds include
training steps and data loading, but not compilation and evaluation.  Each learning-rate schedule ends with the budget.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import tempfile
import time

import jax

from benchmarks.plain_vqvae import PlainSystem
from motionaura_jax.core import config, process
from motionaura_jax.data.manifest import read_manifest
from motionaura_jax.data.media import contact_sheet, write_json, write_text, write_video
from motionaura_jax.data.video import probe, read_clip
from motionaura_jax.pipelines.page import curve
from motionaura_jax.systems.mbq_vae import MBQVAERecipe, MBQVAESystem
from motionaura_jax.training import optimizer, state, step
from motionaura_jax.training.data import TrainingData

NETWORKS = {"ours": MBQVAESystem, "plain": PlainSystem}
CALIBRATION = 12
POINTS = 12
SHORT_SIDE = 72


def shrink(output: pathlib.Path) -> None:
    """Write small copies of the sample clips."""
    data = pathlib.Path(os.environ.get("MOTIONAURA_DATA", "../shared/data"))
    for record in read_manifest(data / "clips.jsonl"):
        info = probe(record.path)
        frames = read_clip(record.path, start=0.0, fps=info.fps, num_frames=info.frames, cover=(SHORT_SIDE, SHORT_SIDE))
        write_video(output / f"{record.path.stem}.mp4", frames, info.fps, lossless=True)


def recipe(steps: int, clips: pathlib.Path, overrides: list[str]) -> MBQVAERecipe:
    """Return the `tiny` recipe for the real clips, with every sixth file held out."""
    base = [
        f"--config.data.manifest={clips}",
        "--config.data.held_out=0.17",
        "--config.evaluate.clips=32",
        f"--config.train.steps={steps}",
    ]
    return config.build(MBQVAERecipe, config.read("configs/tokenizer.py:tiny", [*base, *overrides]))


class Trainer:
    """Trainer that measures the CPU seconds of its training steps."""

    def __init__(self, system: MBQVAESystem, workdir: pathlib.Path):
        self.system, self.data = system, TrainingData(system.recipe, workdir)
        optimize = optimizer.of(system)
        current = jax.jit(lambda: state.create(system, optimize, system.recipe.seed))()
        batches = (system.to_arrays(batch) for batch in self.data.preparation())
        self.state = state.restart(current, *system.prepare(current.params, current.extra, batches))
        example = system.to_arrays(self.data.evaluation[0])
        self._step = step.make_train_step(system, optimize).lower(self.state, {}, example).compile()
        self._batches = self.data.batches(0)
        self.cpu_seconds, self.usage = 0.0, []
        self.parameters = state.parameter_count(self.state.params["tokenizer"]["network"])

    def train(self, steps: int) -> None:
        """Run training steps and add their CPU seconds to the total."""
        started = time.process_time()
        for _ in range(steps):
            self.state, metrics = self._step(self.state, {}, self.system.to_arrays(next(self._batches)))
        self.usage.append(float(metrics["usage"]))
        self.cpu_seconds += time.process_time() - started

    def evaluate(self):
        """Return held-out metrics of the averaged weights."""
        batches = map(self.system.to_arrays, self.data.evaluation)
        return self.system.evaluate(self.state.inference_params, self.state.extra, {}, batches)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Train one network for its budget and write its learning curve."""
    with tempfile.TemporaryDirectory() as folder:
        make = lambda steps: Trainer(NETWORKS[args.network](recipe(steps, args.clips, overrides)), pathlib.Path(folder))  # noqa: E731
        pilot = make(1000)
        pilot.train(CALIBRATION)  # not timed: the loader's initial prefetching costs more than these steps
        started = pilot.cpu_seconds
        pilot.train(CALIBRATION)
        per_step = (pilot.cpu_seconds - started) / CALIBRATION
        steps = int(args.cpu_seconds / per_step) // POINTS * POINTS
        trainer = make(steps)
        print(
            f"{args.network}: {trainer.parameters / 1e6:.2f} M parameters, {per_step:.3f} s a step, {steps} steps",
            flush=True,
        )
        rows = []
        for point in range(POINTS):
            trainer.train(steps // POINTS)
            evaluation = trainer.evaluate()
            rows.append({"cpu_seconds": trainer.cpu_seconds, "usage": trainer.usage[-1], **evaluation.metrics})
            rows[-1]["step"] = (point + 1) * (steps // POINTS)
            print(json.dumps({"network": args.network, **rows[-1]}), flush=True)
    settings = dataclasses.asdict(trainer.system.recipe.optimizer)
    result = {"network": args.network, "parameters": trainer.parameters, "optimizer": settings, "rows": rows}
    write_json(args.output, result)
    contact_sheet(list(evaluation.videos.items()), args.output.with_suffix(".png"))


def report(args: argparse.Namespace) -> None:
    """Print the table and plot the curves."""
    results = [json.loads(path.read_text()) for path in args.results]
    print("| network | parameters | steps | CPU s | PSNR | without quantization | SSIM | codes used |")
    print("|---|---|---|---|---|---|---|---|")
    for result in results:
        row = result["rows"][-1]
        print(
            f"| {result['network']} | {result['parameters'] / 1e6:.2f} M | {row['step']} | {row['cpu_seconds']:.0f} | "
            f"{row['psnr']:.2f} dB | {row['psnr_continuous']:.2f} dB | {row['ssim']:.3f} | {row['codes_used']:.0%} |"
        )
    lines = {r["network"]: [(row["cpu_seconds"], row["psnr"]) for row in r["rows"]] for r in results}
    write_text(args.figure, curve("held-out PSNR (dB) over CPU seconds", lines))


def main() -> None:
    """Run the command line."""
    process.keep_freed_memory()  # as every command does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    shrinker = commands.add_parser("shrink", help="store small copies of the sample clips")
    shrinker.add_argument("--output", type=pathlib.Path, required=True)
    shrinker.set_defaults(call=lambda args, _: shrink(args.output))
    runner = commands.add_parser("run", help="train one network; --config.KEY=VALUE as in training")
    runner.add_argument("--network", choices=NETWORKS, required=True)
    runner.add_argument("--cpu_seconds", type=float, default=900.0)
    runner.add_argument("--clips", type=pathlib.Path, default="runs/bench/clips", help="folder made by shrink")
    runner.add_argument("--output", type=pathlib.Path, required=True)
    runner.set_defaults(call=run)
    reporter = commands.add_parser("report", help="print the table and draw the figure")
    reporter.add_argument("results", type=pathlib.Path, nargs="+")
    reporter.add_argument("--figure", type=pathlib.Path, required=True)
    reporter.set_defaults(call=lambda args, _: report(args))
    args, overrides = parser.parse_known_args()
    args.call(args, overrides)


if __name__ == "__main__":
    main()
