"""The smallest runs that real processes can train, as files for `--config`."""

import json
from pathlib import Path

from tests.systems import tiny


def write(folder: Path, steps: int, **sections) -> Path:
    """Writes a recipe of `steps` steps of eight clips, logged at every step, and returns its file."""
    values = {
        "train": {"steps": steps, "log_every": 1},
        "checkpoint": {"every": 4, "keep": 100},
        "evaluate": {"every": 8, "clips": 4, "pictures": 1},
        **sections,
    }
    values["data"] = {**tiny.SIZE, "batch_size": 8, "scenes": 12, "scene_style": "easy"}
    path = folder / "recipe.json"
    path.write_text(json.dumps(values))
    return path


def tokenizer(folder: Path, steps: int) -> Path:
    """A run of the tokenizer."""
    return write(folder, steps, system="mbq_vae", model=tiny.TOKENIZER)
