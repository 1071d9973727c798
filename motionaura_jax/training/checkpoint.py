"""Checkpoints of a run: orbax behind one small door, with the config beside the state.

A step folder holds `params`, `ema` (where on), `extra`, `optimizer` and `meta`, so that inference reads only the weights.
"""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from motionaura_jax import __version__
from motionaura_jax.errors import UserError
from motionaura_jax.recipe import CheckpointConfig
from motionaura_jax.training.optimizer import path_name
from motionaura_jax.training.state import TrainState
from motionaura_jax.types import PyTree

FOLDER = "checkpoints"

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax logs every array at info and warns on first use


class Checkpoints:
    """The checkpoints of one workdir: saved in the background, committed atomically, the newest `keep` kept."""

    def __init__(self, workdir: pathlib.Path, config: CheckpointConfig, recipe: dict[str, Any]):
        self._recipe = recipe
        self._folder = (workdir / FOLDER).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=config.keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """The newest committed step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Starts saving `state`; returns once the arrays are copied out of the way of the next step.

        Raises:
          UserError: the disk is full or not writable; what was committed before stays intact.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        meta = {"recipe": self._recipe, "step": int(state.step), "version": __version__, "jax": jax.__version__}
        with _writing(self._folder):
            self._manager.save(int(state.step), args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items))

    def restore(self, abstract: TrainState) -> TrainState:
        """Restores the newest step into the shapes, dtypes and shardings of `abstract`.

        Raises:
          UserError: the checkpoint belongs to another architecture.
        """
        step = self.latest()
        folder = self._folder / str(step)
        items = {name: _read(folder, name, tree) for name, tree in _items(abstract).items()}
        rest = items["optimizer"]
        return TrainState(
            step=rest["step"],
            params=items["params"],
            extra=items["extra"]["extra"],
            opt_state=rest["opt_state"],
            ema=items.get("ema"),
            skipped=rest["skipped"],
        )

    def close(self) -> None:
        """Waits until the last save is committed."""
        with _writing(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()


def read_meta(path: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """Finds the newest step under a workdir (or takes a step folder itself) and reads its recipe.

    Returns:
      The step folder and its meta: `recipe`, `step`, `version`, `jax`.

    Raises:
      UserError: there is no checkpoint.
    """
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give a workdir of `train` or one of its step folders")
    steps = [path] if (path / "meta").is_dir() else [p for p in path.glob(f"{FOLDER}/*") if p.name.isdigit()]
    steps = [step for step in steps if (step / "meta").is_dir()]
    if not steps:
        raise UserError(f"{path}: holds no finished checkpoint; train there first, or give another folder")
    step = max(steps, key=lambda p: int(p.name) if p.name.isdigit() else 0).absolute()
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return step, checkpointer.restore(step / "meta")


def read_weights(step: pathlib.Path, params: PyTree, extra: PyTree) -> tuple[PyTree, PyTree]:
    """Reads the weights for inference, averaged where the run kept an average.

    Args:
      step: folder from `read_meta`.
      params, extra: abstract trees that say what is expected.

    Raises:
      UserError: the checkpoint belongs to another architecture.
    """
    name = "ema" if (step / "ema").is_dir() else "params"
    return _read(step, name, params), _read(step, "extra", {"extra": extra})["extra"]


def _items(state: TrainState) -> dict[str, PyTree]:
    rest = {"opt_state": state.opt_state, "step": state.step, "skipped": state.skipped}
    items = {"params": state.params, "extra": {"extra": state.extra}, "optimizer": rest}
    return items if state.ema is None else {**items, "ema": state.ema}


def _read(step: pathlib.Path, name: str, abstract: PyTree) -> PyTree:
    """Restores one item after comparing names, shapes and dtypes: orbax would cast a dtype silently."""
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        metadata = checkpointer.metadata(step / name).item_metadata
        stored = _leaves(getattr(metadata, "tree", metadata))
        wanted = _leaves(abstract)
        for leaf in sorted(stored.keys() | wanted.keys()):
            if stored.get(leaf) != wanted.get(leaf):
                raise UserError(
                    f"{step}: another architecture: {name}/{leaf} is {stored.get(leaf, 'absent')} in the checkpoint and "
                    f"{wanted.get(leaf, 'absent')} in the config; use the config that the checkpoint was trained with"
                )
        return checkpointer.restore(step / name, args=ocp.args.StandardRestore(abstract))


def _leaves(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for path, leaf in leaves}


@dataclasses.dataclass
class _writing:
    """Turns a failing disk into one line."""

    folder: pathlib.Path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) or (error is not None and "No space left" in str(error)):
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.folder}: could not save a checkpoint ({reason}); free space and run the same command again"
            ) from error
