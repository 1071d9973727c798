"""What training costs besides the steps: the loop around a device step of a given length, and checkpoints of a preset.

python -m benchmarks.loop [--seconds=0.1] [--steps=100] [--every=50] [--preset=small]

The device step sleeps, so that neither the network nor the neighbors of a shared machine decide the figure.  With
checkpoints, the sleeping system carries the state of the preset with it, and the loop saves it as it goes on.
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

from motionaura_jax import cli, config, process, train
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import make_mesh, spread_batch
from motionaura_jax.recipe import CheckpointConfig, Recipe
from motionaura_jax.systems import base
from motionaura_jax.systems.base import Evaluation
from motionaura_jax.training import checkpoint, data, optimizer, state, step


@dataclass(frozen=True, kw_only=True)
class SleepRecipe(Recipe):
    """`seconds`: length of a device step."""

    seconds: float = 0.1


class SleepSystem:
    """A system whose loss takes a given time and no processor, and notes when each step begins.

    Args:
      load: arrays that are part of its state and never change.
    """

    Recipe = SleepRecipe

    def __init__(self, recipe: SleepRecipe, load: Sequence[Any] = ()):
        self.recipe, self._load = recipe, list(load)
        self.begun: list[float] = []

    def batch_spec(self) -> dict[str, Any]:
        """Not needed: nothing asks for it."""
        return {}

    def to_arrays(self, batch: Any) -> Any:
        """Video and rows."""
        return {"video": batch["video"], "sample": batch["sample"]}

    def check_data(self) -> None:
        """Everything serves."""

    def frozen(self) -> Any:
        """Nothing."""
        return {}

    def init(self, key: Any) -> Any:
        """One weight, and room for the load."""
        load = [jnp.zeros(array.shape, array.dtype) for array in self._load]
        return {"weight": jax.random.normal(key, (64, 64))}, {"load": load}

    def prepare(self, params: Any, extra: Any, batches: Any) -> Any:
        """Takes the load."""
        return params, {"load": self._load}

    def loss(self, params: Any, extra: Any, frozen: Any, batch: Any, key: Any, step: Any) -> Any:
        """Sleeps where the weight needs it, hence once per step."""
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        one = jax.pure_callback(self._sleep, scalar, 1.0 + 0.0 * jax.lax.stop_gradient(params["weight"][0, 0]))
        loss = one * jnp.square(params["weight"]).mean() + 0.0 * batch["video"].mean()
        return loss, ({}, {f"metric_{index}": loss * index for index in range(10)})

    def _sleep(self, value: Any) -> Any:
        self.begun.append(time.perf_counter())
        time.sleep(self.recipe.seconds)
        return value

    def mean_seconds(self, skipped: int) -> float:
        """The mean time of a step, without the first `skipped`."""
        return (self.begun[-1] - self.begun[skipped]) / (len(self.begun) - 1 - skipped)

    def step_seconds(self) -> float:
        """From the beginning of a step to that of the next: the median over stretches that each hold one log step.

        Forgets the steps.  A mean would tell of what else the machine did.
        """
        every = self.recipe.train.log_every
        begun, self.begun = self.begun[every::every], []
        return statistics.median((later - earlier) / every for earlier, later in itertools.pairwise(begun))

    def advance(self, params: Any, extra: Any, stats: Any, key: Any, step: Any) -> Any:
        """Nothing moves but the weight."""
        return params, extra, {}

    def evaluate(self, params: Any, extra: Any, frozen: Any, batches: Any) -> Evaluation:
        """Nothing to measure."""
        return Evaluation(metrics={})


def loop(seconds: float, steps: int) -> dict[str, float]:
    """Seconds of a step in the loop and alone, and processor seconds of a step in the loop."""
    system = SleepSystem(config.build(SleepRecipe, _recipe(seconds, steps)))
    with tempfile.TemporaryDirectory() as folder:
        cpu = time.process_time()
        train.fit(system, pathlib.Path(folder))
        cpu = time.process_time() - cpu
        around = system.step_seconds()
        with jax.set_mesh(make_mesh(MeshConfig())):
            _alone(system, pathlib.Path(folder), steps)
    return {"loop": around, "alone": system.step_seconds(), "cpu": cpu / steps}


def _recipe(seconds: float, steps: int) -> dict[str, Any]:
    return {
        "system": "sleep",
        "seconds": seconds,
        "data": {"num_frames": 2, "height": 64, "width": 64, "scenes": 16, "batch_size": 2},
        "train": {"steps": steps, "log_every": 10},
        "checkpoint": {"every": 10**9},
        "evaluate": {"every": 10**9, "clips": 2, "pictures": 0},
    }


def _alone(system: SleepSystem, workdir: pathlib.Path, steps: int) -> None:
    """The same steps, one after the other on one batch, with no loop around them."""
    optimize = optimizer.build(system.recipe.optimizer, steps)
    current = jax.jit(lambda: state.create(system, optimize, 0))()
    clips = next(data.TrainingData(system.recipe, workdir).batches(0))
    batch = spread_batch(jax.sharding.get_mesh(), system.to_arrays(clips))
    one = step.make_train_step(system, optimize)
    for _ in range(steps):
        current, metrics = one(current, {}, batch)
    jax.block_until_ready(metrics)


def saving(seconds: float, steps: int, every: int, load: Sequence[Any]) -> dict[str, float]:
    """Mean seconds of a step of the loop, with a checkpoint of `load` after `every` steps and without any."""
    found = {}
    for name, interval in (("never", 10**9), ("saving", every)):
        values = _recipe(seconds, steps + every)
        system = SleepSystem(config.build(SleepRecipe, {**values, "checkpoint": {"every": interval, "keep": 1}}), load)
        with tempfile.TemporaryDirectory(dir=".") as folder:
            train.fit(system, pathlib.Path(folder))
        found[name] = system.mean_seconds(every + 5)  # the first save compiles
    return found


def state_of(preset: str) -> state.TrainState:
    """A state of a tokenizer preset."""
    values = config.read(f"configs/tokenizer.py:{preset}", [])
    system_class = base.system_class(values["system"])
    system = system_class(config.build(system_class.Recipe, values))
    optimize = optimizer.build(system.recipe.optimizer, 1000)
    return jax.block_until_ready(jax.jit(lambda: state.create(system, optimize, 0))())


def save(current: state.TrainState) -> dict[str, float]:
    """Seconds that saving a state blocks the loop, that its thread computes, until the commit, and of processors."""
    rows = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        store = checkpoint.Checkpoints(pathlib.Path(folder), CheckpointConfig(keep=1), {})
        for number in range(1, 5):
            current = jax.block_until_ready(jax.tree.map(jnp.copy, current))
            current = state.TrainState(**{**vars(current), "step": jnp.int32(number)})
            begun, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
            store.save(current, checkpoint.Beside())
            blocked, own = time.perf_counter() - begun, time.thread_time() - own
            store.wait()
            rows.append((blocked, own, time.perf_counter() - begun, time.process_time() - cpu))
        store.close()
    blocked, own, committed, cpu = (sorted(column)[1] for column in zip(*rows[1:], strict=True))
    return {"blocked": blocked, "own": own, "committed": committed, "cpu": cpu}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--preset", default="small")
    args = parser.parse_args()
    cli.set_up_logging()
    process.quiet_libraries()
    around = loop(args.seconds, args.steps)
    extra = around["loop"] / around["alone"] - 1
    print("| what | measured |\n|---|---|")
    print(f"| a step alone | {1e3 * around['alone']:.1f} ms |")
    print(f"| the same in the loop | {1e3 * around['loop']:.1f} ms, {100 * extra:+.2f} % |")
    print(f"| processor time of the loop, data and start included | {1e3 * around['cpu']:.1f} ms a step |")
    current = state_of(args.preset)
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(current)]
    size = f"{sum(array.nbytes for array in arrays) / 1e9:.2f} GB in {len(arrays):,} arrays"
    cost = save(current)
    print(
        f"| a checkpoint of `{args.preset}`, {size} | blocks {cost['blocked']:.2f} s, of which its own {cost['own']:.2f} |"
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
