"""The step folders of a run as inference sees them: `training.checkpoint` writes them, this reads the weights."""

import logging
import pathlib
from typing import Any

import orbax.checkpoint as ocp

from motionaura_jax.errors import UserError
from motionaura_jax.trees import leaf_types
from motionaura_jax.types import PyTree

FOLDER = "checkpoints"

# orbax logs every array at info, warns on first use, and where a disk is full it logs a traceback for each of its threads,
# which `training.checkpoint` says in one line.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def newest(path: pathlib.Path) -> pathlib.Path | None:
    """The newest finished step folder under a workdir, `path` itself where it is one, or None."""
    steps = [path] if (path / "meta").is_dir() else [p for p in path.glob(f"{FOLDER}/*") if p.name.isdigit()]
    steps = [step for step in steps if (step / "meta").is_dir()]
    return max(steps, key=lambda p: int(p.name) if p.name.isdigit() else 0).absolute() if steps else None


def read_meta(path: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """Finds the newest step under a workdir (or takes a step folder itself) and reads its recipe.

    Returns:
      The step folder and its meta: `recipe`, `step`, `version`, `jax`, and `weights`, which `read_weights` gives:
      "averaged" or "raw".

    Raises:
      UserError: there is no checkpoint.
    """
    if not path.exists():
        raise UserError(
            f"{path}: no such checkpoint; give a workdir of `train`, a step folder, a release folder, or a model on the hub "
            f"with its revision (ORGANIZATION/NAME@REVISION)"
        )
    step = newest(path)
    if step is None:
        raise UserError(f"{path}: holds no finished checkpoint; train there first, or give another folder")
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        meta = checkpointer.restore(step / "meta")
    return step, {**meta, "weights": "averaged" if (step / "ema").is_dir() else "raw"}


def read_weights(step: pathlib.Path, params: PyTree, extra: PyTree) -> tuple[PyTree, PyTree]:
    """Reads the weights for inference, averaged where the run kept an average.

    Args:
      step: folder from `read_meta`.
      params, extra: abstract trees that say what is expected.

    Raises:
      UserError: the checkpoint belongs to another architecture.
    """
    name = "ema" if (step / "ema").is_dir() else "params"
    return read_item(step, name, params), read_item(step, "extra", {"extra": extra})["extra"]


def read_item(step: pathlib.Path, name: str, abstract: PyTree) -> PyTree:
    """Restores one item after comparing names, shapes and dtypes: orbax would cast a dtype silently.

    Raises:
      UserError: the checkpoint belongs to another architecture.
    """
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(step / name).item_metadata
        stored = leaf_types(getattr(metadata, "tree", metadata))
        wanted = leaf_types(abstract)
        for leaf in sorted(stored.keys() | wanted.keys()):
            if stored.get(leaf) != wanted.get(leaf):
                raise UserError(
                    f"{step}: another architecture: {name}/{leaf} is {stored.get(leaf, 'absent')} in the checkpoint and "
                    f"{wanted.get(leaf, 'absent')} in the config; use the config that the checkpoint was trained with"
                )
        return checkpointer.restore(step / name, args=ocp.args.StandardRestore(abstract))
