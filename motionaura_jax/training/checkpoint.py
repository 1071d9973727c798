"""Checkpoints of a run, written by orbax in the background: the state, with config, provenance and data position.

A step folder holds `params`, `ema` (if averaging is on), `extra`, `optimizer` and `meta`, so that inference reads only the
weights.
"""

import collections
import contextlib
import dataclasses
import errno
import functools
import logging
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, Sharding
from orbax.checkpoint import checkpoint_managers as managers

from motionaura_jax import __version__
from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.core.recipe import CheckpointConfig
from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel import distributed, rules
from motionaura_jax.training import groups
from motionaura_jax.training.state import TrainState
from motionaura_jax.weights import checksum, steps

logger = logging.getLogger(__name__)

_ITEMS = ("params", "ema", "extra", "optimizer")
_CONSUMED = 64  # donated states to keep at most: each takes a kilobyte per array
_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@dataclasses.dataclass(frozen=True)
class Continuation:
    """Values that a run needs in addition to its arrays to continue exactly; plain JSON.

    Attributes:
      skipped_windows: ranges of data steps that the run has dropped (see `data.windows`).
      open_window: (step, metrics) of the steps since the last log step.
    """

    skipped_windows: Sequence[Sequence[int]] = ()
    open_window: Sequence[tuple[int, Mapping[str, float]]] = ()


class Checkpoints:
    """Checkpoints of one run: saved in the background, one at a time, committed atomically, kept as `config` says.

    The loop only starts a copy of the state to host memory, after waiting for the previous save.  A thread does the rest,
    which is Python work on each array.

    Args:
      recipe, provenance: plain JSON values that are part of every checkpoint.
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
        # Orbax applies the retention policy in the thread.  Scores are copied when a save begins, so that all processes
        # keep the same steps.
        self._known_scores: dict[int, float] = {}
        self._folder = steps.folder_of(workdir, config.folder)
        self._thread = futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving: futures.Future[None] | None = None
        self._consumed: collections.deque[TrainState] = collections.deque(maxlen=_CONSUMED)
        self._warned, self._proven = False, False
        with _disk_errors(self._folder):
            self._manager = _manager(self._folder, _preservation(config, self._known_scores))

    def check_new(self) -> None:
        """Raise UserError if there are steps but none can be opened: a fresh start would overwrite them.

        Folders that have the name of a step and hold no file are renamed.
        """
        found = {str(step): steps.holds_files(self._folder / str(step)) for step in self._manager.all_steps()}
        found = distributed.broadcast("stray steps", found)
        empty = [(int(step), f"{self._folder / step}: is empty") for step, full in found.items() if not full]
        self._set_aside(empty, 0)
        step = self.latest()
        if step is None:
            return
        try:
            steps.read_step(self._folder / str(step), step)
            fault = ""
        except steps.Damaged as damage:
            fault = f" ({str(damage).split(';')[0]})"
        raise UserError(
            f"{self._folder}: no checkpoint can be read, not even step {step}{fault}; restore the folder from a copy, "
            f"or move it away to start anew"
        )

    def latest(self) -> int | None:
        """Return the newest committed step, or None."""
        return self._manager.latest_step()

    def rate(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Record the held-out metrics of `step`, from which `checkpoint.best` chooses.

        An unknown `checkpoint.best` is one warning and no error: only an evaluation shows which metrics exist, and by then
        there are steps to lose.
        """
        best = self._config.best
        if best and best not in metrics and not self._warned:
            self._warned = True
            logger.warning(
                "config.checkpoint.best=%s: the evaluation has no such metric%s; only the newest checkpoints are kept "
                "until a rerun has the right name",
                *(best, nearest(best, metrics)),
            )
        value = metrics.get(best)
        if value is not None and math.isfinite(value):
            self._scores[step] = value if self._config.best_mode == "max" else -value

    def rate_again(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record the held-out metrics of earlier starts, from the rows of `metrics.jsonl`."""
        for row in rows:
            if self._config.best in row:
                self.rate(row["step"], row)

    def save(self, state: TrainState, continuation: Continuation) -> None:
        """Start saving, once the previous save is committed; `state` may be donated immediately.

        Raises:
          UserError: the previous save met a full or read-only disk; committed steps stay intact.
        """
        self.wait()
        self._known_scores |= self._scores
        step, trees = int(state.step), _items(state)
        sums = {name: checksum.begin(tree) for name, tree in trees.items()}
        self._saving = self._thread.submit(self._write, step, snapshot(trees), sums, continuation)

    def let_go(self, consumed: TrainState) -> None:
        """Release a donated state, but not during a save.

        Its arrays are empty, but deleting each needs the interpreter, which the saving thread holds most of the time: with a
        thousand arrays the loop would stop for seconds.
        """
        if self._saving and not self._saving.done():
            self._consumed.append(consumed)
        else:
            self._consumed.clear()

    def _write(
        self, step: int, trees: Mapping[str, PyTree], sums: Mapping[str, Any], continuation: Continuation
    ) -> None:
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        meta = {"recipe": self._recipe, "step": step, "version": __version__, "jax": jax.__version__}
        meta |= {"checksums": {name: checksum.finish(begun) for name, begun in sums.items()}}
        meta |= {"provenance": self._provenance, **dataclasses.asdict(continuation)}
        saved = self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items))
        self._manager.wait_until_finished()
        if not saved:  # orbax skips steps before its newest
            raise UserError(
                f"{self._folder}: step {step} was not saved, because there is a step {self.latest()}; move that one away"
            )
        if not self._proven:
            steps.read_back(self._folder / str(step), step, trees)
            self._proven = True

    def restore(self, abstract: TrainState) -> tuple[TrainState, Continuation]:
        """Restore the newest readable step in the shapes, dtypes and shardings of `abstract`.

        Damaged newer steps are renamed, so that the run can save these steps again.

        Raises:
          UserError: no step can be read, or the newest is of another architecture or a newer version.
        """
        self.wait()
        damaged: list[tuple[int, str]] = []  # texts, because an exception would keep the arrays that were read alive
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._read(step, abstract)
            except steps.Damaged as damage:
                damaged.append((step, str(damage)))
                continue
            self._set_aside(damaged, step)
            return restored
        raise UserError(damaged[0][1] if damaged else f"{self._folder}: holds no finished checkpoint")

    def check(self) -> None:
        """Raise UserError if the last save has failed; do not wait for it."""
        if self._saving and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is committed; raise UserError if it failed."""
        saving, self._saving = self._saving, None
        with _disk_errors(self._folder):
            if saving:
                saving.result()

    def close(self) -> None:
        """Wait for the last save and end the threads; raise UserError if it failed."""
        with self._thread:
            self.wait()
        with _disk_errors(self._folder):
            self._manager.close()

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, Continuation]:
        wanted = _items(abstract)
        with _together():
            folder = self._folder / str(step)
            meta = steps.read_step(folder, step)
            new_average = "ema" in wanted and "ema" not in meta.get("checksums", wanted)  # listed but absent: damaged
            if new_average:
                wanted.pop("ema")
            forms = {name: self._form(folder, name, tree, abstract.params) for name, tree in wanted.items()}
            items = {name: steps.restore_item(folder, name, tree) for name, tree in forms.items()}
        with _together():
            steps.verify(folder, meta, items)
        self._compare_data(step, meta)
        if new_average:
            logger.warning("step %d has no average of the weights; it starts from the parameters of that step", step)
            items["ema"] = groups.fit({}, abstract.ema, items["params"])
        for name in (name for name in forms if forms[name] is not wanted[name]):
            items[name] = groups.fit(items[name], wanted[name], items["params"] if name == "ema" else None)
        rest = items["optimizer"]
        state = TrainState(
            step=rest["step"],
            params=items["params"],
            extra=items["extra"]["extra"],
            opt_state=rest["opt_state"],
            ema=items.get("ema"),
            skipped=rest["skipped"],
        )
        return state, Continuation(
            **{field.name: meta.get(field.name, ()) for field in dataclasses.fields(Continuation)}
        )

    def _form(self, folder: epath.Path, name: str, wanted: PyTree, params: PyTree) -> PyTree:
        """Return the abstract tree as which to read an item; optimizer state and average depend on parameter groups."""
        if name not in ("optimizer", "ema"):
            return wanted
        return groups.readable(steps.stored_item(folder, name), wanted, params)

    def _compare_data(self, step: int, meta: Mapping[str, Any]) -> None:
        then, now = (origin.get("data") for origin in (meta.get("provenance", {}), self._provenance))
        if then and now and then != now:
            logger.warning(
                "the data files are not those of step %d (hash %s, now %s); batches now come from the new list, so some files "
                "may come twice and others later",
                *(step, then, now),
            )

    def _set_aside(self, damaged: list[tuple[int, str]], step: int) -> None:
        for number, damage in damaged:
            target, source = self._folder / f"damaged-{number}", self._folder / str(number)
            logger.warning("%s; continuing from step %d and keeping the damaged step as %s", damage, step, target.name)
            if jax.process_index() == 0 and source.exists():
                with _disk_errors(self._folder):
                    if target.exists():
                        target.rmtree()
                    source.rename(target)
        if damaged:
            multihost_utils.sync_global_devices("damaged checkpoints are renamed")
            self._manager.reload()


# ---------------------------------------------------------------- Copies in host memory
def snapshot(tree: PyTree) -> PyTree:
    """Start copying the arrays of `tree` to host memory and return the copies without waiting.

    The originals may be donated immediately: the device overwrites them only after the copy.  Each host holds one more
    copy of what it writes.  Arrays that are replicated on several devices are split over them as far as their dimensions
    divide, so that no part is moved, held or written twice.
    """
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, _copy(tuple(map(_on_host, leaves)))(leaves))


@functools.lru_cache(maxsize=4)
def _copy(places: Sequence[Sharding]) -> jax.stages.Wrapped:
    # One program for all arrays: starting one per array takes the loop longer than moving the bytes.
    return jax.jit(lambda leaves: [jnp.copy(leaf) for leaf in leaves], out_shardings=list(places))


def _on_host(leaf: jax.Array) -> Sharding:
    place = leaf.sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, rules.spread(place.spec, leaf.shape, place.mesh.shape))
    return place.with_memory_kind("pinned_host")


# ---------------------------------------------------------------- Orbax
class _Manager(ocp.CheckpointManager):
    """Manager that saves from a thread and leaves preemption to the loop."""

    def reached_preemption(self, step: int) -> bool:
        """Return False: asked in the thread about an old step, JAX would let all processes stop at a step in the past."""
        return False


def _manager(folder: epath.Path, policy: managers.PreservationPolicy) -> ocp.CheckpointManager:
    """Open the folder in all processes, which synchronize through JAX's coordination service.

    By default orbax synchronizes by collectives.  Collectives must run in the same order on all devices, and those of a
    thread have no fixed order relative to those of the steps.
    """
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    multihost_utils.sync_global_devices("checkpoint folder exists")
    together = ocp.options.MultiprocessingOptions(active_processes=set(range(jax.process_count())))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy, multiprocessing_options=together, create=False, enable_async_checkpointing=True
    )
    handlers = ocp.DefaultCheckpointHandlerRegistry()
    for item in _ITEMS:
        # Compression saves a tenth of the bytes at most and takes a third of the processor time of a save.
        handlers.add(item, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(use_compression=False))
    return _Manager(folder, options=options, handler_registry=handlers)


@dataclasses.dataclass
class _Best:
    """Retention policy for the `count` steps with the highest scores.

    Orbax's own needs metrics when a step is saved; here evaluation comes after the save.
    """

    count: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[managers.PolicyCheckpointInfo], **_: Any) -> list[bool]:
        """Return, for each checkpoint, True if it is among the best."""
        rated = sorted((c.step for c in checkpoints if c.step in self.scores), key=self.scores.__getitem__)
        return [c.step in rated[-self.count :] for c in checkpoints]


def _preservation(config: CheckpointConfig, scores: Mapping[int, float]) -> managers.PreservationPolicy:
    policies: list[managers.PreservationPolicy] = [managers.LatestN(config.keep)]
    if config.keep_every:
        policies.append(managers.EveryNSteps(config.keep_every))
    if config.best:
        policies.append(_Best(config.keep_best, scores))
    return managers.AnyPreservationPolicy(policies)


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Raise `Damaged` in all processes if it is raised in one: only processes that read a damaged file notice."""
    fault = ""
    try:
        yield
    except steps.Damaged as damage:
        fault = str(damage)
    for found in filter(None, distributed.gather("damage", fault)):
        raise steps.Damaged(found)


def _items(state: TrainState) -> dict[str, PyTree]:
    rest = {"opt_state": state.opt_state, "step": state.step, "skipped": state.skipped}
    items = {"params": state.params, "extra": {"extra": state.extra}, "optimizer": rest}
    return items if state.ema is None else {**items, "ema": state.ema}


@dataclasses.dataclass
class _disk_errors:
    """Context that turns a failing disk into one line."""

    folder: epath.Path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # tensorstore reports a failing disk as a ValueError that contains the message of the operating system.
        full = next((text for text in _FULL if text in str(error)), None)
        if full or isinstance(error, OSError):
            reason, remedy = full or str(error).splitlines()[0], "free space" if full else "check its permissions"
            raise UserError(
                f"{self.folder}: could not save a checkpoint ({reason}); {remedy} and run the same command again"
            ) from error
