"""A run to be killed: `python -m tests.training.killed WORKDIR MANIFEST STEPS SAVE_EVERY`, whose state tells what it was fed."""

import pathlib
import sys

import jax.numpy as jnp

from motionaura_jax import cli, config, train
from tests.training.toy import ToyRecipe, ToySystem


class Diary(ToySystem):
    """Keeps the records of every step in `extra`, so that a lost or repeated sample shows."""

    def to_arrays(self, batch):
        return {**super().to_arrays(batch), "index": batch["index"].astype("int32")}

    def init(self, key):
        params, extra = super().init(key)
        data, steps = self.recipe.data, self.recipe.train.steps
        return params, {**extra, "fed": jnp.full((steps, data.batch_size), -1, jnp.int32)}

    def prepare(self, params, extra, batches):
        return params, extra

    def loss(self, params, extra, frozen, batch, key, step):
        loss, (stats, metrics) = super().loss(params, extra, frozen, batch, key, step)
        return loss, ({**stats, "index": batch["index"]}, metrics)

    def advance(self, params, extra, stats, key, step):
        _, seen, metrics = super().advance(params, extra, stats, key, step)
        return params, {**seen, "fed": extra["fed"].at[step].set(stats["index"].reshape(-1))}, metrics


def make(manifest, steps, every):
    values = {
        "system": "toy",
        "data": {"manifest": str(manifest), "num_frames": 2, "height": 16, "width": 16, "held_out": 0.2},
        "train": {"steps": int(steps), "log_every": 3, "accumulation": 2, "ema_decay": 0.99},
        "checkpoint": {"every": int(every), "keep": 2},
        "evaluate": {"every": 10**6, "clips": 2, "pictures": 0},
    }
    return Diary(config.build(ToyRecipe, values))


if __name__ == "__main__":
    workdir, *rest = sys.argv[1:]
    raise SystemExit(cli.run(lambda: train.fit(make(*rest), pathlib.Path(workdir)), as_json=True))
