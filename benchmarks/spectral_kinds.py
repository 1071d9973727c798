"""Comparison of the denoiser's transforms: each network trains on rendered scenes for the same number of steps.

    python -m benchmarks.spectral_kinds --tokenizer=WORKDIR [--steps=600] [--every=100] [--cpu_seconds=3000] \
        [--output=runs/bench/kinds.json] [--config.KEY=VALUE ...]

All networks see the same pretokenized clips in the same order, with a constant learning rate after warm-up, and take turns
of `--every` steps.  Every table therefore compares networks at the same step.  The run ends at `--steps`, or after the table
in which the steps exceed `--cpu_seconds` in total.  NELBO is the bound on held-out clips in nats per token; "shuffled" is
the NELBO with the captions of other clips.  CPU seconds count training steps, not data, compilation or evaluation.
"""

import argparse
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from motionaura_jax.core import config, process
from motionaura_jax.data.loader import Batch as Clips
from motionaura_jax.data.media import write_json
from motionaura_jax.systems.base import Batch
from motionaura_jax.systems.text_to_video.system import TextToVideoSystem
from motionaura_jax.training import optimizer, state, step
from motionaura_jax.training.data import TrainingData

KINDS = {
    "re_fft2, residual of the paper": "re_fft2,paper_residual",
    "re_fft2, identity residual": "re_fft2,identity",
    "hartley, identity residual": "hartley,identity",
    "none, identity residual": "none,identity",
}
COLUMNS = ("network", "M parameters", "steps", "CPU s", "training loss", "NELBO", "NELBO, shuffled", "difference")


def make_system(variant: str, steps: int, tokenizer: str, overrides: Sequence[str]) -> TextToVideoSystem:
    """Return the `demo` recipe with the presets of one network."""
    settings = {
        "tokenizer": tokenizer,
        "token_cache": 4096,
        "data.scenes": 512,
        "data.threads": 0,  # no background reading while steps are timed
        "optimizer.decay": "constant",
        "train.steps": steps,
        "evaluate.clips": 64,
        "evaluate.pictures": 0,
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    values = config.read(f"configs/text_to_video.py:demo,{variant}", [*flags, *overrides])
    return TextToVideoSystem(config.build(TextToVideoSystem.Recipe, values))


def tokens_only(system: TextToVideoSystem, clips: Clips) -> Batch:
    """Return a batch with its tokens; of the video only the shape is kept."""
    batch = system.to_arrays(clips)
    return {**batch, "video": np.broadcast_to(np.float32(0), batch["video"].shape)}


class Trainer:
    """Training run of one network that measures the CPU seconds of its steps."""

    def __init__(self, system: Any, example: Batch):
        self.system = system
        optimize = optimizer.of(system)
        self.state = jax.jit(lambda: state.create(system, optimize, system.recipe.seed))()
        make: Any = step.make_train_step(system, optimize)
        self._step = make.lower(self.state, {}, example).compile()
        self.parameters = state.parameter_count(self.state.params)
        self.cpu_seconds, self.loss = 0.0, float("nan")

    def train(self, batches: Sequence[Batch]) -> None:
        """Take one training step per batch."""
        losses, started = [], time.process_time()
        for batch in batches:
            self.state, metrics = self._step(self.state, {}, batch)
            losses.append(metrics["loss"])
        self.loss = float(np.mean(jax.device_get(losses)))
        self.cpu_seconds += time.process_time() - started

    def measure(self, held_out: Sequence[Batch]) -> dict[str, float]:
        """Return the bounds of the averaged weights, and the CPU seconds and loss so far."""
        metrics = self.system.evaluate(self.state.inference_params, self.state.extra, {}, held_out).metrics
        costs = {"parameters": self.parameters, "step": int(self.state.step), "cpu_seconds": self.cpu_seconds}
        return {**costs, "loss": self.loss, **metrics}


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Format one row per network."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, row in rows.items():
        bounds = (row["nelbo"], row["nelbo_shuffled"], row["nelbo_shuffled"] - row["nelbo"])
        numbers = " | ".join(f"{value:.3f}" for value in (row["loss"], *bounds))
        lines.append(
            f"| {name} | {row['parameters'] / 1e6:.2f} | {row['step']} | {row['cpu_seconds']:.0f} | {numbers} |"
        )
    return "\n".join(lines)


def run(args: argparse.Namespace, overrides: Sequence[str], folder: pathlib.Path) -> None:
    """Train the networks in turns and print a table after each round."""
    systems = {name: make_system(KINDS[name], args.steps, args.tokenizer, overrides) for name in KINDS}
    first = next(iter(systems.values()))
    data = TrainingData(first.recipe, folder)
    held_out = [tokens_only(first, clips) for clips in data.evaluation]
    stream = data.batches(0)
    ahead = [tokens_only(first, next(stream))]
    trainers = {name: Trainer(system, ahead[0]) for name, system in systems.items()}
    history: list[dict[str, Mapping[str, float]]] = []
    done = 0
    while done < args.steps and sum(trainer.cpu_seconds for trainer in trainers.values()) < args.cpu_seconds:
        count = min(args.every, args.steps - done)
        ahead += [tokens_only(first, next(stream)) for _ in range(count - len(ahead))]
        for trainer in trainers.values():
            trainer.train(ahead)
        ahead, done = [], done + count
        history.append({name: trainer.measure(held_out) for name, trainer in trainers.items()})
        print(f"\nAfter {done} steps\n\n{table(history[-1])}", flush=True)
        if args.output:
            write_json(args.output, {"tokenizer": args.tokenizer, "overrides": list(overrides), "rounds": history})


def main() -> None:
    """Run the command line."""
    process.keep_freed_memory()  # as every command does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="workdir, step folder or release folder")
    parser.add_argument("--steps", type=int, default=600, help="steps per network (default: %(default)s)")
    parser.add_argument("--every", type=int, default=100, help="steps between tables (default: %(default)s)")
    parser.add_argument(
        "--cpu_seconds", type=float, default=float("inf"), help="budget for the steps of all networks (default: none)"
    )
    parser.add_argument("--output", type=pathlib.Path, help="JSON file with all tables")
    args, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        run(args, overrides, pathlib.Path(folder))


if __name__ == "__main__":
    main()
