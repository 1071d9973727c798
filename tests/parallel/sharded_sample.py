"""Videos sampled and clips tokenized on eight devices and on one; prints JSON.

A program of its own, because the number of devices is fixed once JAX has started.
"""

import json
import pathlib
import sys
from unittest import mock

import jax
import numpy as np

from motionaura_jax.parallel.config import MeshConfig, parse
from motionaura_jax.parallel.mesh import by_rows, make_mesh
from motionaura_jax.pipelines import base
from motionaura_jax.pipelines.base import Settings
from motionaura_jax.pipelines.prompts import Prompt
from motionaura_jax.pipelines.text_to_video import Job, TextToVideo
from tests.systems import tiny

MESH = "fsdp:2,tensor:2,sequence:2"
JOBS = [Job(prompt=Prompt(text=text, position=position)) for position, text in enumerate(tiny.CAPTIONS[:3])]


def draw(checkpoint, mesh, devices):
    """Sample three videos in batches of two."""
    with mock.patch.object(base, "make_mesh", lambda sizes, _: make_mesh(sizes, devices)):
        pipeline = TextToVideo(checkpoint, mesh=mesh)
    size = pipeline.size(4)
    settings = Settings(size=size, fps=8.0, seed=3, sample=pipeline.recipe.sample, window=4, batch_size=1)
    return pipeline, np.stack(list(pipeline.generate(JOBS, settings)))


def main(folder):
    tokenizer = tiny.save_tokenizer(folder / "tokenizer")
    model = {"width": 32, "heads": 4, "text_dim": 16}
    tiny.save_untrained(folder / "model", 0.1, **tiny.text_to_video(tokenizer, model=model))
    pipeline, alone = draw(folder / "model", MeshConfig(), jax.devices()[:1])
    sharded, shared = draw(folder / "model", parse(MESH), jax.devices())
    split = max(jax.tree.leaves(sharded._params), key=lambda leaf: leaf.size).sharding
    clips = np.random.default_rng(0).uniform(-1, 1, (5, 4, 16, 16, 3)).astype(np.float32)
    encode = by_rows(lambda tokenizer, video: tokenizer.encode(video).tokens, pipeline.autoencoder)
    expected = jax.jit(lambda tokenizer, video: tokenizer.encode(video).tokens)(pipeline.autoencoder, clips)
    return {
        "videos": list(alone.shape),
        "spread": float(alone.std()),
        "difference": int(np.abs(alone.astype(int) - shared).max()),
        "weights_whole": bool(split.is_fully_replicated),
        "tokens": len(np.unique(expected)),
        "other_tokens": int((encode(clips) != np.asarray(expected)).sum()),
    }


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    json.dump(main(pathlib.Path(sys.argv[1])), sys.stdout)
