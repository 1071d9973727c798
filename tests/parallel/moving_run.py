"""A run that moves from eight devices to four, to one and to another mesh of eight, and one that stays; prints JSON.

A program of its own, because the number of devices is fixed once JAX has started.
"""

import dataclasses
import json
import math
import pathlib
import sys
from unittest import mock

import jax

from motionaura_jax.core import config
from motionaura_jax.parallel import mesh
from motionaura_jax.parallel.config import MeshConfig, parse
from motionaura_jax.systems import base, loading, registry
from motionaura_jax.training import loop
from motionaura_jax.training.monitoring.writers import read_metrics
from tests.systems import tiny

STEPS = 5
MESHES = ("fsdp:8", "data:2,fsdp:2", "data:1", "data:2,fsdp:2,tensor:2")
_make_mesh = mesh.make_mesh


def on_as_many_devices(sizes: MeshConfig):
    """Make a mesh of as many of the first devices as its axes need."""
    count = math.prod(abs(size) for size in dataclasses.astuple(sizes))
    return _make_mesh(sizes, jax.devices()[:count])


def go_on(values, workdir, sizes, steps):
    """Train up to `steps`, with a stubbed evaluation."""
    train_section = {"steps": steps, "log_every": 1, "ema_decay": 0.9}
    values = {**values, "mesh": dataclasses.asdict(parse(sizes)), "train": train_section}
    recipe = config.build(registry.system_class(values["system"]).Recipe, values)
    system = loading.open_system(recipe, workdir)
    with mock.patch.object(system, "evaluate", lambda *_: base.Evaluation(metrics={})):
        loop.fit(system, workdir, override=True)


def losses(workdir):
    return [row["loss"] for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]


def recipe_of(name, folder):
    common = {
        "data": {**tiny.SIZE, "batch_size": 8, "scenes": 16},
        "evaluate": {"clips": 1, "pictures": 0},
        "optimizer": {"decay": "constant"},
    }
    if name == "mbq_vae":
        return {"system": name, "model": tiny.TOKENIZER, **common}
    values = tiny.text_to_video(tiny.save_tokenizer(folder / "tokenizer"), model={"width": 32, "qk_gain": 1.0})
    return {**values, **common}


def main(name, folder):
    values = recipe_of(name, folder)
    for number, sizes in enumerate(MESHES, 1):
        go_on(values, folder / "moving", sizes, number * STEPS)
    go_on(values, folder / "staying", "data:1", len(MESHES) * STEPS)
    return {"moving": losses(folder / "moving"), "staying": losses(folder / "staying")}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    with mock.patch.object(mesh, "make_mesh", on_as_many_devices):
        json.dump(main(sys.argv[1], pathlib.Path(sys.argv[2])), sys.stdout)
