"""Checkpoints of a run: orbax behind one small door, with the config beside the state.

A step folder holds `params`, `ema` (where on), `extra`, `optimizer` and `meta`, so that inference reads only the weights.
"""

import dataclasses
import errno
import os
import pathlib
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp

from motionaura_jax import __version__
from motionaura_jax.errors import UserError
from motionaura_jax.recipe import CheckpointConfig
from motionaura_jax.training.state import TrainState
from motionaura_jax.types import PyTree
from motionaura_jax.weights.steps import FOLDER, read_item

_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_show_unraisable = sys.unraisablehook


def _leave_out_closed_loops(unraisable: "sys.UnraisableHookArgs") -> None:
    """Where a save fails, the threads of tensorstore print that orbax has closed its event loop, which helps nobody."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _show_unraisable(unraisable)


sys.unraisablehook = _leave_out_closed_loops


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
        items = {name: read_item(folder, name, tree) for name, tree in _items(abstract).items()}
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


def _items(state: TrainState) -> dict[str, PyTree]:
    rest = {"opt_state": state.opt_state, "step": state.step, "skipped": state.skipped}
    items = {"params": state.params, "extra": {"extra": state.extra}, "optimizer": rest}
    return items if state.ema is None else {**items, "ema": state.ema}


@dataclasses.dataclass
class _writing:
    """Turns a failing disk into one line."""

    folder: pathlib.Path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # tensorstore reports the fault of a disk as a ValueError with the text of the system in it.
        full = next((text for text in _FULL if text in str(error)), None)
        if full or isinstance(error, OSError):
            reason, remedy = full or str(error).splitlines()[0], "free space" if full else "check its permissions"
            raise UserError(
                f"{self.folder}: could not save a checkpoint ({reason}); {remedy} and run the same command again"
            ) from error
