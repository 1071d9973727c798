"""Small runs for real processes, as files for `--config`: they go on until a signal comes, and log every step."""

import json
from pathlib import Path

from tests.systems import tiny

ENDLESS = 10**6


def write(folder: Path, **sections) -> Path:
    """Writes a recipe with eight clips in a batch and returns its file."""
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
    """A run of `tests.training.toy`, which `worker.py` knows."""
    return write(folder, system="toy", **sections)


def text_to_video(folder: Path) -> Path:
    """A run of an untrained text-to-video model, its tokens kept."""
    values = tiny.text_to_video(tiny.save_tokenizer(folder / "tokenizer"), text={"vocabulary": []})
    sections = {name: values[name] for name in ("system", "tokenizer", "model", "text")}
    return write(folder, **sections, token_cache=16)
