"""Runs to kill, whose state records the data they received."""

import pathlib

import jax.numpy as jnp

from motionaura_jax.core import config
from motionaura_jax.parallel import cluster, distributed
from motionaura_jax.training import loop
from tests.processes import FORKS
from tests.training.toy import ToyRecipe, ToySystem


class Diary(ToySystem):
    """System that records the samples of every step in `extra`, so that a lost or repeated sample shows."""

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
    """Return a run with everything that a resume must restore: accumulation, average, open log windows, few checkpoints."""
    values = {
        "system": "toy",
        "data": {"manifest": str(manifest), "num_frames": 2, "height": 16, "width": 16, "held_out": 0.2},
        "train": {"steps": steps, "log_every": 3, "accumulation": 2, "ema_decay": 0.99},
        "checkpoint": {"every": every, "keep": 2},
        "evaluate": {"every": 10**6, "clips": 2, "pictures": 0},
    }
    return Diary(config.build(ToyRecipe, values))


def start(workdir, manifest, steps, every, **place):
    """Start such a run and return its process; `place` identifies it among several."""
    process = FORKS.Process(target=_run, args=(workdir, manifest, steps, every, place))
    process.start()
    return process


def _run(workdir, manifest, steps, every, place):
    with distributed.joined(cluster.Wanted(**place)):
        loop.fit(make(manifest, steps, every), pathlib.Path(workdir))
