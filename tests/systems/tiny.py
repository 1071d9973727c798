"""The smallest tokenizer and text-to-video model, untrained, as checkpoints on disk."""

import atexit
import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np

from motionaura_jax.core import config
from motionaura_jax.core.recipe import CheckpointConfig
from motionaura_jax.systems import registry
from motionaura_jax.training import checkpoint, optimizer, state

SIZE = {"num_frames": 4, "height": 16, "width": 16, "batch_size": 4}
TOKENIZER = {
    "channels": [8, 8],
    "enc_mb": [0, 0],
    "enc_inc": [0, 0],
    "dec_mb": [0, 0],
    "dec_inc": [0, 0],
    "t_stride": 2,
    "z_channels": 8,
    "latent_dim": 4,
    "codebook_size": 16,
    "norm": "frame_gn",
}
DENOISER = {"vocab_size": 7, "width": 16, "heads": 2, "blocks": 1, "text_dim": 8, "text_len": 12}
CAPTIONS = ["a red circle moves up", "a blue square stays still", "a green star, growing", "two red circles"]


def perturb(params, scale: float):
    """Perturb initial weights, whose zero gates make text irrelevant."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [leaf + scale * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


_states, _tokenizers = {}, {}  # of this process, by the settings that made them


def save_untrained(folder: Path, noise: float = 0.0, **values):
    """Write step 0 of a run to `folder`, its weights `perturb`ed by `noise`, and return the system.

    The weights of equal recipes are computed once per process.
    """
    system_class = registry.system_class(values["system"])
    system = system_class(config.build(system_class.Recipe, values))
    store = checkpoint.Checkpoints(folder, CheckpointConfig(), config.to_dict(system.recipe))
    key = json.dumps({**config.to_dict(system.recipe), "tokenizer": ""}, sort_keys=True, default=str)
    if key not in _states:
        optimize = optimizer.build(system.recipe.optimizer, 1)
        _states[key] = jax.jit(lambda: state.create(system, optimize, 0))()
    current = _states[key]
    noisy = state.restart(current, perturb(current.params, noise), current.extra) if noise else current
    store.save(noisy, checkpoint.Continuation())
    store.close()
    return system


def save_tokenizer(folder: Path, **model) -> Path:
    """Write an untrained tokenizer; `model` replaces settings. Equal ones are copies of the first of this process."""
    key = json.dumps(model, sort_keys=True)
    before = _tokenizers.get(key)
    if before is None:
        before = _tokenizers[key] = Path(tempfile.mkdtemp()) / "tokenizer"
        atexit.register(shutil.rmtree, before.parent, ignore_errors=True)
        save_untrained(before, system="mbq_vae", model={**TOKENIZER, **model})
    shutil.copytree(before, folder, dirs_exist_ok=True)
    return folder


def text_to_video(tokenizer: Path, **sections):
    """Return recipe values with the words of CAPTIONS."""
    words = sorted({word for text in CAPTIONS for word in text.replace(",", " ,").split()})
    values = {
        "system": "text_to_video",
        "tokenizer": str(tokenizer),
        "data": SIZE,
        "model": DENOISER,
        "text": {"vocabulary": words, "encoder": {"layers": 1, "heads": 2, "buckets": 8, "max_distance": 16}},
        "sample": {"num_inference_steps": 4},
        "train": {"steps": 100},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return values
