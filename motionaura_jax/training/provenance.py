"""Where a checkpoint comes from: versions, revision of the source, data."""

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import motionaura_jax

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")


def provenance(data: str) -> dict[str, Any]:
    """Returns `versions` of what computes, `revision` of the source where it is a git checkout, and `data`, its hash."""
    versions = {"motionaura_jax": motionaura_jax.__version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"versions": versions, "revision": _revision(pathlib.Path(motionaura_jax.__file__).parent), "data": data}


def _revision(folder: pathlib.Path) -> str | None:
    """The commit that `folder` was checked out at, with "+" behind it where tracked files were changed since; None elsewhere."""
    describe = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--match=", "--dirty=+"]
    try:
        # A package that was installed inside another repository is not that repository.
        if not (folder.parent / ".git").exists():
            return None
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
