"""Small runs for real processes, as files for `--config`: they train until a signal arrives and log every step."""

import json
from pathlib import Path

from tests.systems import tiny

ENDLESS = 10**6


def write(folder: Path, **sections) -> Path:
    """Write a recipe with eight clips in a batch and return its file."""
    values = {
        "train": {"steps": ENDLESS, "log_every": 1},
        "checkpoint": {"every": ENDLESS},
        "evaluate": {"every": ENDLESS, "clips": 4},
        **sections,
        "data": {**tiny.SIZE, "batch_size": 8, "scenes": 12, "scene_style": "easy"},
    }
    path = folder / "recipe.json"
    path.write_text(json.dumps(values))
    return path


def toy(folder: Path, **sections) -> Path:
    """Write the recipe of `tests.training.toy`, which `worker.py` registers."""
    return write(folder, system="toy", **sections)


def text_to_video(folder: Path) -> Path:
    """Write the recipe of an untrained text-to-video model with cached tokens."""
    values = tiny.text_to_video(tiny.save_tokenizer(folder / "tokenizer"), text={"vocabulary": []})
    sections = {name: values[name] for name in ("system", "tokenizer", "model", "text")}
    return write(folder, **sections, token_cache=16)
