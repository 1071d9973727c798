"""Files that come with the package."""

import pathlib

SCENES = pathlib.Path(__file__).parent / "scenes"
"""Release folder of a small text-to-video model of rendered scenes; `provenance` in its config.json says how it was made."""
