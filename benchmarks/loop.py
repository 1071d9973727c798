"""Overhead of the training loop around a device step of fixed duration, and the cost of checkpointing a preset.

python -m benchmarks.loop [--seconds=0.1] [--steps=100] [--every=50] [--preset=small]

The device step waits for a fixed wall time and uses neither Python nor a CPU core, like a step on an accelerator
(`device_wait`, which requires a C++ compiler).  For the checkpoints, the loop carries and saves the state of the preset.
"""

import argparse
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device_wait
from motionaura_jax.core import cli, config, process
from motionaura_jax.core.recipe import CheckpointConfig, Recipe
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import make_mesh, spread_batch
from motionaura_jax.systems import registry
from motionaura_jax.systems.base import Evaluation, System
from motionaura_jax.training import checkpoint, data, loop, optimizer, state, step

_EVERY = 10  # steps between log lines


@dataclass(frozen=True, kw_only=True)
class BusyRecipe(Recipe):
    """Recipe with a device step of `seconds`."""

    seconds: float = 0.1


class BusySystem(System):
    """System with a loss that only keeps the device busy.

    Args:
      load: constant arrays to carry in the state.

    Attributes:
      taken: time at which each batch was fetched; batches are prepared ahead of their steps.
    """

    Recipe = BusyRecipe

    def __init__(self, recipe: BusyRecipe, load: Sequence[Any] = ()):
        super().__init__(recipe)
        self._load = list(load)
        self.taken: list[float] = []

    def batch_spec(self) -> dict[str, Any]:
        """Return an empty spec, which nothing reads."""
        return {}

    def to_arrays(self, batch: Any) -> Any:
        """Return the video and row indices."""
        self.taken.append(time.perf_counter())
        return {"video": batch["video"], "sample": batch["sample"]}

    def init(self, key: Any) -> Any:
        """Create one weight, and placeholders for the load."""
        load = [jnp.zeros(array.shape, array.dtype) for array in self._load]
        return {"weight": jax.random.normal(key, (8, 8))}, {"load": load}

    def prepare(self, params: Any, extra: Any, batches: Any) -> Any:
        """Put the load into the state."""
        return params, {"load": self._load}

    def loss(self, params: Any, extra: Any, frozen: Any, batch: Any, key: Any, step: Any) -> Any:
        """Wait on the device."""
        weight = params["weight"]
        waited = device_wait.wait(jax.lax.stop_gradient(weight[0, 0]), self.recipe.seconds)
        loss = jnp.square(weight @ weight).mean() + 0.0 * (waited + batch["video"].mean())
        return loss, ({}, {f"metric_{index}": loss * index for index in range(10)})

    def evaluate(self, params: Any, extra: Any, frozen: Any, batches: Any) -> Evaluation:
        """Return no metrics."""
        return Evaluation(metrics={})


def stepping(seconds: float, steps: int) -> dict[str, float]:
    """Measure wall seconds per step in the loop and alone, and the CPU seconds per step that the loop adds."""
    system = BusySystem(config.build(BusyRecipe, _recipe(seconds, steps)))
    cpu = _train(system)
    stretches = itertools.pairwise(system.taken[_EVERY::_EVERY])
    around = statistics.median((later - earlier) / _EVERY for earlier, later in stretches)
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(make_mesh(MeshConfig())):
        alone, cpu_alone = _alone(system, pathlib.Path(folder), steps)
    return {"loop": around, "alone": alone, "cpu": (cpu - cpu_alone) / steps}


def _recipe(seconds: float, steps: int) -> dict[str, Any]:
    return {
        "system": "busy",
        "seconds": seconds,
        "data": {"num_frames": 2, "height": 64, "width": 64, "scenes": 16, "batch_size": 2},
        "train": {"steps": steps, "log_every": _EVERY},
        "checkpoint": {"every": 10**9},
        "evaluate": {"every": 10**9, "clips": 2, "pictures": 0},
    }


def _train(system: BusySystem) -> float:
    """Train; return the CPU seconds used."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        cpu = time.process_time()
        loop.fit(system, pathlib.Path(folder))
        cpu = time.process_time() - cpu
    return cpu


def _alone(system: BusySystem, workdir: pathlib.Path, steps: int) -> tuple[float, float]:
    """Measure wall seconds per step without the loop, on one batch, and the CPU seconds of all steps."""
    optimize = optimizer.build(system.recipe.optimizer, steps)
    current = jax.jit(lambda: state.create(system, optimize, 0))()
    clips = next(data.TrainingData(system.recipe, workdir).batches(0))
    batch = spread_batch(jax.sharding.get_mesh(), system.to_arrays(clips))
    one = step.make_train_step(system, optimize)
    current, metrics = one(current, {}, batch)
    taken, cpu = [], time.process_time()
    for _ in range(steps // _EVERY):
        jax.block_until_ready(metrics)
        begun = time.perf_counter()
        for _ in range(_EVERY):
            current, metrics = one(current, {}, batch)
        jax.block_until_ready(metrics)
        taken.append((time.perf_counter() - begun) / _EVERY)
    return statistics.median(taken), time.process_time() - cpu


def saving(seconds: float, steps: int, every: int, load: Sequence[Any]) -> dict[str, float]:
    """Measure the mean seconds per loop step, with and without a checkpoint of `load` every `every` steps."""
    found = {}
    for name, interval in (("never", 10**9), ("saving", every)):
        values = _recipe(seconds, steps + every)
        system = BusySystem(config.build(BusyRecipe, {**values, "checkpoint": {"every": interval, "keep": 1}}), load)
        _train(system)
        taken = system.taken[every + 5 :]  # the first save compiles
        found[name] = (taken[-1] - taken[0]) / (len(taken) - 1)
    return found


def state_of(preset: str) -> state.TrainState:
    """Create the state of a tokenizer preset."""
    values = config.read(f"configs/tokenizer.py:{preset}", [])
    system_class = registry.system_class(values["system"])
    system = system_class(config.build(system_class.Recipe, values))
    optimize = optimizer.build(system.recipe.optimizer, 1000)
    return jax.block_until_ready(jax.jit(lambda: state.create(system, optimize, 0))())


def save(current: state.TrainState) -> dict[str, float]:
    """Measure a save in seconds: time the loop is blocked, CPU time of its thread, time until the commit, total CPU time."""
    rows = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        store = checkpoint.Checkpoints(pathlib.Path(folder), CheckpointConfig(keep=1), {})
        for number in range(1, 5):
            current = jax.block_until_ready(jax.tree.map(jnp.copy, current))
            current = state.TrainState(**{**vars(current), "step": jnp.int32(number)})
            begun, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
            store.save(current, checkpoint.Continuation())
            blocked, own = time.perf_counter() - begun, time.thread_time() - own
            store.wait()
            rows.append((blocked, own, time.perf_counter() - begun, time.process_time() - cpu))
        store.close()
    blocked, own, committed, cpu = (sorted(column)[1] for column in zip(*rows[1:], strict=True))
    return {"blocked": blocked, "own": own, "committed": committed, "cpu": cpu}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--preset", default="small")
    args = parser.parse_args()
    cli.set_up_logging()
    process.quiet_libraries()
    device_wait.register()
    around = stepping(args.seconds, args.steps)
    extra = around["loop"] / around["alone"] - 1
    print("| what | measured |\n|---|---|")
    print(f"| a step alone | {1e3 * around['alone']:.1f} ms |")
    print(f"| the same in the loop | {1e3 * around['loop']:.1f} ms, {100 * extra:+.2f} % |")
    print(
        f"| processor time of the loop beyond its steps, data and start included | {1e3 * around['cpu']:.1f} ms a step |"
    )
    current = state_of(args.preset)
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(current)]
    size = f"{sum(array.nbytes for array in arrays) / 1e9:.2f} GB in {len(arrays):,} arrays"
    cost = save(current)
    print(
        f"| a checkpoint of `{args.preset}`, {size} | blocks {cost['blocked']:.2f} s, computing for {cost['own']:.2f} |"
    )
    print(f"| until it is committed | {cost['committed']:.2f} s, {cost['cpu']:.2f} CPU s |")
    print(
        f"| every {args.every} steps, 3 % of the time from steps of | {cost['blocked'] / (args.every * 0.03):.2f} s on |"
    )
    steps = saving(args.seconds, args.steps, args.every, arrays)
    extra = steps["saving"] / steps["never"] - 1
    print(f"| a step of a loop that carries this state, on average | {1e3 * steps['never']:.1f} ms |")
    print(f"| and saves it every {args.every} steps | {1e3 * steps['saving']:.1f} ms, {100 * extra:+.2f} % |")


if __name__ == "__main__":
    main()
