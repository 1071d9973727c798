"""The life of a training run, from top to bottom: open, create or resume, step, log, save, evaluate, roll back, end.

    system = loading.open_system(recipe, workdir)
    fit(system, workdir)

The workdir is the only state: the same call again resumes.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from motionaura_jax.core.types import PyTree
from motionaura_jax.data.media import contact_sheet, write_video
from motionaura_jax.data.windows import SkippedWindows
from motionaura_jax.parallel import distributed
from motionaura_jax.parallel import mesh as meshes
from motionaura_jax.systems.base import Batch, System
from motionaura_jax.training import checkpoint, data, optimizer, state, step
from motionaura_jax.training import workdir as workdirs
from motionaura_jax.training.in_flight import Prefetch, Window
from motionaura_jax.training.monitoring import writers
from motionaura_jax.training.monitoring.monitor import Monitor, Notify
from motionaura_jax.training.recovery import NonFiniteStreak, Recovery
from motionaura_jax.weights import load, steps

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Run:
    """Parts of one training run.

    Attributes:
      state: replaced by every step, which donates the old one.
      window: (step, metrics) since the last log, when the run starts or goes back.
    """

    system: System
    workdir: pathlib.Path
    data: data.TrainingData
    frozen: PyTree
    train_step: step.StepFunction
    checkpoints: checkpoint.Checkpoints
    recovery: Recovery
    state: state.TrainState
    window: Window


def fit(
    system: System, workdir: pathlib.Path, *, override: bool = False, notify: Notify | None = None
) -> dict[str, Any]:
    """Train `system` in `workdir` until `train.steps`; resume from the newest checkpoint.

    Args:
      override: continue although the workdir has another config.
      notify: called with the step, in the first process, whenever a log or an evaluation is in the workdir.

    Returns:
      `step`, `loss`, `goodput`, the last held-out metrics, and `stopped` if a signal ended the run early.

    Raises:
      UserError: unusable data, another config or another run in the workdir, a mesh that does not divide the devices, the
        batch or the tokens, a full disk, a loss that stays non-finite.
    """
    began = time.perf_counter()
    with jax.set_mesh(meshes.make_mesh(system.recipe.mesh)), workdirs.lock(workdir), contextlib.ExitStack() as closing:
        run = _open(system, workdir, override)
        closing.callback(run.checkpoints.close)  # waits for the last save
        monitor = Monitor(
            system, workdir, run.data, run.state, run.frozen, window=run.window, began=began, notify=notify
        )
        closing.enter_context(monitor)
        first = int(run.state.step)
        logger.info("training steps %d to %d in %s", first, system.recipe.train.steps, workdir)
        while True:
            try:
                with monitor.clock("steps"):
                    return {"workdir": str(workdir), "step": first, **_steps(run, monitor)}
            except NonFiniteStreak:
                _roll_back(run, monitor)


# ---------------------------------------------------------------- Open
def _open(system: System, workdir: pathlib.Path, override: bool) -> Run:
    """Open the workdir, the data and the state; everything that can be refused is refused here."""
    recipe, mesh = system.recipe, jax.sharding.get_mesh()
    newest = steps.newest(steps.folder_of(workdir, recipe.checkpoint.folder))

    # ------------------------------------------------------------ Checks, and weights of other runs
    # Before the workdir takes the config: a wrong path can then be corrected without another workdir.
    for bucket in recipe.data.all_buckets():
        meshes.check_batch(mesh.shape, bucket.batch_size, recipe.train.accumulation)
    # Abstract: nothing is allocated yet.
    optimize = optimizer.of(system)
    abstract = state.abstract(system, optimize, mesh)
    state.check_memory(system, abstract, mesh)
    if recipe.meaning and newest:
        recipe.check_start(load.load_recipe(newest, type(recipe), recipe.system), str(workdir))
    system.check_data()
    frozen = system.frozen()
    start = load.load_start(system) if recipe.init_from and newest is None else None

    # ------------------------------------------------------------ Config and data
    saved = workdirs.open_workdir(workdir, recipe, override=override)
    clips = data.TrainingData(recipe, workdir, *meshes.batch_parts(mesh), fields=system.fields)
    logger.info("%s", clips.describe())

    # ------------------------------------------------------------ State
    shardings = state.shardings(abstract, mesh)
    state.describe(system, abstract, mesh)
    checkpoints = checkpoint.Checkpoints(workdir, recipe.checkpoint, saved, workdirs.provenance(clips.content_hash))
    window: Window = ()
    if newest is None:
        checkpoints.check_new()
        # Created in its shardings: no device or host ever holds a whole copy.
        current = jax.jit(lambda: state.create(system, optimize, recipe.seed), out_shardings=shardings)()
        if start is None:
            batches = (system.to_arrays(batch) for batch in clips.preparation())
            start = system.prepare(current.params, current.extra, batches)
        current = state.restart(current, *start)
    else:
        current, continuation = checkpoints.restore(abstract)
        workdirs.record(workdir, saved)  # only now: with --override, the checkpoint might not have fitted
        clips.skipped, window = SkippedWindows.of(continuation.skipped_windows), continuation.open_window
        checkpoints.rate_again(writers.read_metrics(workdir / writers.FILE))
    return Run(
        system=system,
        workdir=workdir,
        data=clips,
        frozen=jax.device_put(frozen, state.frozen_shardings(frozen, mesh)),
        train_step=step.make_train_step(system, optimize, shardings),
        checkpoints=checkpoints,
        recovery=Recovery(workdir, recipe, clips, checkpoints),
        state=current,
        window=window,
    )


# ---------------------------------------------------------------- Loop
def _steps(run: Run, monitor: Monitor) -> dict[str, Any]:
    """Run the steps after `run.state` until `train.steps` or a signal; return what `fit` returns."""
    recipe, mesh = run.system.recipe, jax.sharding.get_mesh()
    first, last = int(run.state.step), recipe.train.steps
    result: dict[str, Any] = {}
    save_due = False

    def place(batch: Mapping[str, Any]) -> Batch:
        return meshes.spread_batch(mesh, run.system.to_arrays(batch))

    with Prefetch(run.data.batches(first), place) as batches:
        for number in range(first + 1, last + 1):
            with monitor.clock("data"):
                batch = next(batches)

            # ------------------------------------------------------------ Step
            before = run.state
            # An implicit transfer would make the device wait for the host at every step.
            with jax.transfer_guard("disallow"):
                run.state, metrics = run.train_step(before, run.frozen, batch)
            run.checkpoints.let_go(before)
            stopping = monitor.after_step(number, batch, metrics)
            evaluating = (number % recipe.evaluate.every == 0 or number == last) and not stopping
            save_due = save_due or number % recipe.checkpoint.every == 0 or stopping

            # ------------------------------------------------------------ Log
            # One step late, so that the device has work meanwhile; up to date before anything that waits for the device.
            known = number if evaluating or save_due else number - 1
            for until, rows in monitor.due(known, rest=number == last):
                run.checkpoints.check()  # ends the run if a save has failed in the background
                result |= monitor.log(until, rows)
                run.recovery.watch(until, rows)

            # ------------------------------------------------------------ Checkpoint
            # Not while steps are non-finite, so that a rollback never lands in the middle of a streak.
            if number == last or (save_due and monitor.finite):
                _save(run, monitor, number)
                save_due = False

            # ------------------------------------------------------------ Evaluate
            if evaluating:
                result |= _evaluate(run, monitor, number)
            if stopping:
                monitor.note(f"stopped by a signal after step {number}; run the same command again to resume")
                return {**result, "step": number, "stopped": True}
    return result


def _save(run: Run, monitor: Monitor, number: int) -> None:
    """Start a checkpoint; only the copy of the state to host memory, and an earlier save, make the loop wait."""
    window = monitor.open_window()
    with monitor.clock("checkpoint"):
        run.checkpoints.save(run.state, checkpoint.Continuation(run.data.skipped.ranges, window))
        run.recovery.saved()
        monitor.saved(number)


def _evaluate(run: Run, monitor: Monitor, number: int) -> dict[str, float]:
    """Measure on the held-out clips and write videos and a contact sheet to `samples/`; return the metrics."""
    with monitor.clock("evaluation"):
        batches = (run.system.to_arrays(batch) for batch in run.data.evaluation)
        evaluation = run.system.evaluate(run.state.inference_params, run.state.extra, run.frozen, batches)
        metrics = {f"eval_{name}": value for name, value in evaluation.metrics.items()}
        run.checkpoints.rate(number, metrics)
        sheet = None
        if evaluation.videos and distributed.is_primary():
            folder = run.workdir / "samples" / f"{number:07d}"
            sheet = contact_sheet(list(evaluation.videos.items()), folder.with_suffix(".png"))
            for name, video in evaluation.videos.items():
                write_video(folder / f"{name}.mp4", video, evaluation.fps)
        monitor.evaluated(number, metrics, sheet)
    return metrics


# ---------------------------------------------------------------- Rollback
def _roll_back(run: Run, monitor: Monitor) -> None:
    """Return to the last checkpoint, with the data of the non-finite steps left out."""
    run.state = state.outline(run.state)  # frees the arrays first: device memory may not hold two states
    run.state, continuation = run.recovery.roll_back(run.state)
    monitor.rolled_back(int(run.state.step), run.recovery.rollbacks, continuation.open_window)
