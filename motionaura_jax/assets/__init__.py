"""Files that ship with the package."""

import pathlib

FOLDER = pathlib.Path(__file__).parent
SCENES = FOLDER / "scenes"
"""Release folder of a small text-to-video model of rendered scenes; `provenance` in its config.json records its training."""
