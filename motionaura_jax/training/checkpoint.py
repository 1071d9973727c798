"""Checkpoints of a run: orbax behind one small door, with config, provenance and data position beside the state.

A step folder holds `params`, `ema` (where on), `extra`, `optimizer` and `meta`, so that inference reads only the weights.
"""

import collections
import contextlib
import dataclasses
import errno
import logging
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from motionaura_jax import __version__
from motionaura_jax.core.errors import UserError, nearest
from motionaura_jax.core.recipe import CheckpointConfig
from motionaura_jax.core.types import PyTree
from motionaura_jax.parallel import distributed
from motionaura_jax.training import groups
from motionaura_jax.training.snapshot import snapshot
from motionaura_jax.training.state import TrainState
from motionaura_jax.weights import checksum, steps

logger = logging.getLogger(__name__)

_ITEMS = ("params", "ema", "extra", "optimizer")
_CONSUMED = 64  # states at most: what is left of one takes a kilobyte for each array
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
    """The checkpoints of one run: saved in the background, one at a time, committed atomically, kept as `config` says.

    The loop waits for a copy of the state on its way to host memory, and for the save before where that is not done; all
    else, which is Python on each array, is the work of a thread.

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
        self._known_scores: dict[int, float] = {}  # when a save begins, so that all processes keep the same steps
        self._folder = steps.folder_of(workdir, config.folder)
        self._thread = futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving: futures.Future[None] | None = None
        self._consumed: collections.deque[TrainState] = collections.deque(maxlen=_CONSUMED)
        self._warned = False
        with _writing(self._folder):
            self._manager = _manager(self._folder, _preservation(config, self._known_scores))

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
        """Notes what the evaluation of `step` found, by which `checkpoint.best` chooses; warns once if that has no such metric.

        Which metrics there are shows in an evaluation only, and by then there are steps to lose.
        """
        best = self._config.best
        if best and best not in metrics and not self._warned:
            self._warned = True
            logger.warning(
                "config.checkpoint.best=%s: the evaluation has no such metric%s; the newest checkpoints stay, and none for "
                "being the best until a rerun has the right name",
                *(best, nearest(best, metrics)),
            )
        value = metrics.get(best)
        if value is not None and math.isfinite(value):
            self._scores[step] = value if self._config.best_mode == "max" else -value

    def rate_again(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Notes what earlier starts found, from the rows of `metrics.jsonl`."""
        for row in rows:
            if self._config.best in row:
                self.rate(row["step"], row)

    def save(self, state: TrainState, beside: Beside) -> None:
        """Starts saving `state` and what goes beside it, once the save before is committed; `state` may be donated at once.

        Raises:
          UserError: the disk is full or not writable, which the save before has met; what was committed stays intact.
        """
        self.wait()
        self._known_scores |= self._scores
        step, trees = int(state.step), _items(state)
        sums = {name: checksum.begin(tree) for name, tree in trees.items()}
        self._saving = self._thread.submit(self._write, step, snapshot(trees), sums, beside)

    def let_go(self, consumed: TrainState) -> None:
        """Drops a state that a step was given, but not while a save is on its way.

        Its arrays are empty, but each waits for the interpreter before it goes, and the thread that saves holds that: with a
        thousand arrays the loop would stand still for seconds.
        """
        if self._saving and not self._saving.done():
            self._consumed.append(consumed)
        else:
            self._consumed.clear()

    def _write(self, step: int, trees: Mapping[str, PyTree], sums: Mapping[str, Any], beside: Beside) -> None:
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        meta = {"recipe": self._recipe, "step": step, "version": __version__, "jax": jax.__version__}
        meta |= {"checksums": {name: checksum.finish(begun) for name, begun in sums.items()}}
        meta |= {"provenance": self._provenance, **dataclasses.asdict(beside)}
        self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items))
        self._manager.wait_until_finished()

    def restore(self, abstract: TrainState) -> tuple[TrainState, Beside]:
        """Restores the newest step that can be read into the shapes, dtypes and shardings of `abstract`.

        Newer ones that are damaged are renamed, so that the run can save these steps again.

        Raises:
          UserError: no step can be read, or the newest belongs to another architecture or a newer version.
        """
        self.wait()
        damaged: list[tuple[int, str]] = []  # no exceptions: they would keep the arrays that were read
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
        """Raises UserError where the save on its way has failed; waits for nothing."""
        if self._saving and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is committed.  Raises UserError where it was not."""
        saving, self._saving = self._saving, None
        with _writing(self._folder):
            if saving:
                saving.result()

    def close(self) -> None:
        """Waits until the last save is committed, and ends the threads.  Raises UserError where it was not."""
        with self._thread:
            self.wait()
        with _writing(self._folder):
            self._manager.close()

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, Beside]:
        wanted = _items(abstract)
        with _together():
            folder, meta = steps.read_meta(self._folder / str(step))
            new_average = "ema" in wanted and "ema" not in meta.get("checksums", wanted)  # else it is there or damaged
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
        return state, Beside(**{field.name: meta.get(field.name, ()) for field in dataclasses.fields(Beside)})

    def _form(self, folder: epath.Path, name: str, wanted: PyTree, params: PyTree) -> PyTree:
        """Return the abstract tree as which to read an item; optimizer state and average depend on parameter groups."""
        if name not in ("optimizer", "ema"):
            return wanted
        return groups.readable(steps.stored_item(folder, name), wanted, params)

    def _compare_data(self, step: int, meta: Mapping[str, Any]) -> None:
        then, now = (origin.get("data") for origin in (meta.get("provenance", {}), self._provenance))
        if then and now and then != now:
            logger.warning(
                "the files of the data are not those of step %d (hash %s, now %s); from here on batches are drawn from the "
                "new list, so that some files may come twice and others later",
                *(step, then, now),
            )

    def _set_aside(self, damaged: list[tuple[int, str]], step: int) -> None:
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


class _Manager(ocp.CheckpointManager):
    """Writes in a thread of its own."""

    def reached_preemption(self, step: int) -> bool:
        """Leaves it to the loop to ask: told of a step that lies behind, JAX would let all stop at one that is past."""
        return False


def _manager(folder: epath.Path, policy: managers.PreservationPolicy) -> ocp.CheckpointManager:
    """Opens the folder in all processes, which it makes them meet in through the service of JAX.

    By default they would meet in collectives, which have to come in one order on all devices: those of a thread and those
    of the steps have none.
    """
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    multihost_utils.sync_global_devices("folder of checkpoints")
    together = ocp.options.MultiprocessingOptions(active_processes=set(range(jax.process_count())))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy, multiprocessing_options=together, create=False, enable_async_checkpointing=True
    )
    handlers = ocp.DefaultCheckpointHandlerRegistry()
    for item in _ITEMS:
        # Weights shrink by a tenth at most, and packing them takes a third of the processor time of a save.
        handlers.add(item, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(use_compression=False))
    return _Manager(folder, options=options, handler_registry=handlers)


@dataclasses.dataclass
class _Best:
    """Preserves the `count` steps with the highest scores; orbax has metrics only for what is evaluated before it is saved."""

    count: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[managers.PolicyCheckpointInfo], **_: Any) -> list[bool]:
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
    """Raises `Damaged` in all processes where one of them does: only those whose arrays lie in a damaged file notice."""
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
