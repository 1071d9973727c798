"""One of two processes that save together and then resume from what is left; prints JSON.

A program of its own, because a process takes part in one run only.
"""

import json
import pathlib
import sys

import jax

from motionaura_jax import config
from motionaura_jax.parallel import cluster, distributed
from motionaura_jax.parallel.config import MeshConfig
from motionaura_jax.parallel.mesh import make_mesh
from motionaura_jax.training import checkpoint, optimizer, state
from motionaura_jax.training import workdir as workdirs
from tests.training.toy import ToyRecipe, ToySystem


class WideSystem(ToySystem):
    """Has parameters large enough to be split, and to lie in files of their own."""

    def init(self, key):
        params, extra = super().init(key)
        return {**params, "matrix": jax.random.normal(key, (128, 128))}, extra


def main(folder: pathlib.Path) -> dict[str, bool]:
    recipe = config.build(ToyRecipe, {"system": "toy", "checkpoint": {"folder": str(folder / "bucket")}})
    system, mesh = WideSystem(recipe), make_mesh(MeshConfig(fsdp=2))
    optimize = optimizer.build(recipe.optimizer, recipe.train.steps)
    shardings = state.shardings(state.abstract(system, optimize, mesh), mesh)
    current = jax.jit(lambda: state.create(system, optimize, seed=0), out_shardings=shardings)()
    store = checkpoint.Checkpoints(folder / "lost", recipe.checkpoint, config.to_dict(recipe))
    store.save(current, checkpoint.Beside())
    store.close()
    workdirs.open_workdir(folder / "new", recipe)
    return {"opened": (folder / "new" / "config.json").exists()}


if __name__ == "__main__":
    with distributed.joined(
        cluster.Wanted(coordinator_address=sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
    ):
        json.dump(main(pathlib.Path(sys.argv[3])), sys.stdout)
