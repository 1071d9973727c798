"""Checkpoints of a run: orbax behind one small door, with config, provenance and data position beside the state.

A step folder holds `params`, `ema` (where on), `extra`, `optimizer` and `meta`, so that inference reads only the weights.
"""

import dataclasses
import errno
import logging
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from motionaura_jax import __version__
from motionaura_jax.errors import UserError, nearest
from motionaura_jax.recipe import CheckpointConfig
from motionaura_jax.training.state import TrainState
from motionaura_jax.types import PyTree
from motionaura_jax.weights import steps
from motionaura_jax.weights.checksum import checksum

logger = logging.getLogger(__name__)

_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@dataclasses.dataclass(frozen=True)
class Beside:
    """What a run needs besides its arrays in order to go on as if it had not stopped; plain JSON values.

    Attributes:
      skipped_windows: ranges of data steps that it has given up (see `data.windows`).
      open_window: (step, metrics) of the steps since the last log step.
    """

    skipped_windows: Sequence[Sequence[int]] = ()
    open_window: Sequence[tuple[int, Mapping[str, float]]] = ()


class Checkpoints:
    """The checkpoints of one run: saved in the background, committed atomically, kept as `config` says.

    Args:
      recipe, provenance: plain JSON values that every checkpoint carries.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: CheckpointConfig,
        recipe: dict[str, Any],
        provenance: Mapping[str, Any] | None = None,
    ):
        self._config, self._recipe, self._provenance = config, recipe, dict(provenance or {})
        self._scores: dict[int, float] = {}
        self._folder = steps.folder_of(workdir, config.folder)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_preservation(config, self._scores),
            enable_async_checkpointing=True,
        )
        with _writing(self._folder):
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def check_new(self) -> None:
        """Raises UserError where there are steps although none of them can be opened: a fresh start would write over them."""
        step = self.latest()
        if step is not None:
            raise UserError(
                f"{self._folder}: no checkpoint can be read, not even step {step}; restore the folder from a copy, "
                f"or move it away to start anew"
            )

    def latest(self) -> int | None:
        """The newest committed step, or None."""
        return self._manager.latest_step()

    def rate(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Notes what the evaluation of `step` found, by which `checkpoint.best` chooses.

        Raises:
          UserError: no metric has that name.
        """
        best = self._config.best
        if best and best not in metrics:
            raise UserError(f"config.checkpoint.best={best}: no such metric{nearest(best, metrics)}")
        value = metrics[best] if best else None
        if value is not None and math.isfinite(value):
            self._scores[step] = value if self._config.best_mode == "max" else -value

    def rate_again(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Notes what earlier starts found, from the rows of `metrics.jsonl`."""
        for row in rows:
            if self._config.best in row:
                self.rate(row["step"], row)

    def save(self, state: TrainState, beside: Beside) -> None:
        """Starts saving `state` and what goes beside it; returns once the arrays are out of the way of the next step.

        Raises:
          UserError: the disk is full or not writable; what was committed before stays intact.
        """
        step = int(state.step)
        trees = _items(state)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        meta = {"recipe": self._recipe, "step": step, "version": __version__, "jax": jax.__version__}
        meta |= {"checksums": {name: checksum(tree) for name, tree in trees.items()}}
        meta |= {"provenance": self._provenance, **dataclasses.asdict(beside)}
        with _writing(self._folder):
            self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items))

    def restore(self, abstract: TrainState) -> tuple[TrainState, Beside]:
        """Restores the newest step that can be read into the shapes, dtypes and shardings of `abstract`.

        Newer ones that are damaged are renamed, so that the run can save these steps again.

        Raises:
          UserError: no step can be read, or the newest belongs to another architecture or a newer version.
        """
        self.wait()
        damaged: list[tuple[int, steps.Damaged]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._read(step, abstract)
            except steps.Damaged as damage:
                damaged.append((step, damage))
                continue
            self._set_aside(damaged, step)
            return restored
        raise UserError(str(damaged[0][1]) if damaged else f"{self._folder}: holds no finished checkpoint")

    def wait(self) -> None:
        """Waits until the last save is committed."""
        with _writing(self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until the last save is committed, and ends the threads."""
        with _writing(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, Beside]:
        folder, meta = steps.read_meta(self._folder / str(step))
        self._compare_data(step, meta)
        items = {name: steps.read_item(folder, name, tree) for name, tree in _items(abstract).items()}
        rest = items["optimizer"]
        state = TrainState(
            step=rest["step"],
            params=items["params"],
            extra=items["extra"]["extra"],
            opt_state=rest["opt_state"],
            ema=items.get("ema"),
            skipped=rest["skipped"],
        )
        return state, Beside(**{field.name: meta.get(field.name, ()) for field in dataclasses.fields(Beside)})

    def _compare_data(self, step: int, meta: Mapping[str, Any]) -> None:
        then, now = (origin.get("data") for origin in (meta.get("provenance", {}), self._provenance))
        if then and now and then != now:
            logger.warning(
                "the files of the data are not those of step %d (hash %s, now %s); from here on batches are drawn from the "
                "new list, so that some files may come twice and others later",
                *(step, then, now),
            )

    def _set_aside(self, damaged: list[tuple[int, steps.Damaged]], step: int) -> None:
        for number, damage in damaged:
            target = self._folder / f"damaged-{number}"
            logger.warning("%s; going on from step %d, and keeping it as %s", damage, step, target.name)
            if jax.process_index() == 0:
                with _writing(self._folder):
                    if target.exists():
                        target.rmtree()
                    (self._folder / str(number)).rename(target)
        if damaged:
            multihost_utils.sync_global_devices("damaged checkpoints are out of the way")
            self._manager.reload()


@dataclasses.dataclass
class _Best:
    """Preserves the `count` steps with the highest scores; orbax has metrics only for what is evaluated before it is saved."""

    count: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[managers.PolicyCheckpointInfo], **_: Any) -> list[bool]:
        rated = sorted((c.step for c in checkpoints if c.step in self.scores), key=self.scores.__getitem__)
        return [c.step in rated[-self.count :] for c in checkpoints]


def _preservation(config: CheckpointConfig, scores: Mapping[int, float]) -> managers.AnyPreservationPolicy:
    policies: list[managers.PreservationPolicy] = [managers.LatestN(config.keep)]
    if config.keep_every:
        policies.append(managers.EveryNSteps(config.keep_every))
    if config.best:
        policies.append(_Best(config.keep_best, scores))
    return managers.AnyPreservationPolicy(policies)


def _items(state: TrainState) -> dict[str, PyTree]:
    rest = {"opt_state": state.opt_state, "step": state.step, "skipped": state.skipped}
    items = {"params": state.params, "extra": {"extra": state.extra}, "optimizer": rest}
    return items if state.ema is None else {**items, "ema": state.ema}


@dataclasses.dataclass
class _writing:
    """Turns a failing disk into one line."""

    folder: epath.Path

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
