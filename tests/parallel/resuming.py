"""One of two processes that save together and then resume from the remaining files; prints JSON.

A separate program, because a process can join only one run.
"""

import dataclasses
import json
import pathlib
import sys

import jax

from motionaura_jax.core import config
from motionaura_jax.parallel import cluster, distributed
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import make_mesh
from motionaura_jax.training import checkpoint, optimizer, state
from motionaura_jax.training import workdir as workdirs
from tests.training.toy import ToyRecipe, ToySystem


class WideSystem(ToySystem):
    """System with a sharded parameter large enough for files of its own."""

    def init(self, key):
        params, extra = super().init(key)
        return {**params, "kernel": jax.random.normal(key, (128, 128))}, extra


def main(folder: pathlib.Path) -> dict[str, int]:
    recipe = config.build(ToyRecipe, {"system": "toy", "checkpoint": {"folder": str(folder / "bucket")}})
    system, mesh = WideSystem(recipe), make_mesh(MeshConfig(fsdp=2))
    optimize = optimizer.of(system)
    shardings = state.shardings(state.abstract(system, optimize, mesh), mesh)
    current = jax.jit(lambda: state.create(system, optimize, seed=0), out_shardings=shardings)()
    store = checkpoint.Checkpoints(folder / "lost", recipe.checkpoint, config.to_dict(recipe))
    for _ in range(2):
        store.save(current, checkpoint.Continuation())
        current = dataclasses.replace(current, step=jax.jit(lambda step: step + 1)(current.step))
    store.close()
    workdirs.open_workdir(folder / "new", recipe)
    if not distributed.is_primary():
        cut_off(folder / "bucket" / "1" / "params" / "ocdbt.process_1")
    distributed.barrier("damaged")
    store = checkpoint.Checkpoints(folder / "new", recipe.checkpoint, config.to_dict(recipe))
    restored, _ = store.restore(state.outline(current))
    store.close()
    return {"opened": (folder / "new" / "config.json").exists(), "step": int(restored.step)}


def cut_off(folder: pathlib.Path) -> None:
    """Truncate the largest file to its first half."""
    path = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


if __name__ == "__main__":
    with distributed.joined(
        cluster.Wanted(coordinator_address=sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
    ):
        json.dump(main(pathlib.Path(sys.argv[3])), sys.stdout)
